package handlers_test

import (
	"context"
	"errors"
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
