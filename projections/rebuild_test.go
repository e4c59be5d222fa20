package projections_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/projections"
)

func TestAcceptance17_ARebuildUnderLoadIsSeenByNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("app")
	w.push(project, "refs/heads/main")
	w.succeed(w.builds[0])
	w.push(project, "refs/heads/main")
	build := w.builds[1]
	w.steps(build, 1000)
	p := w.projector(w.store)
	running(t, p.Run)
	q := p.Queries()
	ask(t, q, projections.At{AtLeast: w.head()})
	var appended, answered atomic.Int64
	appended.Store(w.head().Position)
	ctx, end := context.WithCancelCause(t.Context())
	var group sync.WaitGroup
	group.Go(func() { // 200 events a second
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				w.steps(build, 5)
				appended.Add(5)
			}
		}
	})
	for range 2 {
		group.Go(func() {
			for steps := 0; context.Cause(ctx) == nil; answered.Add(1) {
				b, err := q.Build(t.Context(), build, projections.At{})
				if err != nil || b == nil || b.Steps < steps {
					t.Errorf("after %d steps: got %+v, %v", steps, b, err)
					return
				}
				steps = b.Steps
				pause(ctx, 2*time.Millisecond)
				all, err := q.Builds(t.Context(), project, "", projections.Page{}, projections.At{AsOf: &domain.Cursor{LogEpoch: 1, Position: 900}})
				if err != nil || len(all) != 2 {
					t.Errorf("as of then: got %d builds, %v", len(all), err)
					return
				}
			}
		})
	}
	patience, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("too little has happened in two minutes"))
	defer cancel()
	begun, before := time.Now(), appended.Load()
	for range 2 {
		for _, name := range []string{"builds", "timeline"} {
			// The rebuild waits, with its first rows written, for a second's load.
			events, answers := appended.Load()+200, answered.Load()+20
			waits := sync.OnceFunc(func() {
				for (appended.Load() < events || answered.Load() < answers) && context.Cause(patience) == nil {
					pause(patience, 5*time.Millisecond)
				}
			})
			rebuilt, err := p.Rebuild(t.Context(), name, func(projections.Replayed) { waits() })
			must(t, err)
			if rebuilt.Different != 0 || rebuilt.Checksum != rebuilt.InUse || rebuilt.Rows == 0 || !rebuilt.Replaced {
				t.Errorf("%s: %+v", name, rebuilt)
			}
			if short, unanswered := events-appended.Load(), answers-answered.Load(); short > 0 || unanswered > 0 {
				t.Errorf("%s was rebuilt with hardly any load: 200 events less %d, 20 answers less %d", name, max(short, 0), max(unanswered, 0))
			}
		}
	}
	t.Logf("%d events and %d answers meanwhile, in %v", appended.Load()-before, answered.Load(), time.Since(begun))
	end(nil)
	group.Wait()
	if head := w.head().Position; head != appended.Load() {
		t.Errorf("the log is at %d, want %d: the rebuild itself has led to something", head, appended.Load())
	}
	w.same(t, p, "builds", "timeline")
}

func TestVerifyFindsWhatSomebodyChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("app")
	w.push(project, "refs/heads/main")
	w.succeed(w.builds[0])
	p := w.projector(w.store)
	running(t, p.Run)
	w.same(t, p, p.Names()...)
	for _, statement := range []string{
		`UPDATE projections.builds_v2 SET row = replace(row::text, 'succeeded', 'failed')::json`,
		`DELETE FROM projections.builds_v2_history WHERE from_position = (SELECT min(from_position) FROM projections.builds_v2_history)`,
	} {
		_, err := w.owner.Exec(t.Context(), statement)
		must(t, err)
	}
	got, err := p.Verify(t.Context(), "builds", nil)
	must(t, err)
	if got.Different != 3 || got.Checksum == got.InUse || got.Replaced { // the old and the new form of one row, and one that is gone
		t.Errorf("got %+v, want 3 rows that differ", got)
	}
	seen := int64(0)
	_, err = p.Rebuild(t.Context(), "builds", func(r projections.Replayed) { seen = r.Position })
	must(t, err)
	if seen != w.head().Position {
		t.Errorf("progress was told up to %d, want %d", seen, w.head().Position)
	}
	w.same(t, p, "builds")
}

func TestARebuildWhoseCommitNobodyWaitedForSaysThatItIsInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("app")
	w.push(project, "refs/heads/main")
	w.succeed(w.builds[0])
	p := w.projector(w.store)
	running(t, p.Run)
	w.same(t, p, "builds")
	const gate = 4711
	_, err := w.owner.Exec(t.Context(), fmt.Sprintf(`
		CREATE FUNCTION projections.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			PERFORM pg_advisory_xact_lock_shared(%d);
			RETURN NULL;
		EXCEPTION WHEN query_canceled THEN -- too late: it commits
			RETURN NULL;
		END $$;
		CREATE CONSTRAINT TRIGGER hold AFTER UPDATE OF generation ON projections.checkpoints DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW WHEN (OLD.generation <> NEW.generation) EXECUTE FUNCTION projections.hold()`, gate))
	must(t, err)
	held, err := w.owner.Acquire(t.Context())
	must(t, err)
	defer held.Release()
	_, err = held.Exec(t.Context(), "SELECT pg_advisory_lock($1)", gate)
	must(t, err)
	ctx, leave := context.WithCancelCause(t.Context())
	type end struct {
		got projections.Rebuilt
		err error
	}
	ended := make(chan end, 1)
	go func() {
		got, err := p.Rebuild(ctx, "builds", nil)
		ended <- end{got, err}
	}()
	committing := false
	for deadline := time.Now().Add(30 * time.Second); !committing && time.Now().Before(deadline); {
		must(t, w.owner.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks
			WHERE locktype = 'advisory' AND objid = $1 AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`, gate).Scan(&committing))
	}
	if !committing {
		t.Fatal("the rebuild doesn't come to its commit")
	}
	leave(errors.New("gone"))
	e := <-ended
	_, err = held.Exec(t.Context(), "SELECT pg_advisory_unlock($1)", gate)
	must(t, err)
	if e.err == nil || !e.got.Replaced || e.got.Checksum == "" {
		t.Errorf("got %+v, %v, want an error, and that it was replaced", e.got, e.err)
	}
	var generation int
	must(t, w.owner.QueryRow(t.Context(), "SELECT generation FROM projections.checkpoints WHERE name = 'builds_v2'").Scan(&generation))
	if generation != 1 {
		t.Errorf("the read model was replaced %d times", generation)
	}
	w.same(t, p, "builds")
}

func TestTwoVersionsOfAProjectionLiveSideBySideAndTheOldOneIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("app")
	config := w.config(w.store)
	config.Unused = 600 * time.Millisecond
	old, err := projections.New(config)
	must(t, err)
	stop := running(t, old.Run)
	for range 5 {
		w.push(project, "refs/heads/main")
		w.succeed(w.builds[len(w.builds)-1])
	}
	w.steps(w.builds[0], 3000)
	ask(t, old.Queries(), projections.At{AtLeast: w.head()})
	store := w.open()
	config = w.config(store)
	config.Unused = 600 * time.Millisecond
	fresh, err := projections.NewVersion(config, "builds", 3)
	must(t, err)
	if got := unready(t, fresh); !cmp.Equal(got, []string{"builds"}) {
		t.Errorf("before it was built: not ready are %q, want builds", got)
	}
	running(t, fresh.Run)
	for len(unready(t, fresh)) > 0 { // pushes keep coming in
		w.push(project, "refs/heads/main")
	}
	at := projections.At{AtLeast: w.head()}
	if diff := cmp.Diff(ask(t, old.Queries(), at), ask(t, fresh.Queries(), at)); diff != "" {
		t.Errorf("the versions answer differently (-old +new):\n%s", diff)
	}
	exists := func(table string) (is bool) {
		must(t, w.owner.QueryRow(t.Context(), "SELECT to_regclass('projections.'||$1) IS NOT NULL", table).Scan(&is))
		return is
	}
	if !exists("builds_v2") || !exists("builds_v3_history") {
		t.Error("a version has no tables while it is used")
	}
	stop()
	until(t, func() bool { return !exists("builds_v2") && !exists("builds_v2_history") })
	if !exists("timeline_v1") {
		t.Error("tables that are used were dropped too")
	}
	w.push(project, "refs/heads/main")
	ask(t, fresh.Queries(), projections.At{AtLeast: w.head()})
	w.same(t, fresh, fresh.Names()...)
	running(t, old.Run) // whoever goes back builds it anew
	ask(t, old.Queries(), projections.At{AtLeast: w.head()})
	w.same(t, old, "builds")
}
