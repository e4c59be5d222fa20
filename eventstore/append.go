package eventstore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
)

// Limits of what can be appended, in bytes.
const (
	MaxBody   = 256 << 10 // one event's body
	MaxAppend = 64 << 20  // all bodies and attachments of one append
	maxText   = 1 << 10   // any other field; PostgreSQL could not index more than 2,704
	uuidText  = 36
)

// NewEvent is an event to be recorded. Its fields are those of domain.Recorded.
type NewEvent struct {
	ID            string // UUID; domain.EventID gives it
	Type          string
	SchemaVersion int    // from 1
	Body          []byte // canonical JSON, kept verbatim; at most MaxBody
	ProjectID     domain.ProjectID
	OccurredAt    time.Time // cut to µs
	Actor         string
	CorrelationID string
	CausationID   string
	Attempt       domain.AttemptID
	AttemptSeq    int64
	Trace         string
}

// AnyVersion as Write.Expected takes the stream as it is.
const AnyVersion = -1

// Write adds events to the end of one stream.
type Write struct {
	Stream   domain.Stream
	Expected int64 // version that the stream must have; 0 = it must be new; AnyVersion
	Events   []NewEvent
}

// CursorMove moves a reader's cursor in the transaction of what it appends. From is where it must stand: whoever comes
// second with the same From is refused, so a cursor fences a second leader.
type CursorMove struct {
	Name     string
	From, To domain.Cursor
}

// Attachment is something sealed that belongs to an event of the same append, such as a raw delivery.
type Attachment struct {
	ID          string // unique for ever
	EventID     string
	ProjectID   domain.ProjectID
	ContentType string
	KeyID       string // of the key that Sealed was sealed with
	Sealed      []byte
}

// Append is what is written all or not at all. A stream may stand in it once. A write without events only checks its
// stream's version. An append may consist of a move alone.
type Append struct {
	Writes      []Write
	Move        *CursorMove
	Attachments []Attachment
}

// Appended says where the events stand. First and Last are zero for an append without events.
type Appended struct {
	First, Last domain.Cursor
	// Known: all ids were there already with equal content, and nothing was written but the cursor's move. So it is too
	// when the connection was lost after the commit and the store sent the append again.
	Known bool
}

// Append writes a, together with what other goroutines append at the same time, in one transaction that is committed
// when it returns. a must not be changed until then, nor, after ctx has ended it, for as long as the store is open.
//
// Errors: *ConflictError, *IdempotencyMismatchError, *CursorConflictError, *TooLargeError, *InvalidError, ErrClosed:
// nothing of a is written. When ctx ends, the outcome is unknown: the same append again tells, because ids decide.
// A lost connection is no error: the store connects and sends again until ctx ends.
func (s *Store) Append(ctx context.Context, a Append) (Appended, error) {
	r, err := newRequest(a)
	if err != nil {
		return Appended{}, err
	}
	if r.isEmpty() {
		return Appended{}, nil
	}
	return s.committer.do(ctx, r)
}

// request is an append on its way: validated, with what the committer needs to know of it.
type request struct {
	Append
	ids       [][16]byte // of all events, in order
	size      int        // bytes
	done      chan answer
	abandoned atomic.Bool // its caller has gone
	sent      error       // why nobody knows whether it was written; nil: it was never sent
}

type answer struct {
	appended Appended
	err      error
}

func (r *request) isEmpty() bool { return len(r.Writes) == 0 && r.Move == nil }

// newRequest checks all that could make the database refuse a, because a refusal there would hold up the neighbours.
func newRequest(a Append) (*request, error) {
	r := &request{Append: a, done: make(chan answer, 1)} // 1: the committer never waits for a caller
	var streams set[domain.Stream]
	var events set[string]
	for _, w := range a.Writes {
		if err := checkWrite(w, &streams); err != nil {
			return nil, err
		}
		for _, e := range w.Events {
			id, err := checkEvent(e, &events)
			if err != nil {
				return nil, err
			}
			r.ids = append(r.ids, id)
			r.size += len(e.Body)
		}
	}
	var attachments set[string]
	for _, at := range a.Attachments {
		if err := checkAttachment(at, &events, &attachments); err != nil {
			return nil, err
		}
		r.size += len(at.Sealed)
	}
	if r.size > MaxAppend {
		return nil, &TooLargeError{Size: r.size, Limit: MaxAppend}
	}
	return r, checkMove(a.Move)
}

// set makes no map before there is a second element: most appends have one event.
type set[K comparable] struct {
	first K
	n     int
	more  map[K]bool
}

func (s *set[K]) has(k K) bool { return s.n > 0 && s.first == k || s.more[k] }

func (s *set[K]) add(k K) {
	switch s.n++; s.n {
	case 1:
		s.first = k
	case 2:
		s.more = map[K]bool{k: true}
	default:
		s.more[k] = true
	}
}

func checkWrite(w Write, seen *set[domain.Stream]) error {
	switch where := "stream " + string(w.Stream); {
	case w.Stream == "":
		return &InvalidError{Where: "a write", Reason: "its stream is empty"}
	case seen.has(w.Stream):
		return &InvalidError{Where: where, Reason: "it stands in the append twice"}
	case w.Expected < AnyVersion:
		return &InvalidError{Where: where, Reason: fmt.Sprintf("expected version %d", w.Expected)}
	default:
		seen.add(w.Stream)
		return invalid(where, checkTexts(string(w.Stream)))
	}
}

func checkEvent(e NewEvent, seen *set[string]) ([16]byte, error) {
	id, err := uuid.Parse(e.ID)
	var reason string
	switch year := e.OccurredAt.UTC().Year(); {
	case err != nil || len(e.ID) != uuidText || strings.ToLower(e.ID) != e.ID:
		reason = "its id is no UUID in lower-case text form"
	case len(e.Body) > MaxBody:
		return id, &TooLargeError{EventID: e.ID, Type: e.Type, Size: len(e.Body), Limit: MaxBody}
	case seen.has(e.ID):
		reason = "its id stands in the append twice"
	case e.Type == "":
		reason = "its type is empty"
	case e.SchemaVersion < 1 || e.SchemaVersion > 1<<30:
		reason = fmt.Sprintf("schema version %d, they begin at 1", e.SchemaVersion)
	case e.AttemptSeq < 0:
		reason = fmt.Sprintf("attempt sequence %d", e.AttemptSeq)
	case e.OccurredAt.IsZero() || year < 1970 || year > 9999:
		reason = fmt.Sprintf("occurred at %s", e.OccurredAt)
	case !utf8.Valid(e.Body) || !json.Valid(e.Body):
		reason = "its body is not JSON in UTF-8"
	case bytes.IndexByte(e.Body, '\n') >= 0: // an export has a line per event, with the body as it is
		reason = "its body has a line break, which canonical JSON has not"
	default:
		seen.add(e.ID)
		reason = checkTexts(e.Type, string(e.ProjectID), e.Actor, e.CorrelationID, e.CausationID, string(e.Attempt), e.Trace)
	}
	if reason != "" {
		return id, invalid(fmt.Sprintf("event %s (%s)", e.ID, e.Type), reason)
	}
	return id, nil
}

func checkAttachment(a Attachment, events, seen *set[string]) error {
	where := "attachment " + a.ID
	switch {
	case a.ID == "" || seen.has(a.ID):
		return &InvalidError{Where: where, Reason: "its id is empty or stands in the append twice"}
	case len(a.Sealed) == 0:
		return &InvalidError{Where: where, Reason: "it is empty"}
	case !events.has(a.EventID):
		return &InvalidError{Where: where, Reason: "event " + a.EventID + " is not in the same append"}
	}
	seen.add(a.ID)
	return invalid(where, checkTexts(a.ID, string(a.ProjectID), a.ContentType, a.KeyID))
}

func checkMove(m *CursorMove) error {
	if m == nil {
		return nil
	}
	where := "cursor " + m.Name
	if m.Name == "" || m.From == m.To {
		return &InvalidError{Where: where, Reason: "it has no name, or does not move"}
	}
	return invalid(where, checkTexts(m.Name))
}

// checkTexts says what is wrong with one of them; "": nothing.
func checkTexts(texts ...string) (reason string) {
	for _, text := range texts {
		if len(text) > maxText || !utf8.ValidString(text) || strings.IndexByte(text, 0) >= 0 {
			return fmt.Sprintf("text %.40q… is over %d bytes, not UTF-8, or has a NUL", text, maxText)
		}
	}
	return ""
}

// invalid gives the error of a reason, where there is one.
func invalid(where, reason string) error {
	if reason == "" {
		return nil
	}
	return &InvalidError{Where: where, Reason: reason}
}
