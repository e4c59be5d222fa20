package eventstore_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
)

// Obstacles stand in the way of whoever appends, where the test holds the lock of their number. They are the test's
// own: the first one at the end of the INSERT, the second at the commit, as the last thing before it.
const obstacles = `
	CREATE FUNCTION public.obstacle() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::bigint);
		RETURN NULL;
	END $$;
	CREATE TRIGGER after_insert AFTER INSERT ON pipeops.events FOR EACH STATEMENT EXECUTE FUNCTION public.obstacle(1);
	CREATE CONSTRAINT TRIGGER before_commit AFTER INSERT ON pipeops.events DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION public.obstacle(2);
	ALTER TABLE pipeops.events ENABLE ALWAYS TRIGGER after_insert;
	ALTER TABLE pipeops.events ENABLE ALWAYS TRIGGER before_commit;`

// steps of an append, and what stops it there.
var steps = []struct{ name, obstacle string }{
	{"has the lock, has written nothing", "LOCK TABLE pipeops.events IN SHARE MODE"},
	{"has inserted", "SELECT pg_advisory_xact_lock(1)"},
	{"is about to commit", "SELECT pg_advisory_xact_lock(2)"},
	{"has committed, and its answer is on the way", ""},
}

// killing is a store whose appends are stopped at a step and killed there, with another process waiting behind.
type killing struct {
	*bundle

	t       *testing.T
	proxy   *lossy
	victim  *eventstore.Store // goes through the proxy
	appends int
	want    []string // ids that must be there in the end
}

func newKilling(t *testing.T) *killing {
	t.Helper()
	k := &killing{bundle: setup(t), t: t}
	if _, err := k.owner.Exec(t.Context(), obstacles); err != nil {
		t.Fatal(err)
	}
	var address string
	k.proxy, address = newLossy(t, k.app)
	k.victim = (&bundle{app: address}).open(t, eventstore.Config{PollInterval: time.Hour})
	return k
}

// stopped waits until a session of the application's is held up by the given one, and gives it.
func (k *killing) stopped(by uint32) (pid uint32) {
	k.t.Helper()
	until(k.t, "an append is stopped", func() bool {
		err := k.owner.QueryRow(k.t.Context(), `SELECT coalesce(min(pid), 0) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'pipeops' AND $1 = ANY (pg_blocking_pids(pid))`, by).Scan(&pid)
		if err != nil {
			k.t.Fatal(err)
		}
		return pid != 0
	})
	return pid
}

// terminate ends a session and waits until it has gone.
func (k *killing) terminate(pid uint32) {
	k.t.Helper()
	if _, err := k.owner.Exec(k.t.Context(), "SELECT pg_terminate_backend($1, 60000)", pid); err != nil {
		k.t.Error(err)
	}
}

// append starts one of n events; its ids must be in the log in the end, once. In turn it takes any version, or is the
// first of its stream, which needs no look-up.
func (k *killing) append(s *eventstore.Store, stream domain.Stream, n int) (done chan error) {
	events, expected := storetest.NewEvents(n, "A"), int64(eventstore.AnyVersion)
	if k.appends++; k.appends/2%2 == 0 {
		stream, expected = domain.Stream(fmt.Sprintf("%s-%d", stream, k.appends)), 0
		s.Trust()
	}
	for _, e := range events {
		k.want = append(k.want, e.ID)
	}
	done = make(chan error, 1)
	go func() {
		_, err := s.Append(k.t.Context(), storetest.One(stream, expected, events...))
		done <- err
	}()
	return done
}

// atStep kills an append of n events that an obstacle has stopped, and lets a neighbour wait behind it.
func (k *killing) atStep(obstacle string, n int, kill func(pid uint32)) {
	k.t.Helper()
	tx, err := k.owner.BeginTx(k.t.Context(), pgx.TxOptions{})
	if err == nil {
		_, err = tx.Exec(k.t.Context(), obstacle)
	}
	if err != nil {
		k.t.Fatal(err)
	}
	done := k.append(k.victim, "build/victim", n)
	holder := k.stopped(tx.Conn().PgConn().PID())
	behind := k.append(k.Store, "build/neighbour", 1)
	k.stopped(holder)
	kill(holder)
	if err := tx.Rollback(k.t.Context()); err != nil {
		k.t.Fatal(err)
	}
	k.finished(done, behind)
}

// atAnswer kills an append of n events that is committed, before its client hears of it.
func (k *killing) atAnswer(n int, kill func(pid uint32)) {
	k.t.Helper()
	k.proxy.before = func() {
		var pid uint32
		err := k.owner.QueryRow(k.t.Context(), `SELECT pid FROM pg_stat_activity WHERE datname = current_database()
			AND application_name = 'pipeops' AND query LIKE '%pipeops.append%' ORDER BY state_change DESC LIMIT 1`).Scan(&pid)
		if err != nil {
			k.t.Error(err)
		}
		kill(pid)
	}
	k.proxy.lose.Store(true)
	k.finished(k.append(k.victim, "build/victim", n))
	if k.proxy.lose.Load() {
		k.t.Error("no answer was withheld: the test did not test")
	}
	k.finished(k.append(k.Store, "build/neighbour", 1))
}

func (k *killing) finished(appends ...chan error) {
	k.t.Helper()
	for _, done := range appends {
		if err := <-done; err != nil {
			k.t.Fatal(err)
		}
	}
	if n := storetest.Count(k.t, k.Store); n != int64(len(k.want)) {
		k.t.Fatalf("the log has %d events, want %d", n, len(k.want))
	}
}

// 104 kills: at each step, of the session and of the connection, of one event and of several.
func TestAcceptance07_WhoHoldsTheLockIsKilledAtEachStepAndNothingIsLostOrDoubled(t *testing.T) {
	t.Parallel()
	k := newKilling(t)
	kills := 0
	for round := range 13 {
		for i, step := range steps {
			for j, kill := range []func(uint32){k.terminate, func(uint32) { k.proxy.cut() }} {
				n := 1 + 2*((round+i+j)%2)
				if step.obstacle == "" {
					k.atAnswer(n, kill)
				} else {
					k.atStep(step.obstacle, n, kill)
				}
				kills++
				if t.Failed() {
					t.Fatalf("kill %d, of %d events, at a session that %s", kills, n, step.name)
				}
			}
		}
	}
	seen := storetest.Collect(t, k.Read(t.Context(), eventstore.Query{}))
	dense(t, seen)
	var ids []string
	for _, e := range seen {
		ids = append(ids, e.ID)
	}
	slices.Sort(ids)
	slices.Sort(k.want)
	if diff := cmp.Diff(k.want, ids); diff != "" || kills < 100 {
		t.Errorf("%d kills; appended - in the log +\n%s", kills, diff)
	}
}
