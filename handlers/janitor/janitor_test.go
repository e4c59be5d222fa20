package janitor_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/janitor"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const day = 24 * time.Hour

// world is the output of builds in a database of its own.
type world struct {
	t     *testing.T
	owner *pgxpool.Pool
	app   *pgxpool.Pool
	logs  *records.LogChunks
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url := testenv.Postgres(t)
	app, err := migrations.Up(t.Context(), url, slog.New(slog.DiscardHandler))
	w := &world{t: t}
	w.must(err)
	w.owner, err = pgxpool.New(t.Context(), url)
	w.must(err)
	t.Cleanup(w.owner.Close)
	w.app, err = pgxpool.New(t.Context(), app)
	w.must(err)
	t.Cleanup(w.app.Close)
	w.logs = records.NewLogChunks(w.app)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) janitor(keep time.Duration) *janitor.Janitor {
	w.t.Helper()
	j, err := janitor.New(janitor.Config{
		Logs: w.logs, Leader: records.NewLeaders(w.app, slog.New(slog.DiscardHandler)), Log: slog.New(slog.DiscardHandler), KeepLogs: keep,
	})
	w.must(err)
	return j
}

// printed keeps n chunks of a build's output that came so long ago.
func (w *world) printed(attempt domain.AttemptID, n int, ago time.Duration) {
	w.t.Helper()
	for i := range n {
		w.must(w.logs.Append(w.t.Context(), attempt, "build", int64(i), []byte("x")))
	}
	w.must(w.logs.Append(w.t.Context(), attempt, "build", int64(n), nil)) // it ends there
	_, err := w.owner.Exec(w.t.Context(), `UPDATE pipeops.build_log_chunks SET received_at = clock_timestamp() - $2::interval WHERE attempt = $1`, attempt, ago)
	w.must(err)
}

// left says how many bytes there are of a build's output.
func (w *world) left(attempt domain.AttemptID) (n int) {
	w.t.Helper()
	for chunk, err := range w.logs.Read(w.t.Context(), attempt, "build", 0) {
		w.must(err)
		n += len(chunk.Bytes)
	}
	return n
}

func TestOutputGoesOnceItIsOlderThanItIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const old, young = domain.AttemptID("bld_old.1"), domain.AttemptID("bld_young.1")
	w.printed(old, 2500, 91*day)
	w.printed(young, 3, 89*day)
	w.must(w.janitor(0).RunOnce(t.Context()))
	if got := w.left(old); got != 2500 {
		t.Errorf("kept for ever: %d bytes are left", got)
	}
	w.must(w.janitor(90 * day).RunOnce(t.Context()))
	if got := w.left(old); got != 0 {
		t.Errorf("of the old one %d bytes are left", got)
	}
	if _, ended, err := w.logs.End(t.Context(), old, "build"); ended || err != nil {
		t.Errorf("the end of the old one is still there (%v)", err)
	}
	if got := w.left(young); got != 3 {
		t.Errorf("of the young one %d bytes are left", got)
	}
}

func TestOneJanitorAtATimeBeginsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const old = domain.AttemptID("bld_old.1")
	w.printed(old, 3, 91*day)
	ctx, stop := context.WithCancelCause(t.Context())
	done := make(chan error, 2)
	for range cap(done) {
		go func() { done <- w.janitor(90 * day).Run(ctx) }()
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for w.left(old) > 0 {
		select {
		case <-t.Context().Done():
			t.Fatal("nothing is deleted")
		case <-tick.C:
		}
	}
	stop(nil)
	for range cap(done) {
		w.must(<-done)
	}
}

func TestAllThatIsMissingIsNamedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := janitor.New(janitor.Config{KeepLogs: -1})
	for _, want := range []string{"Logs", "Leader", "Log ", "negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q isn't named in %v", want, err)
		}
	}
}
