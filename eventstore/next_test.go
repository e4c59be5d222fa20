package eventstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
)

// nextByHand appends what is said to be the next event of a stream.
const nextByHand = `SELECT pipeops.append_next_one($1, $2, $3, $4, '', 'A', 1, '{}', now(), '', '', '', '', 0, '')`

func TestAStoreThatKnowsAStreamsVersionStillLosesToWhoWasFaster(t *testing.T) {
	t.Parallel()
	s := setup(t)
	storetest.MustAppend(t, s.Store, storetest.One("a", 0, storetest.NewEvent("A"))) // the log is not empty any more
	until(t, "the store appends without look-ups", func() bool {
		storetest.MustAppend(t, s.Store, storetest.One("other", eventstore.AnyVersion, storetest.NewEvent("A")))
		return s.Careful() == 0
	})
	storetest.MustAppend(t, s.Store, storetest.One("b", 0, storetest.NewEvents(2, "B")...))
	storetest.MustAppend(t, s.Store, storetest.One("b", 2, storetest.NewEvent("B")))
	if s.Careful() != 0 {
		t.Fatal("what nobody else appends to was not taken for known")
	}
	faster := s.open(t, eventstore.Config{})
	taken := storetest.NewEvent("C")
	storetest.MustAppend(t, faster, storetest.One("b", 3, taken))
	_, err := s.Append(t.Context(), storetest.One("b", 3, storetest.NewEvent("B")))
	if conflict := new(eventstore.ConflictError); !errors.As(err, &conflict) || conflict.Actual != 4 || s.Careful() == 0 {
		t.Errorf("got %v, and %d batches to go carefully", err, s.Careful())
	}
	got := storetest.MustAppend(t, faster, storetest.One("b", 4, storetest.NewEvent("C")))
	if again := storetest.MustAppend(t, faster, storetest.One("b", 3, taken)); !again.Known || again.Last.Position >= got.First.Position {
		t.Errorf("what is there already got %+v", again)
	}
	versions := int64(0)
	for e, err := range s.ReadStream(t.Context(), "b", 0) {
		if err != nil {
			t.Fatal(err)
		}
		if versions++; e.Version != versions {
			t.Errorf("version %d follows %d", e.Version, versions-1)
		}
	}
	if versions != 5 {
		t.Errorf("%d events", versions)
	}
}

func TestNothingIsTakenForNextThatIsNot(t *testing.T) {
	t.Parallel()
	s := setup(t)
	var started time.Time
	if err := s.owner.QueryRow(t.Context(), "SELECT pg_postmaster_start_time()").Scan(&started); err != nil {
		t.Fatal(err)
	}
	next := func(server time.Time, stream domain.Stream, version int64, id string) (cursor *string) {
		t.Helper()
		if err := s.owner.QueryRow(t.Context(), nextByHand, server, string(stream), version, id).Scan(&cursor); err != nil {
			t.Fatal(err)
		}
		return cursor
	}
	fresh := func() string { return storetest.NewEvent("A").ID }
	if got := next(started, "a", 1, fresh()); got != nil {
		t.Errorf("into an empty log: %s", *got)
	}
	first := storetest.NewEvent("A")
	storetest.MustAppend(t, s.Store, storetest.One("a", 0, first))
	if got := next(started, "a", 2, fresh()); got == nil || *got != "1.2" {
		t.Errorf("the next one: %v", got)
	}
	for what, got := range map[string]*string{
		"a version that is taken": next(started, "a", 2, fresh()),
		"an id that is taken":     next(started, "a", 3, first.ID),
		"another server process":  next(started.Add(time.Microsecond), "a", 3, fresh()),
	} {
		if got != nil {
			t.Errorf("%s: %s", what, *got)
		}
	}
	if n := storetest.Count(t, s.Store); n != 2 {
		t.Errorf("%d events", n)
	}
}
