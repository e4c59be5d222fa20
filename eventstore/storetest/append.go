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

func appendKeepsTheWholeEnvelopeAndTheExactBytes(t *testing.T, open func() Store) {
	s := open()
	e := NewEvent("ImagePushed")
	e.Body = []byte(`{"b":1,"a":"ü <&> \u0000","b":2}`)
	e.SchemaVersion, e.CausationID, e.Attempt, e.AttemptSeq, e.Trace = 2, "c", "bld_1.1", 7, "00-t"
	before := time.Now().Add(-time.Minute)
	got := MustAppend(t, s, One("build/1", 0, e))
	want := domain.Cursor{LogEpoch: 1, Position: 1}
	if got.First != want || got.Last != want || got.Known {
		t.Fatalf("appended at %+v, want %v", got, want)
	}
	all := Collect(t, s.ReadStream(t.Context(), "build/1", 0))
	if len(all) != 1 || all[0].RecordedAt.Before(before) || all[0].RecordedAt.Location() != time.UTC {
		t.Fatalf("read back %+v", all)
	}
	all[0].RecordedAt = time.Time{}
	if diff := cmp.Diff(domain.Recorded{
		Cursor: want, ID: e.ID, Stream: "build/1", Version: 1, ProjectID: e.ProjectID, Type: e.Type, SchemaVersion: 2,
		Body: e.Body, OccurredAt: e.OccurredAt.Truncate(time.Microsecond), Actor: e.Actor, CorrelationID: e.CorrelationID,
		CausationID: "c", Attempt: "bld_1.1", AttemptSeq: 7, Trace: "00-t",
	}, all[0]); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
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
