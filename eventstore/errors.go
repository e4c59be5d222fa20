package eventstore

import (
	"errors"
	"fmt"

	"github.com/pipeops/pipeops/domain"
)

// ErrClosed is what an append gets that had not begun when the store was closed: nothing of it is written.
var ErrClosed = errors.New("event store is closed")

// ConflictError says that a stream is not at the version that the append expected: load it and decide again.
type ConflictError struct {
	Stream   domain.Stream
	Expected int64
	Actual   int64 // 0 = the stream is new
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("stream %s is at version %d, not at %d", e.Stream, e.Actual, e.Expected)
}

// IdempotencyMismatchError says that an append repeats ids, but not what they stand for: nothing was written.
type IdempotencyMismatchError struct {
	ID     string // the first such id
	Reason string // "different": it is recorded with another stream, type or body; "missing": others of the append are recorded
}

func (e *IdempotencyMismatchError) Error() string {
	if e.Reason == "missing" {
		return fmt.Sprintf("event %s is not recorded, but others of the same append are", e.ID)
	}
	return fmt.Sprintf("event %s is recorded with another stream, type or body", e.ID)
}

// CursorConflictError says that a cursor stands elsewhere: another process has gone on from it.
type CursorConflictError struct {
	Name   string
	From   domain.Cursor // where the append expected it
	Actual domain.Cursor
}

func (e *CursorConflictError) Error() string {
	return fmt.Sprintf("cursor %s stands at %s, not at %s", e.Name, e.Actual, e.From)
}

// TooLargeError says that an event's body, or the whole append (EventID is empty), has too many bytes.
type TooLargeError struct {
	EventID string
	Type    string
	Size    int // bytes
	Limit   int // bytes
}

func (e *TooLargeError) Error() string {
	if e.EventID == "" {
		return fmt.Sprintf("append of %d bytes is over the limit of %d", e.Size, e.Limit)
	}
	return fmt.Sprintf("event %s (%s) of %d bytes is over the limit of %d KiB", e.EventID, e.Type, e.Size, e.Limit>>10)
}

// InvalidError says that an append can never be written as it is: a fault of the program that made it.
type InvalidError struct {
	Where  string // what it is about: a stream, an event's id, a cursor's name
	Reason string
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("append is invalid: %s: %s", e.Where, e.Reason)
}

// LogForkedError says that what the cursor has seen is not, or not all, in the log any more: the log went back in a
// restore or failover, and goes on differently from ForkedAt.
type LogForkedError struct {
	Cursor   domain.Cursor
	ForkedAt int64 // first position that may differ
}

func (e *LogForkedError) Error() string {
	return fmt.Sprintf("the log was restored since cursor %s: from position %d on it is another one", e.Cursor, e.ForkedAt)
}

// CursorAheadError says that the cursor has seen more than there is, though no restore was declared.
type CursorAheadError struct {
	Cursor domain.Cursor
	Head   domain.Cursor
}

func (e *CursorAheadError) Error() string {
	return fmt.Sprintf("cursor %s is ahead of the log, whose head is %s: if the database was restored from a backup, "+
		"its owner must call pipeops.raise_log_epoch()", e.Cursor, e.Head)
}
