package verify

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/domain"
)

// maxProof bounds a line of proofs, in bytes: 63 hashes at most.
const maxProof = 4 << 10

// AppendProof adds the line of an export that proves the event at a position, with its line break.
func AppendProof(b []byte, position int64, proof tlog.RecordProof) []byte {
	b = strconv.AppendInt(append(b, `{"position":`...), position, 10)
	return appendHashes(b, proof)
}

func appendHashes(b []byte, hashes []tlog.Hash) []byte {
	b = append(b, `,"hashes":[`...)
	for i, hash := range hashes {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, hash.String()...)
		b = append(b, '"')
	}
	return append(b, "]}\n"...)
}

// project checks one project's part: that each event was in the log which the newest checkpoint saw, that this log
// begins with what the other checkpoints saw, and that no stream has a gap. A whole stream, or the end of one, can be
// missing: who wants to know that asks for the whole log.
func (v *verification) project() error {
	incomparable, err := v.earlier()
	if err != nil {
		return err
	}
	file, err := v.export.Open(ProofsFile)
	if err != nil {
		return fmt.Errorf("open the export's proofs: %w", err)
	}
	defer file.Close() //nolint:errcheck // it was only read
	p := part{verification: v, proofs: bufio.NewReaderSize(file, maxProof), streams: newStreams(v.room)}
	err = p.all()
	if err == nil {
		if _, err := p.proofs.ReadByte(); !errors.Is(err, io.EOF) {
			return &Error{File: ProofsFile, Reason: "it has more proofs than there are events"}
		}
	}
	if err == nil && incomparable != nil {
		return incomparable
	}
	return err
}

// part is the state of checking a project's events.
type part struct {
	*verification

	proofs  *bufio.Reader
	last    int64
	streams *streams
}

// all checks every event, and those of the streams that had no room as often again as it takes. The first position
// that is bad is told, whichever way it was found.
func (p *part) all() error {
	first, err := p.pass(p.check)
	for err == nil && p.streams.more() {
		var bad *Error
		bad, err = p.pass(func(e domain.Recorded, _ tlog.Hash) error {
			if first != nil && e.Cursor.Position >= first.Position {
				return first
			}
			return p.streams.next(e)
		})
		if bad != nil {
			first = bad
		}
	}
	if err == nil && first != nil {
		return first
	}
	return err
}

// pass reads the events once; bad is the first that isn't good, err is of reading.
func (p *part) pass(each func(domain.Recorded, tlog.Hash) error) (bad *Error, err error) {
	err = events(p.export, each)
	if line, ok := errors.AsType[*lineError](err); ok {
		return &Error{Position: line.event.Cursor.Position, File: EventsFile, Reason: line.reason()}, nil
	}
	if bad, ok := errors.AsType[*Error](err); ok {
		return bad, nil
	}
	return nil, err
}

func (p *part) check(e domain.Recorded, leaf tlog.Hash) error {
	position := e.Cursor.Position
	wrong := func(file, format string, args ...any) error {
		return &Error{Position: position, File: file, Reason: fmt.Sprintf(format, args...)}
	}
	if p.report.Project == "" {
		p.report.Project = e.ProjectID
	}
	switch {
	case position <= p.last:
		return wrong(EventsFile, "it does not come after the one before it, %d", p.last)
	case position > p.newest.Size:
		return wrong(EventsFile, "it is beyond what the newest checkpoint saw, %s", p.newest.file)
	case e.ProjectID != p.report.Project || e.ProjectID == "":
		return wrong(EventsFile, "it is of project %q, not of %q as the first", e.ProjectID, p.report.Project)
	}
	if err := p.streams.next(e); err != nil {
		return err
	}
	proof, err := p.proof(position)
	if err != nil {
		return wrong(ProofsFile, "%v", err)
	}
	if err := tlog.CheckRecord(proof, p.newest.Size, p.newest.Root, position-1, leaf); err != nil {
		return wrong(EventsFile, "the event, or its proof, is not of the log that checkpoint %s saw", p.newest.file)
	}
	p.last = position
	p.report.Events++
	return nil
}

// proof reads the next proof, which must be that of position.
func (p *part) proof(position int64) (tlog.RecordProof, error) {
	line, err := p.proofs.ReadSlice('\n')
	if err != nil {
		return nil, errors.New("its proof is missing, or too long")
	}
	var told struct {
		Position int64            `json:"position"`
		Hashes   tlog.RecordProof `json:"hashes"`
	}
	if err := json.Unmarshal(line, &told); err != nil || !bytes.Equal(AppendProof(nil, told.Position, told.Hashes), line) {
		return nil, errors.New("its proof is not of the form of an export, byte for byte")
	}
	if told.Position != position {
		return nil, fmt.Errorf("the proof of position %d stands in its place", told.Position)
	}
	return told.Hashes, nil
}
