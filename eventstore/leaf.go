package eventstore

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// leafForm begins every leaf's input: another form gets another name.
const leafForm = "pipeops/leaf/1"

// LeafHash is the RFC 6962 hash (SHA-256 over a zero byte and the input) of an event's leaf. The leaf's index is the
// position less one. Its input is
//
//	"pipeops/leaf/1", then for each field of the envelope in the order of the table's columns
//	4 bytes of length, big-endian, and the field as text, then the 32 bytes of sha256(body)
//
// Numbers are decimal, times RFC 3339 in UTC with six digits and Z, a field that is "none" is empty (numbers: 0).
// Anybody who has an export can compute it without this program.
func LeafHash(e domain.Recorded) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(leafInput(e))
	return [sha256.Size]byte(h.Sum(nil))
}

func leafInput(e domain.Recorded) []byte {
	input := []byte(leafForm)
	for _, field := range []string{
		number(e.Cursor.Position), number(e.Cursor.LogEpoch), string(e.Stream), number(e.Version), e.ID,
		string(e.ProjectID), e.Type, number(int64(e.SchemaVersion)), instant(e.OccurredAt), instant(e.RecordedAt),
		e.Actor, e.CorrelationID, e.CausationID, string(e.Attempt), number(e.AttemptSeq), e.Trace,
	} {
		input = binary.BigEndian.AppendUint32(input, uint32(len(field))) //nolint:gosec // at most maxText
		input = append(input, field...)
	}
	body := sha256.Sum256(e.Body)
	return append(input, body[:]...)
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

func instant(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
