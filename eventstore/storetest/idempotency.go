package storetest

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

func theSameAppendTwiceIsOnce(t *testing.T, open func() Store) {
	s := open()
	for name, a := range map[string]eventstore.Append{
		"one event":   One("build/1", 0, NewEvents(1, "A")...),
		"many events": One("build/2", 0, NewEvents(3, "A")...),
		"two streams": {Writes: []eventstore.Write{{Stream: "push/1", Events: NewEvents(2, "A")}, {Stream: "ref/1", Events: NewEvents(1, "B")}}},
	} {
		first := MustAppend(t, s, a)
		MustAppend(t, s, One(a.Writes[0].Stream, eventstore.AnyVersion, NewEvent("Later")))
		before := Count(t, s)
		for i := range a.Writes[0].Events { // what was asked again later has another time and another cause
			a.Writes[0].Events[i].OccurredAt = time.Now()
			a.Writes[0].Events[i].Trace = "another"
		}
		again := MustAppend(t, s, a)
		first.Known = true
		if diff := cmp.Diff(first, again); diff != "" || Count(t, s) != before {
			t.Errorf("%s: first - again +\n%s%d events more", name, diff, Count(t, s)-before)
		}
	}
}

func anIDWithAnotherMeaningIsRefusedAndNothingWritten(t *testing.T, open func() Store) {
	s := open()
	events := NewEvents(2, "A")
	MustAppend(t, s, One("build/1", 0, events...))
	change := func(f func(*eventstore.NewEvent)) []eventstore.NewEvent {
		changed := slices.Clone(events)
		f(&changed[1])
		return changed
	}
	for name, c := range map[string]struct {
		append eventstore.Append
		want   eventstore.IdempotencyMismatchError
	}{
		"body":       {One("build/1", 0, change(func(e *eventstore.NewEvent) { e.Body = []byte(`{"n":2}`) })...), eventstore.IdempotencyMismatchError{ID: events[1].ID, Reason: "different"}},
		"type":       {One("build/1", 0, change(func(e *eventstore.NewEvent) { e.Type = "B" })...), eventstore.IdempotencyMismatchError{ID: events[1].ID, Reason: "different"}},
		"stream":     {One("build/2", 0, events[0]), eventstore.IdempotencyMismatchError{ID: events[0].ID, Reason: "different"}},
		"half known": {One("build/1", 2, append(slices.Clone(events), eventstore.NewEvent{ID: "ffffffff-0000-4000-8000-000000000000", Type: "A", SchemaVersion: 1, Body: []byte("1"), OccurredAt: time.Now()})...), eventstore.IdempotencyMismatchError{ID: "ffffffff-0000-4000-8000-000000000000", Reason: "missing"}},
	} {
		_, err := s.Append(t.Context(), c.append)
		var mismatch *eventstore.IdempotencyMismatchError
		if !errors.As(err, &mismatch) || *mismatch != c.want {
			t.Errorf("%s: got %v, want %v", name, err, &c.want)
		}
	}
	if n := Count(t, s); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

func theSameAppendFromManyAtOnceIsOnce(t *testing.T, open func() Store) {
	s := open()
	stores := []Store{s, open()}
	a := One("push/1", 0, NewEvents(2, "PushReceived")...)
	var known atomic.Int64
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			got, err := stores[i%2].Append(t.Context(), a)
			if err != nil || got.First.Position != 1 || got.Last.Position != 2 {
				t.Errorf("got %+v, %v", got, err)
			}
			if got.Known {
				known.Add(1)
			}
		})
	}
	group.Wait()
	if n := Count(t, s); n != 2 || known.Load() != 49 {
		t.Errorf("%d events, %d of 50 learnt that they were there; want 2 and 49", n, known.Load())
	}
}

func aCursorFencesASecondLeader(t *testing.T, open func() Store) {
	s := open()
	at := func(position int64) domain.Cursor { return domain.Cursor{LogEpoch: 1, Position: position} }
	move := func(from, to domain.Cursor, events ...eventstore.NewEvent) eventstore.Append {
		a := eventstore.Append{Move: &eventstore.CursorMove{Name: "policies", From: from, To: to}}
		if len(events) > 0 {
			a.Writes = []eventstore.Write{{Stream: "build/1", Expected: eventstore.AnyVersion, Events: events}}
		}
		return a
	}
	first := NewEvents(1, "BuildRequested")
	steps := []struct {
		name   string
		append eventstore.Append
		want   error
		known  bool
		then   domain.Cursor
		events int64
	}{
		{"begins", move(domain.Cursor{}, at(5), first...), nil, false, at(5), 1},
		{"the same again", move(domain.Cursor{}, at(5), first...), nil, true, at(5), 1},
		{"a second leader from the same place", move(domain.Cursor{}, at(6), NewEvent("BuildRequested")), &eventstore.CursorConflictError{Name: "policies", Actual: at(5)}, false, at(5), 1},
		{"a second leader to the same place", move(domain.Cursor{}, at(5), NewEvent("BuildRequested")), &eventstore.CursorConflictError{Name: "policies", Actual: at(5)}, false, at(5), 1},
		{"only moves", move(at(5), at(7)), nil, false, at(7), 1},
		{"only moves, again", move(at(5), at(7)), nil, false, at(7), 1},
		{"only moves, from behind", move(at(5), at(8)), &eventstore.CursorConflictError{Name: "policies", From: at(5), Actual: at(7)}, false, at(7), 1},
		{"what is done already, from the right place", move(at(7), at(9), first...), nil, true, at(9), 1},
		{"what is done already, by a deposed leader", move(at(7), at(8), first...), &eventstore.CursorConflictError{Name: "policies", From: at(7), Actual: at(9)}, false, at(9), 1},
		{"goes on", move(at(9), at(10), NewEvents(2, "BuildRequested")...), nil, false, at(10), 3},
	}
	for _, step := range steps {
		got, err := s.Append(t.Context(), step.append)
		if diff := cmp.Diff(step.want, err); diff != "" {
			t.Errorf("%s: want - got +\n%s", step.name, diff)
		}
		if got.Known != step.known {
			t.Errorf("%s: known is %v", step.name, got.Known)
		}
		if cursor, err := s.LoadCursor(t.Context(), "policies"); cursor != step.then || err != nil {
			t.Errorf("%s: cursor at %v, %v; want %v", step.name, cursor, err, step.then)
		}
		if n := Count(t, s); n != step.events {
			t.Errorf("%s: %d events, want %d", step.name, n, step.events)
		}
	}
	conflict := move(at(10), at(11), NewEvent("BuildRequested"))
	conflict.Writes[0].Expected = 1
	var stale *eventstore.ConflictError
	if _, err := s.Append(t.Context(), conflict); !errors.As(err, &stale) {
		t.Errorf("got %v, want a conflict", err)
	}
	if cursor, err := s.LoadCursor(t.Context(), "policies"); cursor != at(10) || err != nil {
		t.Errorf("a refused append moved the cursor to %v, %v", cursor, err)
	}
}
