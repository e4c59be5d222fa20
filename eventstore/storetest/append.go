package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// One event alone and several together may well take different ways.
func appendKeepsTheWholeEnvelopeAndTheExactBytes(t *testing.T, open func() Store) {
	s := open()
	before := time.Now().Add(-time.Minute)
	last := int64(0)
	for _, n := range []int{1, 3} {
		stream := domain.Stream(fmt.Sprintf("build/%d", n))
		events := make([]eventstore.NewEvent, n)
		for i := range events {
			events[i] = fullEvent(fmt.Sprintf("%d-%d", n, i), i)
		}
		got := MustAppend(t, s, One(stream, 0, events...))
		first := domain.Cursor{LogEpoch: 1, Position: last + 1}
		if last += int64(n); got.First != first || got.Last.Position != last || got.Known {
			t.Fatalf("appended at %+v, want %v to %d", got, first, last)
		}
		all := Collect(t, s.ReadStream(t.Context(), stream, 0))
		if len(all) != n {
			t.Fatalf("read back %d events, want %d", len(all), n)
		}
		for i, e := range events {
			if all[i].RecordedAt.Before(before) || all[i].RecordedAt.Location() != time.UTC {
				t.Errorf("recorded at %s", all[i].RecordedAt)
			}
			want := domain.Recorded{
				Cursor: domain.Cursor{LogEpoch: 1, Position: first.Position + int64(i)}, ID: e.ID, Stream: stream, Version: int64(i + 1),
				ProjectID: e.ProjectID, Type: e.Type, SchemaVersion: e.SchemaVersion, Body: e.Body, OccurredAt: e.OccurredAt.Truncate(time.Microsecond),
				RecordedAt: all[i].RecordedAt, Actor: e.Actor, CorrelationID: e.CorrelationID, CausationID: e.CausationID, Attempt: e.Attempt,
				AttemptSeq: e.AttemptSeq, Trace: e.Trace,
			}
			if diff := cmp.Diff(want, all[i]); diff != "" {
				t.Errorf("want - got +\n%s", diff)
			}
		}
	}
}

// fullEvent has another value in each of its fields.
func fullEvent(name string, n int) eventstore.NewEvent {
	e := NewEvent("ImagePushed")
	e.Body = fmt.Appendf(nil, `{"b":%d,"a":"ü <&> \u0000","b":2}`, n)
	e.SchemaVersion, e.AttemptSeq = 2+n, int64(7+n)
	e.ProjectID, e.Actor, e.CorrelationID, e.CausationID = domain.ProjectID("project "+name), "actor "+name, "correlation "+name, "causation "+name
	e.Attempt, e.Trace = domain.AttemptID("attempt "+name), "trace "+name
	e.OccurredAt = time.Date(1999, 12, 31, 23, 59, 59-n, 123_456_789, time.UTC) // before PostgreSQL's year 0, and finer than it keeps
	return e
}

func appendToSeveralStreamsIsAllOrNothing(t *testing.T, open func() Store) {
	s := open()
	MustAppend(t, s, One("a", 0, NewEvents(2, "A")...))
	both := eventstore.Append{Writes: []eventstore.Write{
		{Stream: "b", Expected: 0, Events: NewEvents(2, "B")},
		{Stream: "a", Expected: 1, Events: NewEvents(1, "A")},
	}}
	_, err := s.Append(t.Context(), both)
	var conflict *eventstore.ConflictError
	if !errors.As(err, &conflict) || *conflict != (eventstore.ConflictError{Stream: "a", Expected: 1, Actual: 2}) {
		t.Fatalf("got %v, want a conflict on a at 2", err)
	}
	if n := Count(t, s); n != 2 {
		t.Fatalf("%d events after a refused append, want 2", n)
	}
	both.Writes[1].Expected = 2
	got := MustAppend(t, s, both)
	if got.First.Position != 3 || got.Last.Position != 5 {
		t.Errorf("appended at %+v, want 3 to 5", got)
	}
	if got, want := Positions(Collect(t, s.Read(t.Context(), eventstore.Query{}))), "1:1 2:2 3:1 4:2 5:3"; got != want {
		t.Errorf("log is %s, want %s", got, want)
	}
}

func ofManyWritersAtTheSameVersionOneWins(t *testing.T, open func() Store) {
	s := open()
	const writers = 20
	results := make(chan error, writers)
	for range writers {
		go func() {
			_, err := s.Append(t.Context(), One("slot/x", 0, NewEvent("DeploymentAdmitted")))
			results <- err
		}()
	}
	won := 0
	for range writers {
		var conflict *eventstore.ConflictError
		switch err := <-results; {
		case err == nil:
			won++
		case !errors.As(err, &conflict) || *conflict != (eventstore.ConflictError{Stream: "slot/x", Expected: 0, Actual: 1}):
			t.Errorf("got %v, want a conflict at version 1", err)
		}
	}
	if n := Count(t, s); won != 1 || n != 1 {
		t.Errorf("%d writers won, %d events; want one each", won, n)
	}
}

func writersWhoTakeAnyVersionAllGetTheirOwn(t *testing.T, open func() Store) {
	s := open()
	const writers = 20
	results := make(chan string, writers)
	for range writers {
		go func() {
			e := NewEvent("SourceFetched")
			got, err := s.Append(t.Context(), One("build/x", eventstore.AnyVersion, e))
			results <- fmt.Sprint(e.ID, got.First.Position, err)
		}()
	}
	answered := map[string]bool{}
	for range writers {
		answered[<-results] = true
	}
	all := Collect(t, s.ReadStream(t.Context(), "build/x", 0))
	for i, e := range all {
		if e.Version != int64(i+1) || !answered[fmt.Sprint(e.ID, e.Cursor.Position, nil)] {
			t.Errorf("version %d at %v: the answer to its writer was another", e.Version, e.Cursor)
		}
	}
	if len(all) != writers {
		t.Errorf("%d events, want %d", len(all), writers)
	}
}
