package eventstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
)

// nextByHand appends what is said to be the next event of a stream.
const nextByHand = `SELECT pipeops.append_known_one($1, $2, $3, $4, $5, '', 'A', 1, '{}', now(), '', '', '', '', 0, '')`

func TestAStoreThatKnowsAStreamsVersionStillLosesToWhoWasFaster(t *testing.T) {
	t.Parallel()
	s := setup(t)
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
	next := func(server time.Time, epoch int64, stream domain.Stream, version int64, id string) (position *int64) {
		t.Helper()
		if err := s.owner.QueryRow(t.Context(), nextByHand, server, epoch, string(stream), version, id).Scan(&position); err != nil {
			t.Fatal(err)
		}
		return position
	}
	fresh := func() string { return storetest.NewEvent("A").ID }
	if got := next(started, 1, "a", 1, fresh()); got != nil {
		t.Errorf("into an empty log, of which nobody can know: %d", *got)
	}
	first := storetest.NewEvent("A")
	storetest.MustAppend(t, s.Store, storetest.One("a", 0, first))
	if got := next(started, 1, "a", 2, fresh()); got == nil || *got != 2 {
		t.Errorf("the next one: %v", got)
	}
	for what, got := range map[string]*int64{
		"a version that is taken": next(started, 1, "a", 2, fresh()),
		"an id that is taken":     next(started, 1, "a", 3, first.ID),
		"another server process":  next(started.Add(time.Microsecond), 1, "a", 3, fresh()),
		"another epoch":           next(started, 2, "a", 3, fresh()),
		"no version":              next(started, 1, "b", 0, fresh()),
	} {
		if got != nil {
			t.Errorf("%s: %d", what, *got)
		}
	}
	if n := storetest.Count(t, s.Store); n != 2 {
		t.Errorf("%d events", n)
	}
}

// What was known before is not what holds in the new epoch, in which a version may have been lost.
func TestANewEpochIsFoundByWhoKnewTheOneBefore(t *testing.T) {
	t.Parallel()
	s := setup(t)
	for version := range int64(3) {
		storetest.MustAppend(t, s.Store, storetest.One("a", version, storetest.NewEvent("A")))
	}
	if _, err := s.owner.Exec(t.Context(), "SELECT pipeops.raise_log_epoch(7)"); err != nil {
		t.Fatal(err)
	}
	for i, want := range []domain.Cursor{{LogEpoch: 7, Position: 4}, {LogEpoch: 7, Position: 5}} {
		got := storetest.MustAppend(t, s.Store, storetest.One("a", int64(3+i), storetest.NewEvent("A")))
		if got.Last != want {
			t.Errorf("appended as %s, want %s", got.Last, want)
		}
		if carefully := s.Careful() > 0; carefully != (i == 0) {
			t.Errorf("event %d of the new epoch: with care %v", i, carefully)
		}
		s.Trust()
	}
	seen := storetest.Collect(t, s.Read(t.Context(), eventstore.Query{}))
	if last := seen[len(seen)-1]; len(seen) != 5 || last.Cursor.LogEpoch != 7 || last.Version != 5 {
		t.Errorf("%d events, the last one %s of version %d", len(seen), last.Cursor, last.Version)
	}
}

// One that was rolled back makes appends slower, and the next one has another number. One begun by hand is seen as well.
func TestAnEpochIsMetHoweverItBegan(t *testing.T) {
	t.Parallel()
	s := setup(t)
	append1 := func(version int64) domain.Cursor {
		t.Helper()
		defer s.Trust()
		return storetest.MustAppend(t, s.Store, storetest.One("a", version, storetest.NewEvent("A"))).Last
	}
	before := append1(0)
	if _, err := s.owner.Exec(t.Context(), "BEGIN; SELECT pipeops.raise_log_epoch(); ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	for version := range int64(3) {
		if got := append1(version + 1); got.LogEpoch != before.LogEpoch {
			t.Errorf("appended as %s after an epoch that never began", got)
		}
	}
	var raised int64
	if err := s.owner.QueryRow(t.Context(), "SELECT pipeops.raise_log_epoch()").Scan(&raised); err != nil || raised != 3 {
		t.Errorf("epoch %d, %v", raised, err)
	}
	if got := append1(4); got.LogEpoch != 3 {
		t.Errorf("appended as %s", got)
	}
	if _, err := s.owner.Exec(t.Context(), "INSERT INTO pipeops.log_epochs VALUES (5, 6)"); err != nil {
		t.Fatal(err)
	}
	if got := append1(5); got.LogEpoch != 5 {
		t.Errorf("appended as %s", got)
	}
}

// Two stores that append to the same streams as they know them, one event or several at once, now and then with a
// version that was true once.
func TestNoStreamGetsAGapFromWhatStoresRemember(t *testing.T) {
	t.Parallel()
	s := setup(t)
	stores := []*eventstore.Store{s.Store, s.open(t, eventstore.Config{})}
	known := map[domain.Stream]int64{}
	var group sync.WaitGroup
	var mu sync.Mutex
	appended := 0
	for w := range 8 {
		group.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(w), 1)) //nolint:gosec // a test's dice
			for range 60 {
				stream := domain.Stream(fmt.Sprint("build/", dice.IntN(6)))
				store, n := stores[dice.IntN(2)], 1+dice.IntN(3)
				if dice.IntN(4) == 0 {
					store.Trust()
				}
				mu.Lock()
				expected := known[stream]
				mu.Unlock()
				if dice.IntN(5) == 0 {
					expected = max(0, expected-int64(dice.IntN(3)))
				}
				_, err := store.Append(t.Context(), storetest.One(stream, expected, storetest.NewEvents(n, "A")...))
				conflict := new(eventstore.ConflictError)
				mu.Lock()
				switch {
				case err == nil:
					appended += n
					known[stream] = max(known[stream], expected+int64(n))
				case errors.As(err, &conflict):
					known[stream] = max(known[stream], conflict.Actual)
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	last := map[domain.Stream]int64{}
	seen := storetest.Collect(t, s.Read(t.Context(), eventstore.Query{}))
	dense(t, seen)
	for _, e := range seen {
		if e.Version != last[e.Stream]+1 {
			t.Errorf("stream %s: version %d follows %d", e.Stream, e.Version, last[e.Stream])
		}
		last[e.Stream] = e.Version
	}
	if len(seen) != appended || appended < 100 {
		t.Errorf("%d events, %d were appended", len(seen), appended)
	}
}
