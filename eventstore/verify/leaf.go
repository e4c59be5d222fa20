package verify

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/tlog"

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
func LeafHash(e domain.Recorded) tlog.Hash {
	var room [512]byte
	hash, _ := leafHash(room[:0], e, sha256.Sum256(e.Body))
	return hash
}

// leafHash is LeafHash where the body's hash is known; it gives back the room that it has used.
func leafHash(room []byte, e domain.Recorded, body [sha256.Size]byte) (tlog.Hash, []byte) {
	room = append(room[:0], 0)
	room = appendLeaf(room, e, body)
	return sha256.Sum256(room), room
}

func appendLeaf(b []byte, e domain.Recorded, body [sha256.Size]byte) []byte {
	b = append(b, leafForm...)
	b = leafNumber(b, e.Cursor.Position)
	b = leafNumber(b, e.Cursor.LogEpoch)
	b = leafText(b, string(e.Stream))
	b = leafNumber(b, e.Version)
	b = leafText(b, e.ID)
	b = leafText(b, string(e.ProjectID))
	b = leafText(b, e.Type)
	b = leafNumber(b, int64(e.SchemaVersion))
	b = leafTime(b, e.OccurredAt)
	b = leafTime(b, e.RecordedAt)
	b = leafText(b, e.Actor)
	b = leafText(b, e.CorrelationID)
	b = leafText(b, e.CausationID)
	b = leafText(b, string(e.Attempt))
	b = leafNumber(b, e.AttemptSeq)
	b = leafText(b, e.Trace)
	return append(b, body[:]...)
}

func leafText(b []byte, text string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(text))) //nolint:gosec // a field has at most a few KiB
	return append(b, text...)
}

func leafNumber(b []byte, n int64) []byte {
	return withLength(b, func(b []byte) []byte { return strconv.AppendInt(b, n, 10) })
}

func leafTime(b []byte, t time.Time) []byte {
	return withLength(b, func(b []byte) []byte { return appendTime(b, t) })
}

// withLength puts the length before what add appends.
func withLength(b []byte, add func([]byte) []byte) []byte {
	at := len(b)
	b = add(append(b, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4)) //nolint:gosec // a number or a time
	return b
}

// appendTime writes RFC 3339 in UTC, always with six digits and Z. It is much of what a leaf costs.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	if year < 0 || year > 9999 {
		return t.AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	}
	hour, minute, second := t.Clock()
	b = append(appendDigits(b, year, 4), '-')
	b = append(appendDigits(b, int(month), 2), '-')
	b = append(appendDigits(b, day, 2), 'T')
	b = append(appendDigits(b, hour, 2), ':')
	b = append(appendDigits(b, minute, 2), ':')
	b = append(appendDigits(b, second, 2), '.')
	return append(appendDigits(b, t.Nanosecond()/1000, 6), 'Z')
}

// appendDigits writes n with so many digits.
func appendDigits(b []byte, n, digits int) []byte {
	at := len(b)
	b = append(b, "000000"[:digits]...)
	for i := at + digits - 1; n > 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
	return b
}
