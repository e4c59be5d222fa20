package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// NewEvent is an event of that type, complete but for a meaning.
func NewEvent(kind string) eventstore.NewEvent {
	return eventstore.NewEvent{
		ID: uuid.NewString(), Type: kind, SchemaVersion: 1, Body: []byte(`{"n":1}`), ProjectID: "prj_1",
		OccurredAt: time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC), Actor: "act_1", CorrelationID: "psh_1",
	}
}

// NewEvents is n of them.
func NewEvents(n int, kind string) (events []eventstore.NewEvent) {
	for range n {
		events = append(events, NewEvent(kind))
	}
	return events
}

// One is an append to one stream.
func One(stream domain.Stream, expected int64, events ...eventstore.NewEvent) eventstore.Append {
	return eventstore.Append{Writes: []eventstore.Write{{Stream: stream, Expected: expected, Events: events}}}
}

// MustAppend appends, or fails the test.
func MustAppend(tb testing.TB, s Store, a eventstore.Append) eventstore.Appended {
	tb.Helper()
	got, err := s.Append(tb.Context(), a)
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

// Collect gives all that is read.
func Collect(tb testing.TB, events iter.Seq2[domain.Recorded, error]) (all []domain.Recorded) {
	tb.Helper()
	for e, err := range events {
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// Positions names events as position:version.
func Positions(events []domain.Recorded) string {
	var names []string
	for _, e := range events {
		names = append(names, fmt.Sprintf("%d:%d", e.Cursor.Position, e.Version))
	}
	return strings.Join(names, " ")
}

// Count is how many events the log has.
func Count(tb testing.TB, s Store) int64 {
	tb.Helper()
	head, err := s.Head(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return head.Position
}

// Take follows a subscription until it has seen n events, and gives them with the last cursor.
func Take(t *testing.T, s Store, after domain.Cursor, filter eventstore.Filter, n int) (seen []domain.Recorded, at domain.Cursor) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("a minute"))
	defer cancel()
	at = after
	for batch, err := range s.Subscribe(ctx, after, filter) {
		if err != nil {
			t.Error(err)
			return seen, at
		}
		seen, at = append(seen, batch.Events...), batch.Cursor
		if len(seen) >= n {
			return seen, at
		}
	}
	t.Errorf("%d events within a minute, want %d", len(seen), n)
	return seen, at
}

// Fill appends n events to some streams of three projects.
func Fill(t *testing.T, s Store, n int) {
	t.Helper()
	for i := range n {
		e := NewEvent([]string{"A", "B"}[i%2])
		e.ProjectID = domain.ProjectID(fmt.Sprint("prj_", i%3))
		if _, err := s.Append(t.Context(), One(domain.Stream(fmt.Sprint("build/", i%7)), eventstore.AnyVersion, e)); err != nil {
			t.Error(err)
			return
		}
	}
}
