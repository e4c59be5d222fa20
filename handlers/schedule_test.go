package handlers_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/policies"
	"github.com/pipeops/pipeops/handlers/schedule"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/records"
)

// once leads at once, one time, and keeps what the leader returned.
type once struct{ ended chan error }

func (o once) Lead(ctx context.Context, _ string, run func(context.Context) error) error {
	err := run(ctx)
	if context.Cause(ctx) == nil {
		o.ended <- err
	}
	return nil
}

// shaky can't reach its database the first times.
type shaky struct {
	*records.Claims
	failures *atomic.Int64
}

func (s shaky) Slots(ctx context.Context) (map[string]int, error) {
	if s.failures.Add(-1) >= 0 {
		return nil, errors.New("the connection to the database is cut")
	}
	return s.Claims.Slots(ctx)
}

func TestTheSchedulerKeepsItsQueueOverAnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p, _ := w.core()
	p.project(t)
	p.must(t, push("a", "1"))
	leaders := records.NewLeaders(p.store.Pool(), w.log)
	w.goes("policies", policies.New(policies.Config{Store: p.store, Commands: p.commands, Leader: leaders, NewID: newID, Now: time.Now, Log: w.log}).Run)
	leases := shaky{records.NewClaims(p.store.Pool()), &atomic.Int64{}}
	leases.failures.Store(3)
	if _, err := leases.Beat(t.Context(), records.Beat{Worker: "wrk_1", Incarnation: "one", Class: "build", Slots: 1}); err != nil {
		t.Fatal(err)
	}
	lead := once{make(chan error, 1)}
	w.goes("schedule", schedule.New(schedule.Config{
		Store: p.store, Commands: p.commands, Bus: p.bus, Leader: lead, Leases: leases, Now: time.Now, Log: w.log, Tick: 10 * time.Millisecond,
	}).Run)
	jobs := make(chan bus.Job, 1)
	w.goes("worker", func(ctx context.Context) error {
		return p.bus.ConsumeJobs(ctx, bus.KindBuild, 1, func(_ context.Context, j bus.Job) error {
			select {
			case jobs <- j:
			default: // published again
			}
			return nil
		})
	})
	select {
	case err := <-lead.ended:
		t.Fatalf("the scheduler gave up its queue: %v", err)
	case <-jobs:
	case <-time.After(30 * time.Second):
		t.Fatal("no job in 30 s")
	}
}

func TestTheSchedulerBeginsWithWhatIsNotOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p, _ := w.core()
	p.project(t)
	old, err := p.store.Append(t.Context(), eventstore.Append{Writes: []eventstore.Write{{Stream: "build/bld_old", Events: []eventstore.NewEvent{{
		ID: domain.EventID("newer", 0), Type: "BuildStarted", SchemaVersion: 99, Body: []byte(`{}`), ProjectID: "prj_1", // nobody gets over it
		OccurredAt: time.Now(), Actor: "test", CorrelationID: "newer",
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	leases := records.NewClaims(p.store.Pool())
	if _, err := leases.Beat(t.Context(), records.Beat{Worker: "wrk_1", Incarnation: "one", Class: "build", Slots: 1}); err != nil {
		t.Fatal(err)
	}
	lead := once{make(chan error, 1)}
	start := func() {
		w.goes("schedule", schedule.New(schedule.Config{
			Store: p.store, Commands: p.commands, Bus: p.bus, Leader: lead, Leases: leases, Now: time.Now, Log: w.log, Tick: 10 * time.Millisecond, Stride: 1,
		}).Run)
	}
	start()
	if _, unknown := errors.AsType[*domain.UnknownTypeError](<-lead.ended); !unknown {
		t.Fatal("it has got over what it doesn't know")
	}
	if err := p.commands.Move(t.Context(), eventstore.CursorMove{Name: schedule.CursorName, To: old.Last}); err != nil {
		t.Fatal(err)
	}
	start()
	keeps := func(want int64) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			at, err := p.store.LoadCursor(t.Context(), schedule.CursorName)
			if err == nil && at.Position == want {
				return
			}
			select {
			case err := <-lead.ended:
				t.Fatalf("it has ended: %v", err)
			case <-deadline:
				t.Fatalf("the cursor is %v, %v, want %d", at, err, want)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	p.must(t, push("a", "1"))
	leaders := records.NewLeaders(p.store.Pool(), w.log)
	w.goes("policies", policies.New(policies.Config{Store: p.store, Commands: p.commands, Leader: leaders, NewID: newID, Now: time.Now, Log: w.log}).Run)
	p.until(t, "BuildRequested", 1)
	for asked, err := range p.store.Read(t.Context(), eventstore.Query{Types: []string{"BuildRequested"}}) {
		if err != nil {
			t.Fatal(err)
		}
		keeps(asked.Cursor.Position - 1)
		p.must(t, domain.FailBuild{Build: domain.BuildID(strings.TrimPrefix(string(asked.Stream), "build/"))})
	}
	p.until(t, "BuildFailed", 1)
	head, err := p.store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keeps(head.Position)
}

func TestAcceptance18_PoliciesLetANewerVersionLeadWhenTheyMeetItsEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p, _ := w.core()
	_, err := p.store.Append(t.Context(), eventstore.Append{Writes: []eventstore.Write{{Stream: "push/prj_1/git/1", Events: []eventstore.NewEvent{{
		ID: domain.EventID("newer", 0), Type: "PushReceived", SchemaVersion: 99, Body: []byte(`{}`), ProjectID: "prj_1",
		OccurredAt: time.Now(), Actor: "test", CorrelationID: "newer",
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	lead := once{make(chan error, 1)}
	w.goes("policies", policies.New(policies.Config{Store: p.store, Commands: p.commands, Leader: lead, NewID: newID, Now: time.Now, Log: w.log}).Run)
	select {
	case err := <-lead.ended:
		if _, unknown := errors.AsType[*domain.UnknownTypeError](err); !unknown {
			t.Errorf("got %v, want *domain.UnknownTypeError", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it still leads after 30 s")
	}
}
