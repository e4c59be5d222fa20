package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// whileLocked holds the log's lock, so that what enqueue appends piles up behind one append in flight, and then lets
// go. It returns when all n answers are in, by the order of the requests.
func whileLocked(t *testing.T, s *bundle, requests []eventstore.Append) []error {
	t.Helper()
	tx, err := s.owner.BeginTx(t.Context(), pgx.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT pipeops.lock_log()"); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	errs := make([]error, len(requests))
	group.Go(func() {
		if _, err := s.Append(t.Context(), one("first", eventstore.AnyVersion, newEvent("First"))); err != nil {
			t.Error(err)
		}
	})
	until(t, "the first append waits for the lock", s.lockIsAwaited(t))
	for i, r := range requests {
		group.Go(func() { _, errs[i] = s.Append(t.Context(), r) })
		until(t, "an append is queued", func() bool { return s.Queued() == i+1 })
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	group.Wait()
	return errs
}

// lockIsAwaited says whether somebody waits for the log's lock.
func (b *bundle) lockIsAwaited(t *testing.T) func() bool {
	t.Helper()
	return func() (waits bool) {
		err := b.owner.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
			WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted)`).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
		return waits
	}
}

// until looks again and again whether something has become true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("a minute"))
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %s", context.Cause(ctx), what)
		case <-tick.C:
		}
	}
}

func TestARefusalNeverFailsTheNeighboursInABatch(t *testing.T) {
	t.Parallel()
	s := setup(t)
	known := newEvents(1, "Known")
	mustAppend(t, s.Store, one("known", 0, known...))
	fenced := one("fenced", 0, newEvent("A"))
	fenced.Move = &eventstore.CursorMove{Name: "c", From: domain.Cursor{LogEpoch: 1, Position: 7}, To: domain.Cursor{LogEpoch: 1, Position: 8}}
	moving := one("moving", 0, newEvents(2, "Good")...)
	moving.Move = &eventstore.CursorMove{Name: "d", To: domain.Cursor{LogEpoch: 1, Position: 8}}
	different := newEvent("Different")
	different.ID = known[0].ID
	errs := whileLocked(t, s, []eventstore.Append{
		one("good/1", 0, newEvents(2, "Good")...),
		one("conflict", 3, newEvents(2, "Bad")...),
		one("known", 0, known...),
		fenced,
		one("good/2", eventstore.AnyVersion, newEvents(3, "Good")...),
		moving,
		attached("a", newEvent("Good")),
		one("mismatch", 0, newEvent("Bad"), different), // shares an id with known: goes with the next batch
		one("good/1", 2, newEvent("Good")),             // what the first one leads to
		one("good/1", 2, newEvent("Bad")),              // too late for that
	})
	compare(t, errs, []string{
		"", "stream conflict is at version 0, not at 3", "", "cursor c stands at 0.0, not at 1.7", "", "", "",
		"event " + different.ID + " is recorded with another stream, type or body", "",
		"stream good/1 is at version 3, not at 2",
	})
	all := collect(t, s.Read(t.Context(), eventstore.Query{}))
	counts := map[string]int{}
	for i, e := range all {
		counts[e.Type]++
		if e.Cursor.Position != int64(i+1) {
			t.Errorf("event %d is at %v", i+1, e.Cursor)
		}
		if i > 0 && e.RecordedAt.Before(all[i-1].RecordedAt) {
			t.Errorf("%v is recorded before its predecessor", e.Cursor)
		}
	}
	if diff := cmp.Diff(map[string]int{"Known": 1, "First": 1, "Good": 9}, counts); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
	if at, err := s.LoadCursor(t.Context(), "d"); at.Position != 8 || err != nil {
		t.Errorf("cursor d at %v, %v", at, err)
	}
}

func TestWhatOnlyTheDatabaseRefusesFailsAlone(t *testing.T) {
	t.Parallel()
	s := setup(t)
	mustAppend(t, s.Store, attached("taken", newEvent("PushReceived")))
	errs := whileLocked(t, s, []eventstore.Append{
		one("good/1", 0, newEvents(2, "Good")...),
		attached("taken", newEvent("Bad")),
		attached("free", newEvent("Good")),
		one("good/2", 1, newEvent("Bad")),
	})
	compare(t, errs, []string{"", "duplicate key", "", "stream good/2 is at version 0, not at 1"})
	if n := count(t, s.Store); n != 1+1+2+1 {
		t.Errorf("%d events", n)
	}
}

// attached is an append of one event with an attachment of that id.
func attached(id string, e eventstore.NewEvent) eventstore.Append {
	a := one(domain.Stream("push/"+e.ID), 0, e)
	a.Attachments = []eventstore.Attachment{{ID: id, EventID: e.ID, KeyID: "k", Sealed: []byte("x")}}
	return a
}

// compare says which errors don't contain what they should; "" is no error.
func compare(t *testing.T, errs []error, want []string) {
	t.Helper()
	for i, err := range errs {
		if err == nil && want[i] != "" || err != nil && (want[i] == "" || !strings.Contains(err.Error(), want[i])) {
			t.Errorf("request %d: got %v, want %q", i, err, want[i])
		}
	}
}

func TestABatchKeepsItsCapsAndAnAppendAboveThemGoesAlone(t *testing.T) {
	t.Parallel()
	s := setup(t)
	s.Store = s.open(t, eventstore.Config{BatchEvents: 3, BatchBytes: 1000})
	var requests []eventstore.Append
	for i := range 5 {
		requests = append(requests, one(domain.Stream(fmt.Sprint("build/", i)), 0, newEvents(2, "A")...))
	}
	big := newEvents(9, "B")
	big[0].Body = []byte(`"` + strings.Repeat("x", 2000) + `"`)
	requests = append(requests, one("big", 0, big...))
	for i, err := range whileLocked(t, s, requests) {
		if err != nil {
			t.Errorf("request %d: %v", i, err)
		}
	}
	if n := count(t, s.Store); n != 1+5*2+9 {
		t.Errorf("%d events", n)
	}
}

func TestAnAppendOfManyEventsIsOneOrder(t *testing.T) {
	t.Parallel()
	s := setup(t)
	got := mustAppend(t, s.Store, one("import", 0, newEvents(3000, "A")...))
	if got.First.Position != 1 || got.Last.Position != 3000 {
		t.Errorf("appended at %+v", got)
	}
	for i, e := range collect(t, s.ReadStream(t.Context(), "import", 1000)) {
		if e.Version != int64(i)+1001 || e.Cursor.Position != e.Version {
			t.Fatalf("event %d is version %d at %v", i, e.Version, e.Cursor)
		}
	}
}

// Two processes, eight writers on three streams, some of them refused; a reader at full speed.
func TestPositionsAreDenseAndNoReaderEverMissesOrReorders(t *testing.T) {
	t.Parallel()
	s := setup(t)
	stores := []*eventstore.Store{s.Store, s.open(t, eventstore.Config{})}
	const writers, each = 8, 60
	ctx, stop := context.WithCancelCause(t.Context())
	var reader, group sync.WaitGroup
	var seen []domain.Recorded
	reader.Go(func() {
		var after domain.Cursor
		for last := false; ; {
			for e, err := range stores[1].Read(t.Context(), eventstore.Query{After: after}) {
				if err != nil {
					t.Error(err)
					return
				}
				seen, after = append(seen, e), e.Cursor
			}
			if last {
				return
			}
			last = context.Cause(ctx) != nil // once more when all is written
		}
	})
	for w := range writers {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 1))
			for range each {
				a := one(domain.Stream(fmt.Sprint("hot/", random.IntN(3))), eventstore.AnyVersion, newEvents(1+random.IntN(3), "A")...)
				if random.IntN(4) == 0 {
					a.Writes[0].Expected = int64(random.IntN(50))
				}
				var conflict *eventstore.ConflictError
				if _, err := stores[w%2].Append(t.Context(), a); err != nil && !errors.As(err, &conflict) {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	stop(nil)
	reader.Wait()
	versions := map[domain.Stream]int64{}
	for i, e := range seen {
		if versions[e.Stream]++; e.Cursor.Position != int64(i+1) || e.Version != versions[e.Stream] {
			t.Fatalf("event %d seen is %v, version %d of %s, want version %d", i+1, e.Cursor, e.Version, e.Stream, versions[e.Stream])
		}
	}
	if n := count(t, s.Store); int64(len(seen)) != n || n < writers*each/2 {
		t.Errorf("the reader saw %d events of %d", len(seen), n)
	}
}

func TestAppendsThatCanNeverBeWrittenAreNamed(t *testing.T) {
	t.Parallel()
	s := setup(t)
	with := func(f func(*eventstore.NewEvent)) eventstore.Append {
		e := newEvent("A")
		e.ID = "11111111-0000-4000-8000-000000000000"
		f(&e)
		return one("s", 0, e)
	}
	var invalid *eventstore.InvalidError
	for name, a := range map[string]eventstore.Append{
		"no stream":         one("", 0, newEvent("A")),
		"stream with a NUL": one("a\x00b", 0, newEvent("A")),
		"version":           one("s", -2, newEvent("A")),
		"stream twice":      {Writes: []eventstore.Write{{Stream: "s"}, {Stream: "s"}}},
		"no UUID":           with(func(e *eventstore.NewEvent) { e.ID = "1" }),
		"UUID in capitals":  with(func(e *eventstore.NewEvent) { e.ID = "ABCDEFAB-0000-4000-8000-000000000000" }),
		"no type":           with(func(e *eventstore.NewEvent) { e.Type = "" }),
		"schema version":    with(func(e *eventstore.NewEvent) { e.SchemaVersion = 0 }),
		"no time":           with(func(e *eventstore.NewEvent) { e.OccurredAt = time.Time{} }),
		"no JSON":           with(func(e *eventstore.NewEvent) { e.Body = []byte("{") }),
		"no UTF-8":          with(func(e *eventstore.NewEvent) { e.Body = []byte("\"\xff\"") }),
		"actor no UTF-8":    with(func(e *eventstore.NewEvent) { e.Actor = "\xff" }),
		"long trace":        with(func(e *eventstore.NewEvent) { e.Trace = strings.Repeat("x", 1025) }),
		"unmoved cursor":    {Move: &eventstore.CursorMove{Name: "c"}},
		"foreign attachment": {
			Writes:      []eventstore.Write{{Stream: "s"}},
			Attachments: []eventstore.Attachment{{ID: "a", EventID: "11111111-0000-4000-8000-000000000000", Sealed: []byte("x")}},
		},
	} {
		if _, err := s.Append(t.Context(), a); !errors.As(err, &invalid) {
			t.Errorf("%s: got %v, want an InvalidError", name, err)
		}
	}
	_, err := s.Append(t.Context(), with(func(e *eventstore.NewEvent) { e.Body = []byte(`"` + strings.Repeat("x", 256<<10-1) + `"`) }))
	want := &eventstore.TooLargeError{EventID: "11111111-0000-4000-8000-000000000000", Type: "A", Size: 256<<10 + 1, Limit: 256 << 10}
	if diff := cmp.Diff(error(want), err); diff != "" || !strings.Contains(err.Error(), "256 KiB") {
		t.Errorf("want - got +\n%s", diff)
	}
	mustAppend(t, s.Store, with(func(e *eventstore.NewEvent) { e.Body = []byte(`"` + strings.Repeat("x", 256<<10-2) + `"`) }))
	if got, err := s.Append(t.Context(), eventstore.Append{}); got != (eventstore.Appended{}) || err != nil {
		t.Errorf("nothing to append gives %+v, %v", got, err)
	}
}

func TestCloseRefusesWhatWaitsAndFinishesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	s := setup(t)
	store := s.open(t, eventstore.Config{})
	tx, err := s.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT pipeops.lock_log()"); err != nil {
		t.Fatal(err)
	}
	inFlight, waiting := make(chan error, 1), make(chan error, 1)
	go func() { _, err := store.Append(t.Context(), one("a", 0, newEvent("A"))); inFlight <- err }()
	until(t, "the first append waits for the lock", s.lockIsAwaited(t))
	go func() { _, err := store.Append(t.Context(), one("b", 0, newEvent("B"))); waiting <- err }()
	until(t, "the second one is queued", func() bool { return store.Queued() == 1 })
	gone, leave := context.WithCancelCause(t.Context())
	leave(errors.New("the caller has left"))
	if _, err := store.Append(gone, one("c", 0, newEvent("C"))); err == nil || !strings.Contains(err.Error(), "the caller has left") {
		t.Errorf("a caller who left got %v", err)
	}
	closed := make(chan struct{})
	go func() { store.Close(); close(closed) }()
	until(t, "the store takes no more", func() bool {
		_, err := store.Append(gone, one("d", 0, newEvent("D")))
		return errors.Is(err, eventstore.ErrClosed)
	})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-inFlight; err != nil {
		t.Errorf("in flight: %v", err)
	}
	if err := <-waiting; !errors.Is(err, eventstore.ErrClosed) {
		t.Errorf("waiting: %v, want ErrClosed", err)
	}
	<-closed
	if n := count(t, s.Store); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}
