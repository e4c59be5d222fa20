package eventstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
)

func TestATimeIsThePlaceOfTheLastEventRecordedByThen(t *testing.T) {
	t.Parallel()
	s := setup(t)
	var early *eventstore.BeforeLogError
	if _, err := s.At(t.Context(), time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)); !errors.As(err, &early) || !early.First.IsZero() {
		t.Errorf("in an empty log: got %v, want BeforeLogError", err)
	}
	for i := range 40 {
		storetest.MustAppend(t, s.Store, storetest.One("build/1", int64(3*i), storetest.NewEvents(3, "A")...)) // three with one time of recording
	}
	if _, err := s.owner.Exec(t.Context(), "SELECT pipeops.raise_log_epoch()"); err != nil {
		t.Fatal(err)
	}
	storetest.MustAppend(t, s.Store, storetest.One("build/2", 0, storetest.NewEvent("A")))
	events := storetest.Collect(t, s.Read(t.Context(), eventstore.Query{}))
	want := map[time.Time]domain.Cursor{}
	for _, e := range events {
		want[e.RecordedAt] = e.Cursor
	}
	for at, cursor := range want {
		if got, err := s.At(t.Context(), at.Add(999)); err != nil || got != cursor {
			t.Errorf("at %s: got %s, %v, want %s", at, got, err, cursor)
		}
		before := domain.Cursor{}
		for _, e := range events {
			if e.RecordedAt.Before(at) {
				before = e.Cursor
			}
		}
		got, err := s.At(t.Context(), at.Add(-time.Microsecond))
		if before.Position == 0 {
			if !errors.As(err, &early) || !early.First.Equal(at) {
				t.Errorf("before the first event: got %s, %v", got, err)
			}
		} else if err != nil || got != before {
			t.Errorf("just before %s: got %s, %v, want %s", at, got, err, before)
		}
	}
	var ahead *eventstore.NotYetError
	if got, err := s.At(t.Context(), time.Now().Add(time.Hour)); !errors.As(err, &ahead) {
		t.Errorf("in an hour: got %s, %v, want NotYetError", got, err)
	}
}

func TestAnAppendUnderWayIsWaitedForBeforeATimeIsAPlace(t *testing.T) {
	t.Parallel()
	s := setup(t)
	storetest.MustAppend(t, s.Store, storetest.One("build/1", 0, storetest.NewEvent("A")))
	tx, err := s.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // it may be over
	if _, err := tx.Exec(t.Context(), "SELECT pipeops.lock_log()"); err != nil {
		t.Fatal(err)
	}
	var now time.Time
	if err := tx.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&now); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		c, err := s.At(t.Context(), now)
		if err == nil && c.Position != 1 {
			err = errors.New("got " + c.String())
		}
		answered <- err
	}()
	for waiting := false; !waiting; {
		select {
		case err := <-answered:
			t.Fatalf("it was answered (%v) while an append could still be recorded before", err)
		default:
		}
		err := s.owner.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks
			WHERE locktype = 'advisory' AND mode = 'ShareLock' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}
