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

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// take follows a subscription until it has seen n events, and gives them with the last cursor.
func take(t *testing.T, s *eventstore.Store, after domain.Cursor, filter eventstore.Filter, n int) (seen []domain.Recorded, at domain.Cursor) {
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

// fill appends n events to some streams of three projects.
func fill(t *testing.T, s *eventstore.Store, n int) {
	t.Helper()
	for i := range n {
		e := newEvent([]string{"A", "B"}[i%2])
		e.ProjectID = domain.ProjectID(fmt.Sprint("prj_", i%3))
		if _, err := s.Append(t.Context(), one(domain.Stream(fmt.Sprint("build/", i%7)), eventstore.AnyVersion, e)); err != nil {
			t.Error(err)
			return
		}
	}
}

func TestASubscriptionReplaysAndThenFollows(t *testing.T) {
	t.Parallel()
	s := setup(t)
	fill(t, s.Store, 10)
	run(t, s.Store)
	seen := make(chan []domain.Recorded)
	go func() {
		all, _ := take(t, s.Store, domain.Cursor{LogEpoch: 1, Position: 4}, eventstore.Filter{}, 16)
		seen <- all
	}()
	fill(t, s.Store, 10)
	want := collect(t, s.Read(t.Context(), eventstore.Query{After: domain.Cursor{LogEpoch: 1, Position: 4}}))
	if diff := cmp.Diff(want, <-seen); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
}

func TestTheCursorGoesOnWhereTheFilterLetsNothingThrough(t *testing.T) {
	t.Parallel()
	s := setup(t)
	fill(t, s.Store, 3)
	run(t, s.Store)
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("a minute"))
	defer cancel()
	live := false
	for batch, err := range s.Subscribe(ctx, domain.Cursor{}, eventstore.Filter{Types: []string{"Never"}}) {
		if err != nil || len(batch.Events) > 0 {
			t.Fatalf("%+v, %v", batch, err)
		}
		if batch.Cursor.Position == 3 && !live { // replayed
			live = true
			fill(t, s.Store, 1)
		}
		if batch.Cursor.Position == 4 {
			return
		}
	}
	t.Error("the cursor stood still")
}

func TestASubscriptionCutAtRandomSeesExactlyTheFilteredLog(t *testing.T) {
	t.Parallel()
	s := setup(t)
	reader := s.open(t, eventstore.Config{RingEvents: 16}) // another process, with a ring that is overrun at once
	run(t, reader)
	const events, cuts = 600, 100
	var writer sync.WaitGroup
	writer.Go(func() { fill(t, s.Store, events) })
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	filter := eventstore.Filter{Projects: []domain.ProjectID{"prj_0", "prj_2"}, Types: []string{"B"}}
	var seen []domain.Recorded
	var at domain.Cursor
	for range cuts {
		if at.Position == events {
			break
		}
		n := 1 + random.IntN(3)
		ctx, cut := context.WithCancelCause(t.Context())
		for batch, err := range reader.Subscribe(ctx, at, filter) {
			if err != nil {
				t.Fatal(err)
			}
			seen, at = append(seen, batch.Events...), batch.Cursor
			if n--; n == 0 {
				if random.IntN(2) == 0 {
					break
				}
				cut(errors.New("cut")) // the next one is never seen
			}
		}
		cut(nil)
	}
	for at.Position < events {
		rest, to := take(t, reader, at, filter, 1)
		seen, at = append(seen, rest...), to
		if t.Failed() || len(seen) == events/3 { // what comes after the last one that the filter lets through
			break
		}
	}
	writer.Wait()
	var want []domain.Recorded
	for e, err := range s.Read(t.Context(), eventstore.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if filter.Match(e) {
			want = append(want, e)
		}
	}
	if diff := cmp.Diff(positions(want), positions(seen)); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
}

func TestOneStuckSubscriberHoldsUpNobodyAndKeepsNothing(t *testing.T) {
	t.Parallel()
	s := setup(t)
	const ring = 64 << 10
	store := s.open(t, eventstore.Config{RingEvents: 1000, RingBytes: ring})
	run(t, store)
	stuck, free := make(chan struct{}), make(chan struct{})
	late := make(chan []domain.Recorded)
	const batches, each = 40, 10
	go func() {
		var all []domain.Recorded
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("a minute"))
		defer cancel()
		for batch, err := range store.Subscribe(ctx, domain.Cursor{}, eventstore.Filter{}) {
			if err != nil {
				t.Error(err)
			}
			if all = append(all, batch.Events...); len(all) == len(batch.Events) {
				close(stuck)
				<-free
			}
			if len(all) >= batches*each {
				break
			}
		}
		late <- all
	}()
	mustAppend(t, store, one("build/0", 0, newEvents(each, "A")...))
	<-stuck
	others := make(chan int)
	for range 10 {
		go func() {
			all, _ := take(t, store, domain.Cursor{}, eventstore.Filter{}, batches*each)
			others <- len(all)
		}()
	}
	body := []byte(`"` + strings.Repeat("x", 4<<10) + `"`)
	for i := range batches - 1 {
		events := newEvents(each, "A")
		for j := range events {
			events[j].Body = body
		}
		mustAppend(t, store, one(domain.Stream(fmt.Sprint("build/", i+1)), 0, events...))
	}
	for range 10 {
		if n := <-others; n != batches*each {
			t.Errorf("another subscriber saw %d events", n)
		}
	}
	if n := store.RingBytes(); n > ring {
		t.Errorf("the ring holds %d bytes, its bound is %d", n, ring)
	}
	close(free)
	all := <-late
	for i, e := range all {
		if e.Cursor.Position != int64(i+1) {
			t.Fatalf("the stuck one saw %v as event %d", e.Cursor, i+1)
		}
	}
	if len(all) != batches*each {
		t.Errorf("the stuck one saw %d events", len(all))
	}
}

func TestAnotherProcessHearsOfAnEventAtOnce(t *testing.T) {
	t.Parallel()
	s := setup(t)
	listener := s.open(t, eventstore.Config{PollInterval: time.Hour})
	run(t, listener)
	until(t, "the listener listens", func() bool { return s.sessions(t, "LISTEN%") == 1 })
	for i := range 20 {
		mustAppend(t, s.Store, one("build/1", int64(i), newEvent("A")))
		ctx, cancel := context.WithTimeoutCause(t.Context(), 30*time.Second, errors.New("not heard of"))
		if _, err := listener.Wait(ctx, domain.Cursor{LogEpoch: 1, Position: int64(i)}); err != nil {
			t.Errorf("event %d: %v", i+1, err)
		}
		cancel()
	}
}

// sessions counts the stores' sessions whose last statement was like that.
func (b *bundle) sessions(t *testing.T, like string) (n int) {
	t.Helper()
	err := b.owner.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
		AND application_name = 'pipeops' AND query LIKE $1`, like).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// end terminates the stores' sessions whose last statement was like that.
func (b *bundle) end(t *testing.T, like string) {
	t.Helper()
	_, err := b.owner.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
		AND application_name = 'pipeops' AND query LIKE $1`, like)
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheTailSurvivesTheEndOfItsListener(t *testing.T) {
	t.Parallel()
	s := setup(t)
	listener := s.open(t, eventstore.Config{PollInterval: 50 * time.Millisecond})
	run(t, listener)
	for i := range 10 {
		until(t, "the listener listens", func() bool { return s.sessions(t, "LISTEN%") == 1 })
		s.end(t, "LISTEN%")
		mustAppend(t, s.Store, one("build/1", int64(i), newEvent("A")))
		ctx, cancel := context.WithTimeoutCause(t.Context(), 30*time.Second, errors.New("not heard of"))
		if _, err := listener.Wait(ctx, domain.Cursor{LogEpoch: 1, Position: int64(i)}); err != nil {
			t.Errorf("event %d: %v", i+1, err)
		}
		cancel()
	}
}

func TestADatabaseThatGoesAwayIsOnlyWaitedFor(t *testing.T) {
	t.Parallel()
	s := setup(t)
	store := s.open(t, eventstore.Config{PollInterval: 50 * time.Millisecond, RingEvents: 1})
	run(t, store)
	fill(t, store, 5)
	seen := make(chan string)
	go func() {
		all, _ := take(t, store, domain.Cursor{}, eventstore.Filter{}, 15)
		seen <- positions(all)
	}()
	var name string
	if err := s.owner.QueryRow(t.Context(), "SELECT current_database()").Scan(&name); err != nil {
		t.Fatal(err)
	}
	admit := func(limit int) {
		t.Helper()
		if _, err := s.owner.Exec(t.Context(), fmt.Sprintf("ALTER DATABASE %s CONNECTION LIMIT %d", name, limit)); err != nil {
			t.Fatal(err)
		}
	}
	admit(0) // superusers, as the test is one, are still let in
	s.end(t, "%")
	appended := make(chan struct{})
	go func() { fill(t, store, 10); close(appended) }()
	until(t, "nobody is there", func() bool { return s.sessions(t, "%") == 0 })
	admit(-1)
	<-appended
	want := positions(collect(t, s.open(t, eventstore.Config{}).Read(t.Context(), eventstore.Query{})))
	if diff := cmp.Diff(want, <-seen); diff != "" {
		t.Errorf("want - got +\n%s", diff)
	}
}

// loseTail does what a restore of an old backup does, and then a statement, in one transaction.
func (b *bundle) loseTail(t *testing.T, after int64, then string) {
	t.Helper()
	_, err := b.owner.Exec(t.Context(), fmt.Sprintf(`ALTER TABLE pipeops.events DISABLE TRIGGER never_changes;
		DELETE FROM pipeops.events WHERE position > %d; ALTER TABLE pipeops.events ENABLE ALWAYS TRIGGER never_changes; %s`, after, then))
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhoFollowsARestoredLogIsTold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		then  string
		again bool // and the log grows on
		want  error
	}{
		"undeclared":             {"", false, &eventstore.CursorAheadError{}},
		"declared":               {"SELECT pipeops.raise_log_epoch()", false, &eventstore.LogForkedError{}},
		"declared, and grown on": {"SELECT pipeops.raise_log_epoch()", true, &eventstore.LogForkedError{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setup(t)
			run(t, s.Store)
			fill(t, s.Store, 10)
			_, at := take(t, s.Store, domain.Cursor{}, eventstore.Filter{}, 10)
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("a minute"))
			defer cancel()
			told := make(chan error, 2)
			go func() {
				for _, err := range s.Subscribe(ctx, at, eventstore.Filter{}) {
					told <- err
					return
				}
				told <- context.Cause(ctx)
			}()
			go func() {
				_, err := s.Wait(ctx, at)
				told <- err
			}()
			s.loseTail(t, 6, c.then)
			if c.again {
				writer := s.open(t, eventstore.Config{})
				mustAppend(t, writer, one("operation/restore", 0, newEvents(3, "A")...)) // still behind who follows
			}
			for range cap(told) {
				err := <-told
				var forked *eventstore.LogForkedError
				var ahead *eventstore.CursorAheadError
				if errors.As(c.want, &forked) != errors.As(err, &forked) || errors.As(c.want, &ahead) != errors.As(err, &ahead) {
					t.Errorf("got %v, want a %T", err, c.want)
				}
			}
			// Whoever is at a good place goes on.
			n := 2
			fill(t, s.Store, n)
			if c.again {
				n += 3
			}
			all, _ := take(t, s.Store, domain.Cursor{LogEpoch: 1, Position: 6}, eventstore.Filter{}, n)
			if len(all) != n || all[0].Cursor.Position != 7 {
				t.Errorf("after the restore %s", positions(all))
			}
		})
	}
}

func TestWaitWakesUpOrEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := setup(t)
	run(t, s.Store)
	woken := make(chan error, 1)
	go func() {
		_, err := s.Wait(t.Context(), domain.Cursor{})
		woken <- err
	}()
	fill(t, s.Store, 1)
	if err := <-woken; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := s.Wait(ctx, domain.Cursor{LogEpoch: 1, Position: 1}); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}
