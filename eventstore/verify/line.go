package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// maxLine bounds a line of an export, in bytes: a body has at most 256 KiB, its envelope less than 64.
const maxLine = 1 << 20

// AppendLine adds the line of an export for an event to b, with its line break:
//
//	{"event":{"position":1,"epoch":1,"stream":"…","version":1,"id":"…","project":"…","type":"…","schemaVersion":1,
//	"occurredAt":"…","recordedAt":"…","actor":"…","correlationId":"…","causationId":"…","attempt":"…","attemptSeq":0,
//	"trace":"…","bodyHash":"<64 hex digits>"},"data":<the body, verbatim>}
//
// The envelope has this order, no spaces, and its texts as Go's encoder writes them without HTML escaping.
func AppendLine(b []byte, e domain.Recorded) []byte {
	b = appendEnvelope(b, e, sha256.Sum256(e.Body))
	b = append(b, e.Body...)
	return append(b, '}', '\n')
}

// appendEnvelope writes what stands before the body.
func appendEnvelope(b []byte, e domain.Recorded, body [sha256.Size]byte) []byte {
	b = strconv.AppendInt(append(b, `{"event":{"position":`...), e.Cursor.Position, 10)
	b = strconv.AppendInt(append(b, `,"epoch":`...), e.Cursor.LogEpoch, 10)
	b = appendText(append(b, `,"stream":`...), string(e.Stream))
	b = strconv.AppendInt(append(b, `,"version":`...), e.Version, 10)
	b = appendText(append(b, `,"id":`...), e.ID)
	b = appendText(append(b, `,"project":`...), string(e.ProjectID))
	b = appendText(append(b, `,"type":`...), e.Type)
	b = strconv.AppendInt(append(b, `,"schemaVersion":`...), int64(e.SchemaVersion), 10)
	b = appendTime(append(b, `,"occurredAt":"`...), e.OccurredAt)
	b = appendTime(append(b, `","recordedAt":"`...), e.RecordedAt)
	b = appendText(append(b, `","actor":`...), e.Actor)
	b = appendText(append(b, `,"correlationId":`...), e.CorrelationID)
	b = appendText(append(b, `,"causationId":`...), e.CausationID)
	b = appendText(append(b, `,"attempt":`...), string(e.Attempt))
	b = strconv.AppendInt(append(b, `,"attemptSeq":`...), e.AttemptSeq, 10)
	b = appendText(append(b, `,"trace":`...), e.Trace)
	b = hex.AppendEncode(append(b, `,"bodyHash":"`...), body[:])
	return append(b, `"},"data":`...)
}

// appendText writes a text as JSON. Almost all of them are plain ASCII.
func appendText(b []byte, text string) []byte {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			var escaped bytes.Buffer
			encoder := json.NewEncoder(&escaped)
			encoder.SetEscapeHTML(false)
			_ = encoder.Encode(text) // a string is always written
			return append(b, bytes.TrimRight(escaped.Bytes(), "\n")...)
		}
	}
	b = append(b, '"')
	b = append(b, text...)
	return append(b, '"')
}

// What a line can be guilty of.
var (
	errForm = errors.New("the line is not of the form of an export, byte for byte")
	errBody = errors.New("the body is not the one that was recorded: its hash is another")
)

// ReadLine reads a line of an export (without its line break); Body points into it. The line must be exactly what
// AppendLine writes, so that no byte of it can change unnoticed.
func ReadLine(line []byte) (domain.Recorded, error) {
	e, _, _, err := readLine(line, nil)
	return e, err
}

// readLine also gives the body's hash; room is for its own use, and is given back.
func readLine(line, room []byte) (e domain.Recorded, body [sha256.Size]byte, again []byte, err error) {
	begin := bytes.Index(line, []byte(bodyMark)) // in a text its quotes would be escaped
	if begin < 0 || len(line)-begin-len(bodyMark) < 2 || line[len(line)-1] != '}' {
		return e, body, room, errForm
	}
	begin += len(bodyMark)
	p := parser{rest: string(line[:begin])}
	e.Cursor.Position = p.number(`{"event":{"position":`)
	e.Cursor.LogEpoch = p.number(`,"epoch":`)
	e.Stream = domain.Stream(p.text(`,"stream":`))
	e.Version = p.number(`,"version":`)
	e.ID = p.text(`,"id":`)
	e.ProjectID = domain.ProjectID(p.text(`,"project":`))
	e.Type = p.text(`,"type":`)
	e.SchemaVersion = int(p.number(`,"schemaVersion":`))
	e.OccurredAt = p.time(`,"occurredAt":`)
	e.RecordedAt = p.time(`,"recordedAt":`)
	e.Actor = p.text(`,"actor":`)
	e.CorrelationID = p.text(`,"correlationId":`)
	e.CausationID = p.text(`,"causationId":`)
	e.Attempt = domain.AttemptID(p.text(`,"attempt":`))
	e.AttemptSeq = p.number(`,"attemptSeq":`)
	e.Trace = p.text(`,"trace":`)
	told := p.text(`,"bodyHash":`)
	if p.literal(`},"data":`); p.bad {
		return e, body, room, errForm
	}
	e.Body = line[begin : len(line)-1]
	body = sha256.Sum256(e.Body)
	if hex.EncodeToString(body[:]) != told {
		return e, body, room, errBody
	}
	// The parser may be forgiving, because what it read must give the same bytes again.
	room = appendEnvelope(room[:0], e, body)
	if !bytes.HasPrefix(line, room) {
		return e, body, room, errForm
	}
	return e, body, room, nil
}

// bodyMark stands between an envelope's last text and the body.
const bodyMark = `"},"data":`

// parser takes an envelope apart from its beginning.
type parser struct {
	rest string
	bad  bool
}

func (p *parser) literal(text string) {
	rest, ok := strings.CutPrefix(p.rest, text)
	p.rest, p.bad = rest, p.bad || !ok
}

func (p *parser) number(name string) (n int64) {
	p.literal(name)
	digits := 0
	for ; digits < len(p.rest) && digits < 18 && p.rest[digits] >= '0' && p.rest[digits] <= '9'; digits++ {
		n = 10*n + int64(p.rest[digits]-'0')
	}
	p.rest, p.bad = p.rest[digits:], p.bad || digits == 0
	return n
}

func (p *parser) text(name string) string {
	p.literal(name)
	if p.literal(`"`); p.bad {
		return ""
	}
	end, plain := 0, true
	for ; end < len(p.rest) && p.rest[end] != '"'; end++ {
		if p.rest[end] == '\\' {
			plain = false
			end++
		}
	}
	if end >= len(p.rest) {
		p.bad = true
		return ""
	}
	text := p.rest[:end]
	p.rest = p.rest[end+1:]
	if !plain {
		p.bad = json.Unmarshal([]byte(`"`+text+`"`), &text) != nil
	}
	return text
}

func (p *parser) time(name string) time.Time {
	text := p.text(name)
	t, err := time.Parse(time.RFC3339Nano, text)
	p.bad = p.bad || err != nil
	return t
}
