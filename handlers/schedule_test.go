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
	"github.com/pipeops/pipeops/migrations"
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

// scheduling is a scheduler of a plane with one free slot for builds, and a build that waits for it.
type scheduling struct {
	*plane

	w      *world
	leases *records.Claims
	lead   once
}

func newScheduling(t *testing.T) *scheduling {
	t.Helper()
	w := newWorld(t, inProcess(t))
	p, _ := w.core()
	p.project(t)
	s := &scheduling{plane: p, w: w, leases: records.NewClaims(p.store.Pool()), lead: once{make(chan error, 1)}}
	if _, err := s.leases.Beat(t.Context(), records.Beat{Worker: "wrk_1", Incarnation: "one", Class: "build", Slots: 1}); err != nil {
		t.Fatal(err)
	}
	return s
}

// start leads once, with a cursor that is moved at every step.
func (s *scheduling) start() {
	s.w.goes("schedule", schedule.New(schedule.Config{
		Store: s.store, Commands: s.commands, Bus: s.bus, Leader: s.lead, Leases: s.leases, Now: time.Now, Log: s.w.log, Tick: 10 * time.Millisecond, Stride: 1,
	}).Run)
}

// ask pushes, and gives the build that is wanted then.
func (s *scheduling) ask(t *testing.T) (build domain.BuildID, position int64) {
	t.Helper()
	s.must(t, push("a", "1"))
	leaders := records.NewLeaders(s.store.Pool(), s.w.log)
	s.w.goes("policies", policies.New(policies.Config{Store: s.store, Commands: s.commands, Leader: leaders, NewID: newID, Now: time.Now, Log: s.w.log}).Run)
	s.until(t, "BuildRequested", 1)
	for r, err := range s.store.Read(t.Context(), eventstore.Query{Types: []string{"BuildRequested"}}) {
		if err != nil {
			t.Fatal(err)
		}
		build, position = domain.BuildID(strings.TrimPrefix(string(r.Stream), "build/")), r.Cursor.Position
	}
	return build, position
}

func (s *scheduling) move(t *testing.T, to domain.Cursor) {
	t.Helper()
	if err := s.commands.Move(t.Context(), eventstore.CursorMove{Name: schedule.CursorName, To: to}); err != nil {
		t.Fatal(err)
	}
}

// keeps waits until the cursor is there.
func (s *scheduling) keeps(t *testing.T, want domain.Cursor) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		at, err := s.store.LoadCursor(t.Context(), schedule.CursorName)
		if err == nil && at == want {
			return
		}
		select {
		case err := <-s.lead.ended:
			t.Fatalf("it has ended: %v", err)
		case <-deadline:
			t.Fatalf("the cursor is %v, %v, want %v", at, err, want)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// fork raises the log epoch, as after a restore.
func (s *scheduling) fork(t *testing.T) {
	t.Helper()
	if _, _, err := migrations.Fork(t.Context(), s.w.owner, 0); err != nil {
		t.Fatal(err)
	}
}

// jobs gives the first job for a build.
func (s *scheduling) jobs() <-chan bus.Job {
	jobs := make(chan bus.Job, 1)
	s.w.goes("worker", func(ctx context.Context) error {
		return s.bus.ConsumeJobs(ctx, bus.KindBuild, 1, func(_ context.Context, j bus.Job) error {
			select {
			case jobs <- j:
			default: // published again
			}
			return nil
		})
	})
	return jobs
}

func (s *scheduling) head(t *testing.T) domain.Cursor {
	t.Helper()
	head, err := s.store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return head
}

func TestTheSchedulerKeepsItsQueueOverAnError(t *testing.T) {
	t.Parallel()
	s := newScheduling(t)
	leases := shaky{s.leases, &atomic.Int64{}}
	leases.failures.Store(3)
	s.w.goes("schedule", schedule.New(schedule.Config{
		Store: s.store, Commands: s.commands, Bus: s.bus, Leader: s.lead, Leases: leases, Now: time.Now, Log: s.w.log, Tick: 10 * time.Millisecond,
	}).Run)
	jobs := s.jobs()
	s.ask(t)
	select {
	case err := <-s.lead.ended:
		t.Fatalf("the scheduler gave up its queue: %v", err)
	case <-jobs:
	case <-time.After(30 * time.Second):
		t.Fatal("no job in 30 s")
	}
}

func TestTheSchedulerBeginsWithWhatIsNotOver(t *testing.T) {
	t.Parallel()
	s := newScheduling(t)
	_, err := s.store.Append(t.Context(), eventstore.Append{Writes: []eventstore.Write{{Stream: "build/bld_old", Events: []eventstore.NewEvent{{
		ID: domain.EventID("newer", 0), Type: "BuildStarted", SchemaVersion: 99, Body: []byte(`{}`), ProjectID: "prj_1", // nobody gets over it
		OccurredAt: time.Now(), Actor: "test", CorrelationID: "newer",
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	s.until(t, "BuildStarted", 1) // the store has it, and so the scheduler at once
	s.start()
	select {
	case err := <-s.lead.ended:
		if _, unknown := errors.AsType[*domain.UnknownTypeError](err); !unknown {
			t.Fatalf("it ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it has got over what it doesn't know")
	}
	if at, err := s.store.LoadCursor(t.Context(), schedule.CursorName); err != nil || at != (domain.Cursor{}) {
		t.Fatalf("it has moved to %v, %v", at, err)
	}
	s.move(t, s.head(t))
	s.start()
	build, asked := s.ask(t)
	s.keeps(t, domain.Cursor{LogEpoch: 1, Position: asked - 1})
	s.must(t, domain.FailBuild{Build: build})
	s.keeps(t, s.head(t))
}

// A cursor that moved because of events that are lost since leaves out what is open again.
func TestTheSchedulerTrustsNoCursorFromBeforeAFork(t *testing.T) {
	t.Parallel()
	s := newScheduling(t)
	build, _ := s.ask(t)
	s.move(t, s.head(t))
	s.fork(t)
	jobs := s.jobs()
	s.start()
	select {
	case err := <-s.lead.ended:
		t.Fatalf("it has ended: %v", err)
	case j := <-jobs:
		if j.Subject != string(build) {
			t.Errorf("a job for %s, want one for %s", j.Subject, build)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("no job in 30 s")
	}
	s.must(t, domain.FailBuild{Build: build})
	s.keeps(t, s.head(t)) // in the new epoch
}

func TestASchedulerFoldsAnewWhenTheLogForksUnderIt(t *testing.T) {
	t.Parallel()
	s := newScheduling(t)
	s.start()
	build, asked := s.ask(t)
	s.keeps(t, domain.Cursor{LogEpoch: 1, Position: asked - 1})
	s.fork(t)
	s.must(t, domain.FailBuild{Build: build})
	select {
	case err := <-s.lead.ended:
		if !strings.Contains(err.Error(), "forked") {
			t.Errorf("it has ended: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it still leads after 30 s")
	}
	s.keeps(t, domain.Cursor{LogEpoch: 1, Position: asked - 1})
}

func TestASchedulerWhoseCursorSomebodyElseMovesLeadsNoMore(t *testing.T) {
	t.Parallel()
	s := newScheduling(t)
	s.start()
	build, asked := s.ask(t)
	at := domain.Cursor{LogEpoch: 1, Position: asked - 1}
	s.keeps(t, at)
	if err := s.commands.Move(t.Context(), eventstore.CursorMove{Name: schedule.CursorName, From: at, To: domain.Cursor{LogEpoch: 1, Position: 1}}); err != nil {
		t.Fatal(err)
	}
	s.must(t, domain.FailBuild{Build: build})
	select {
	case err := <-s.lead.ended:
		if _, conflict := errors.AsType[*eventstore.CursorConflictError](err); !conflict {
			t.Errorf("got %v, want *eventstore.CursorConflictError", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it still leads after 30 s")
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
