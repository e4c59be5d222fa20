package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/claims"
	"github.com/pipeops/pipeops/handlers/ingest"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/projections"
)

// probed is a control plane's store and read models, asked whether they are ready.
type probed struct {
	t      *testing.T
	core   *core
	health *health
	owner  *pgx.Conn
}

// newProbed calls a read model late as soon as it is behind, so that no test waits for that.
func newProbed(t *testing.T) *probed {
	t.Helper()
	url, log := testenv.Postgres(t), slog.New(slog.DiscardHandler)
	ctx, stop := context.WithCancelCause(context.Background())
	core, err := openCore(ctx, config.Config{Home: t.TempDir(), DatabaseURL: url, MigrateURL: url}, log)
	if err != nil {
		t.Fatal(err)
	}
	projector, err := projections.New(projections.Config{
		Store: core.store, Opener: core.subjects.OpenField, Leader: core.leaders, Log: log, RetryStopped: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	owner, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	b := bus.NewInProcess(bus.Config{Log: log})
	go func() { done <- core.store.Run(ctx) }()
	go func() { done <- projector.Run(ctx) }()
	t.Cleanup(func() {
		_ = owner.Close(ctx) // first: it may hold up a projection
		stop(nil)
		for range cap(done) {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		b.Close()
		core.store.Close()
	})
	return &probed{t, core, &health{
		core: core, bus: b, projector: projector, late: time.Nanosecond, ingest: &ingest.Ingest{}, claims: &claims.Claims{},
	}, owner}
}

// until asks until the answer is as wanted.
func (p *probed) until(what string, code int, says ...string) {
	p.t.Helper()
	eventually(p.t, time.Minute, what, func() error {
		w := httptest.NewRecorder()
		p.health.ready(w, httptest.NewRequestWithContext(p.t.Context(), http.MethodGet, "/readyz", nil))
		var checks map[string]string
		if err := json.Unmarshal(w.Body.Bytes(), &checks); err != nil {
			return err
		}
		for _, want := range says {
			if !strings.Contains(checks["projections"], want) {
				return errors.New(w.Body.String())
			}
		}
		if w.Code != code || checks["database"] != "ok" || checks["bus"] != "ok" {
			return errors.New(http.StatusText(w.Code) + ": " + w.Body.String())
		}
		return nil
	})
}

// append records events of a build: n that read models leave out, or one that none of this version can read.
func (p *probed) append(n int, schemaVersion int) (last int64) {
	p.t.Helper()
	return p.appendOf("BuildStarted", n, schemaVersion).Position
}

func (p *probed) appendOf(eventType string, n int, schemaVersion int) (head domain.Cursor) {
	p.t.Helper()
	var events []eventstore.NewEvent
	for range n {
		events = append(events, eventstore.NewEvent{
			ID: uuid.NewString(), Type: eventType, SchemaVersion: schemaVersion, Body: []byte(`{}`), ProjectID: "prj_1", OccurredAt: now(),
		})
	}
	_, err := p.core.store.Append(p.t.Context(), eventstore.Append{Writes: []eventstore.Write{
		{Stream: domain.BuildStream("bld_1"), Expected: eventstore.AnyVersion, Events: events},
	}})
	if err != nil {
		p.t.Fatal(err)
	}
	head, err = p.core.store.Head(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return head
}

func TestAProjectionThatIsHeldUpIsNotReadyUntilItHasCaughtUp(t *testing.T) {
	t.Parallel()
	p := newProbed(t)
	p.until("at the head", http.StatusOK, "ok")
	tx, err := p.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT 1 FROM projections.checkpoints WHERE name LIKE 'deployments_v%' FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	p.append(1, 1)
	p.until("one is held up", http.StatusServiceUnavailable, "deployments: 1 positions behind for ")
	p.append(2, 1)
	p.until("and falls back", http.StatusServiceUnavailable, "deployments: 3 positions behind for ")
	p.health.late = time.Hour
	p.until("a burst is no reason", http.StatusOK, "ok")
	p.health.late = time.Nanosecond
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.until("it goes on", http.StatusOK, "ok")
}

func TestAProjectionThatHasStoppedIsNamedAndLeavesTheOthersReady(t *testing.T) {
	t.Parallel()
	p := newProbed(t)
	p.until("at the head", http.StatusOK, "ok")
	poisoned := p.append(1, 99)
	p.append(3, 1)
	p.until("two have stopped", http.StatusOK, "builds: stopped at position "+strconv.FormatInt(poisoned, 10), "timeline: stopped at position "+strconv.FormatInt(poisoned, 10))
}

func TestALagOfAFollowerIsTheAgeOfWhatItHasStillToSeeTo(t *testing.T) {
	t.Parallel()
	p := newProbed(t)
	const none = time.Duration(0)
	lags := func(policies, relay time.Duration) { // at least, or none
		t.Helper()
		w := httptest.NewRecorder()
		p.health.metrics().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
		for follower, want := range map[string]time.Duration{"policies": policies, "relay": relay} {
			_, after, found := strings.Cut(w.Body.String(), `pipeops_follower_lag_seconds{follower="`+follower+`"} `)
			text, _, _ := strings.Cut(after, "\n")
			if lag, err := strconv.ParseFloat(text, 64); !found || err != nil || lag < want.Seconds() || want == none && lag > 0 {
				t.Errorf("%s lags %q s, want %s or more, but none for none", follower, text, want)
			}
		}
	}
	lags(none, none)
	p.appendOf("BuildStarted", 1, 1)
	began := time.Now()
	for time.Since(began) < time.Second { // it is the oldest that counts
		p.appendOf("BuildStarted", 1, 1)
	}
	lags(none, time.Second)
	p.appendOf("PushReceived", 1, 99)
	pushed := time.Now()
	head := p.appendOf("BuildSucceeded", 1, 99)
	lags(time.Since(pushed), time.Since(began))
	for name := range followers {
		if _, err := p.core.store.Append(t.Context(), eventstore.Append{Move: &eventstore.CursorMove{Name: name, To: head}}); err != nil {
			t.Fatal(err)
		}
	}
	lags(none, none)
}
