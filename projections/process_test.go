package projections_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/projections"
)

// childOf names the variable that makes the test binary a process of its own that runs a projector on that database.
const childOf = "PIPEOPS_TEST_PROJECTOR_OF"

func childMain(url string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	store, err := eventstore.Open(ctx, eventstore.Config{URL: url, Log: log})
	if err == nil {
		var p *projections.Projector
		p, err = projections.New(projections.Config{
			Store: store, Leader: records.NewLeaders(store.Pool(), log), Log: log,
			Opener: func(context.Context, string, string, string, string) (string, bool, error) { return "", false, nil },
		})
		if err == nil {
			var group errgroup.Group
			group.Go(func() error { return store.Run(ctx) })
			group.Go(func() error { return p.Run(ctx) })
			err = group.Wait()
		}
	}
	if err != nil {
		log.Error("projector", "err", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// process is a projector in a process of its own.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
}

func (w *world) process(t *testing.T) *process {
	t.Helper()
	p := &process{t, exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], "-test.run=^$")}
	p.cmd.Env = append(os.Environ(), childOf+"="+w.app)
	p.cmd.Stderr = t.Output()
	must(t, p.cmd.Start())
	t.Cleanup(p.kill)
	return p
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	must(p.t, p.cmd.Process.Signal(s))
}

// kill ends it at once, wherever it is.
func (p *process) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// leads waits until a process leads all projections.
func (w *world) leads(t *testing.T) {
	t.Helper()
	until(t, func() bool {
		var n int
		must(t, w.owner.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
			WHERE l.locktype = 'advisory' AND l.granted AND a.datname = current_database() AND a.application_name LIKE 'pipeops leader of projection%'`).Scan(&n))
		return n == 5
	})
}

func TestTheNextProcessLeadsSoonWhenALeaderDies(t *testing.T) {
	t.Parallel()
	for _, death := range []struct {
		name   string
		signal os.Signal
		within time.Duration
	}{
		{"killed", syscall.SIGKILL, 3 * time.Second}, // well under a second, where the machine isn't busy
		{"frozen", syscall.SIGSTOP, 30 * time.Second},
	} {
		t.Run(death.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			project := w.project("app")
			leader := w.process(t)
			w.leads(t)
			p := w.projector(w.store)
			running(t, p.Run)
			w.push(project, "refs/heads/main")
			ask(t, p.Queries(), projections.At{AtLeast: w.head()}) // from what the other process does
			leader.signal(death.signal)
			w.push(project, "refs/heads/main")
			died := time.Now()
			head := w.head()
			until(t, func() bool { return statusOf(t, p, "timeline").Cursor == head })
			took := time.Since(died)
			t.Logf("a leader that was %s is succeeded after %s", death.name, took)
			if took > death.within {
				t.Errorf("it took %s", took)
			}
			if death.signal == syscall.SIGSTOP {
				leader.signal(syscall.SIGCONT) // it wakes up, doesn't know, and does no harm
			}
			for range 5 {
				w.push(project, "refs/heads/main")
			}
			w.same(t, p, projections.OfBuilds, projections.OfTimeline)
		})
	}
}

// same wants that read models are what a replay makes of the log.
func (w *world) same(t *testing.T, p *projections.Projector, names ...string) {
	t.Helper()
	ask(t, p.Queries(), projections.At{AtLeast: w.head()})
	for _, name := range names {
		got, err := p.Verify(t.Context(), name, nil)
		must(t, err)
		if got.Different != 0 || got.InUse != got.Checksum || got.Cursor != w.head() {
			t.Errorf("%s: %d rows differ from a replay up to %s: %+v", name, got.Different, w.head(), got)
		}
	}
}

func TestAcceptance15_AProjectionThatIsKilledInTheMiddleEqualsAReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("app")
	w.push(project, "refs/heads/main")
	const kills = 50
	for n := 0; n < kills; {
		child := w.process(t)
		for !w.inTheMiddle(t) {
			w.steps(w.builds[len(w.builds)-1], 40)
		}
		child.kill()
		if n++; n%10 == 0 {
			w.push(project, "refs/heads/main")
		}
	}
	p := w.projector(w.store)
	running(t, p.Run)
	w.same(t, p, p.Names()...)
}

// inTheMiddle waits a moment for a projection to be within a transaction that has written something.
func (w *world) inTheMiddle(t *testing.T) (is bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Millisecond)
	for !is && time.Now().Before(deadline) {
		must(t, w.owner.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
			AND backend_xid IS NOT NULL AND (query LIKE '%projections.checkpoints SET%' OR query LIKE '%"projections".%'))`).Scan(&is))
	}
	return is
}

// steps lets a build do so many steps, as they come from a worker.
func (w *world) steps(build domain.BuildID, n int) {
	w.t.Helper()
	events := make([]eventstore.NewEvent, n)
	for i := range events {
		w.now = w.now.Add(time.Millisecond)
		events[i] = eventstore.NewEvent{
			ID: uuid.NewString(), Type: "LayerBuilt", SchemaVersion: 1, ProjectID: w.projects[0], OccurredAt: w.now,
			Body: fmt.Appendf(nil, `{"digest":"sha256:%d","name":"[1/2] RUN make","durationMs":1200}`, i),
		}
	}
	_, err := w.store.Append(w.t.Context(), eventstore.Append{Writes: []eventstore.Write{
		{Stream: domain.BuildStream(build), Expected: eventstore.AnyVersion, Events: events},
	}})
	must(w.t, err)
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
