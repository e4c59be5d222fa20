package eventstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
)

func TestAcceptance22_OneStuckSubscriberHoldsUpNobodyAndKeepsNothing(t *testing.T) {
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
	storetest.MustAppend(t, store, storetest.One("build/0", 0, storetest.NewEvents(each, "A")...))
	<-stuck
	others := make(chan int)
	for range 10 {
		go func() {
			all, _ := storetest.Take(t, store, domain.Cursor{}, eventstore.Filter{}, batches*each)
			others <- len(all)
		}()
	}
	body := []byte(`"` + strings.Repeat("x", 4<<10) + `"`)
	for i := range batches - 1 {
		events := storetest.NewEvents(each, "A")
		for j := range events {
			events[j].Body = body
		}
		storetest.MustAppend(t, store, storetest.One(domain.Stream(fmt.Sprint("build/", i+1)), 0, events...))
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

func TestAnEventWakesOnlyThoseThatItIsFor(t *testing.T) {
	t.Parallel()
	s := setup(t)
	store := s.open(t, eventstore.Config{PollInterval: time.Hour}) // no tick tells the idle ones
	run(t, store)
	of := func(project domain.ProjectID) []eventstore.NewEvent {
		events := storetest.NewEvents(1, "A")
		events[0].ProjectID = project
		return events
	}
	storetest.MustAppend(t, store, storetest.One("build/1", 0, of("prj_other")...))
	head, err := store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const idle = 50
	type got struct {
		filter int
		batch  eventstore.Batch
	}
	filters := []eventstore.Filter{
		{Projects: []domain.ProjectID{"prj_mine"}}, {Projects: []domain.ProjectID{"prj_x", "prj_mine"}}, {Types: []string{"B"}}, {Projects: []domain.ProjectID{"prj_x"}},
	}
	batches := make(chan got)
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("a minute"))
	defer cancel()
	var group sync.WaitGroup
	for i, filter := range filters {
		group.Go(func() {
			for batch, err := range store.Subscribe(ctx, head, filter) {
				if err != nil {
					t.Error(err)
				}
				batches <- got{i, batch}
			}
		})
	}
	until(t, "all wait", func() bool { return store.Waiting() == len(filters) })
	for i := range idle {
		storetest.MustAppend(t, store, storetest.One("build/1", int64(i+1), of("prj_other")...))
		if _, err := store.Wait(ctx, domain.Cursor{LogEpoch: 1, Position: int64(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := store.Waiting(); n != len(filters) {
		t.Errorf("%d of %d still wait after events that are for none of them", n, len(filters))
	}
	storetest.MustAppend(t, store, storetest.One("build/2", 0, of("prj_mine")...))
	for range 2 {
		var g got
		select {
		case g = <-batches:
		case <-ctx.Done():
			t.Fatal("nobody was woken")
		}
		if g.filter > 1 || len(g.batch.Events) != 1 || g.batch.Cursor.Position != idle+2 || g.batch.Events[0].ProjectID != "prj_mine" {
			t.Errorf("subscriber %d got %+v", g.filter, g.batch)
		}
	}
	until(t, "all wait again", func() bool { return store.Waiting() == len(filters) })
	cancel()
	group.Wait()
	if n := store.Waiting(); n != 0 {
		t.Errorf("%d wait that have gone", n)
	}
}

func TestAnotherProcessHearsOfAnEventAtOnce(t *testing.T) {
	t.Parallel()
	s := setup(t)
	listener := s.open(t, eventstore.Config{PollInterval: time.Hour})
	run(t, listener)
	until(t, "the listener listens", func() bool { return s.sessions(t, "LISTEN%") == 1 })
	for i := range 20 {
		storetest.MustAppend(t, s.Store, storetest.One("build/1", int64(i), storetest.NewEvent("A")))
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

func TestAcceptance14_TheTailSurvivesTheEndOfItsListener(t *testing.T) {
	t.Parallel()
	s := setup(t)
	listener := s.open(t, eventstore.Config{PollInterval: 50 * time.Millisecond})
	run(t, listener)
	for i := range 10 {
		until(t, "the listener listens", func() bool { return s.sessions(t, "LISTEN%") == 1 })
		s.end(t, "LISTEN%")
		storetest.MustAppend(t, s.Store, storetest.One("build/1", int64(i), storetest.NewEvent("A")))
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
	storetest.Fill(t, store, 5)
	seen := make(chan string)
	go func() {
		all, _ := storetest.Take(t, store, domain.Cursor{}, eventstore.Filter{}, 15)
		seen <- storetest.Positions(all)
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
	go func() { storetest.Fill(t, store, 10); close(appended) }()
	until(t, "nobody is there", func() bool { return s.sessions(t, "%") == 0 })
	admit(-1)
	<-appended
	want := storetest.Positions(storetest.Collect(t, s.open(t, eventstore.Config{}).Read(t.Context(), eventstore.Query{})))
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

func TestAcceptance11_WhoFollowsALogThatLostItsTailIsTold(t *testing.T) {
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
			storetest.Fill(t, s.Store, 10)
			_, at := storetest.Take(t, s.Store, domain.Cursor{}, eventstore.Filter{}, 10)
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
				storetest.MustAppend(t, writer, storetest.One("operation/restore", 0, storetest.NewEvents(3, "A")...)) // still behind who follows
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
			storetest.Fill(t, s.Store, n)
			if c.again {
				n += 3
			}
			all, _ := storetest.Take(t, s.Store, domain.Cursor{LogEpoch: 1, Position: 6}, eventstore.Filter{}, n)
			if len(all) != n || all[0].Cursor.Position != 7 {
				t.Errorf("after the restore %s", storetest.Positions(all))
			}
		})
	}
}

func TestASubscriberThatMeetsAnOutageGoesOnThoughNothingNewComes(t *testing.T) {
	t.Parallel()
	s := setup(t)
	storetest.Fill(t, s.Store, 20)
	proxy, address := newLossy(t, s.app)
	store := (&bundle{app: address}).open(t, eventstore.Config{PollInterval: 20 * time.Millisecond})
	run(t, store)
	storetest.Take(t, store, domain.Cursor{}, eventstore.Filter{}, 20)
	proxy.down.Store(true)
	proxy.cut()
	done := make(chan int, 1)
	go func() {
		seen, _ := storetest.Take(t, store, domain.Cursor{}, eventstore.Filter{}, 20)
		done <- len(seen)
	}()
	turned := proxy.turned.Load()
	until(t, "connections are turned away", func() bool { return proxy.turned.Load() > turned+10 })
	proxy.down.Store(false)
	if n := <-done; n != 20 {
		t.Errorf("%d events, want 20", n)
	}
}

// As when somebody on the server listens and takes no notifications, until there is no room for more.
func TestAppendsGoOnWhenNoHintIsTaken(t *testing.T) {
	t.Parallel()
	s := setup(t)
	_, err := s.owner.Exec(t.Context(), `CREATE SEQUENCE public.hints; -- what it has counted a rollback doesn't take back
		GRANT USAGE ON SEQUENCE public.hints TO PUBLIC;
		CREATE FUNCTION public.no_room() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF current_query() LIKE '%pg_notify%' THEN
				PERFORM nextval('public.hints');
				RAISE EXCEPTION 'too many notifications in the NOTIFY queue' USING ERRCODE = 'program_limit_exceeded';
			END IF;
			RETURN NULL;
		END $$;
		CREATE TRIGGER no_room AFTER INSERT ON pipeops.events FOR EACH STATEMENT EXECUTE FUNCTION public.no_room();
		ALTER TABLE pipeops.events ENABLE ALWAYS TRIGGER no_room;`)
	if err != nil {
		t.Fatal(err)
	}
	const callers, each = 3, 100 // so that some lead, and some are alone in a batch
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for range each {
				if _, err := s.Append(t.Context(), storetest.One("build/1", eventstore.AnyVersion, storetest.NewEvent("A"))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if n := storetest.Count(t, s.Store); n != callers*each {
		t.Errorf("%d events, want %d", n, callers*each)
	}
	var hinted bool
	if err := s.owner.QueryRow(t.Context(), "SELECT is_called FROM public.hints").Scan(&hinted); err != nil || !hinted {
		t.Errorf("no append carried a hint: %v", err)
	}
}
