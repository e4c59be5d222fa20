// Package schedule receives committed events from the event store and workers'
// leases from internal/records, and hands jobs to the bus, one per free slot,
// and lost attempts to handlers/commands; effects. What runs next is decided
// by domain.Queue, which is folded from the log alone, from a cursor on: all
// work before it is over, so that taking over takes no longer in a long log.
//
// One process schedules at a time. A second leader does no harm: a job that is
// published twice is claimed once.
package schedule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/bus"
)

// CursorName names the place in the log that the queue is folded from. It goes
// with domain.Queue: one that folds otherwise may need another name.
const CursorName = "schedule"

// leadership stays the same whatever the cursor is called: versions side by
// side have one leader.
const leadership = "schedule"

// Leader runs a function in one process at a time.
type Leader interface {
	Lead(ctx context.Context, name string, run func(context.Context) error) error
}

// Leases knows the workers; see internal/records.Claims.
type Leases interface {
	// Slots counts the slots of the live workers of each class, busy ones included.
	Slots(ctx context.Context) (map[string]int, error)
	// Silent gives those of the attempts whose worker has not been heard of for
	// longer than d, by the database's clock.
	Silent(ctx context.Context, attempts []domain.AttemptID, d time.Duration) ([]domain.AttemptID, error)
}

// Config of the scheduler. Fields without a default are required.
type Config struct {
	Store     *eventstore.Store
	Commands  *commands.Handler
	Bus       bus.Bus
	Leader    Leader
	Leases    Leases
	Now       func() time.Time
	Log       *slog.Logger
	Lease     time.Duration // how long a silent worker keeps its attempts; default 15 s
	Republish time.Duration // when an unclaimed job is sent again; default 20 s
	Tick      time.Duration // how often leases and slots are looked at; default 1 s
	Stride    int64         // positions that the cursor moves by, at least; default 10,000
}

// Scheduler hands out work. Use New.
type Scheduler struct{ cfg Config }

// New gives a scheduler.
func New(cfg Config) *Scheduler {
	if cfg.Lease == 0 {
		cfg.Lease = 15 * time.Second
	}
	if cfg.Republish == 0 {
		cfg.Republish = 20 * time.Second
	}
	if cfg.Tick == 0 {
		cfg.Tick = time.Second
	}
	if cfg.Stride == 0 {
		cfg.Stride = 10_000
	}
	return &Scheduler{cfg}
}

// Run schedules until ctx ends, in one process at a time. One that can't fold
// the log lets the next one try.
func (s *Scheduler) Run(ctx context.Context) error {
	return s.cfg.Leader.Lead(ctx, leadership, s.lead)
}

// lead folds the log from the cursor on, then follows it.
func (s *Scheduler) lead(ctx context.Context) error {
	kept, err := s.cfg.Store.LoadCursor(ctx, CursorName)
	if err != nil {
		return fmt.Errorf("load cursor %s: %w", CursorName, err)
	}
	head, err := s.cfg.Store.Head(ctx)
	if err != nil {
		return fmt.Errorf("read the head: %w", err)
	}
	from := kept
	if kept.LogEpoch != head.LogEpoch || kept.Position > head.Position {
		// Work was over when this was kept, by events that may be lost since: it takes those up to there for granted, too.
		from = domain.Cursor{}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches, failed := make(chan eventstore.Batch), make(chan error, 1)
	go func() {
		defer close(batches)
		for b, err := range s.cfg.Store.Subscribe(ctx, from, eventstore.Filter{Types: domain.ScheduleTypes()}) {
			if err != nil {
				failed <- err
				return
			}
			select {
			case batches <- b:
			case <-ctx.Done():
				return
			}
		}
	}()
	return s.loop(ctx, kept, head, batches, failed)
}

func (s *Scheduler) loop(ctx context.Context, kept, head domain.Cursor, batches <-chan eventstore.Batch, failed <-chan error) (err error) {
	var queue domain.Queue
	var heard hearing
	caughtUp := head.Position == 0
	tick := time.NewTicker(s.cfg.Tick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-failed:
			return fmt.Errorf("follow the log: %w", err)
		case b, open := <-batches:
			if !open {
				batches = nil // failed tells why
				continue
			}
			if b.Cursor.LogEpoch > head.LogEpoch {
				return fmt.Errorf("the log has forked, and may have lost what the queue was folded from: log epoch %d has begun", b.Cursor.LogEpoch)
			}
			if err := fold(&queue, b.Events); err != nil {
				return err
			}
			caughtUp = caughtUp || b.Cursor.Position >= head.Position
			if b.Cursor.LogEpoch == head.LogEpoch { // nothing that was folded can be lost any more
				to := domain.Cursor{LogEpoch: head.LogEpoch, Position: queue.Begin(b.Cursor.Position)}
				if kept, err = s.keep(ctx, kept, to); err != nil {
					return err
				}
			}
		case <-tick.C:
			s.note(ctx, s.lapse(ctx, &queue, &heard, caughtUp))
		}
		if caughtUp {
			s.note(ctx, s.RunOnce(ctx, &queue))
		}
	}
}

// keep moves the cursor when that is worth it, and gives where it stands. An
// error: somebody else has moved it, who leads or has just led.
func (s *Scheduler) keep(ctx context.Context, kept, to domain.Cursor) (domain.Cursor, error) {
	if further := to.Position - kept.Position; to.LogEpoch == kept.LogEpoch && 0 <= further && further < s.cfg.Stride {
		return kept, nil
	}
	err := s.cfg.Commands.Move(ctx, eventstore.CursorMove{Name: CursorName, From: kept, To: to})
	if _, conflict := errors.AsType[*eventstore.CursorConflictError](err); conflict {
		return kept, err
	}
	if err != nil {
		if context.Cause(ctx) == nil {
			s.cfg.Log.WarnContext(ctx, "whoever schedules next reads more of the log: the cursor could not be moved", "err", err)
		}
		return kept, nil
	}
	return to, nil
}

// note tells what the next tick tries again.
func (s *Scheduler) note(ctx context.Context, err error) {
	if err != nil && context.Cause(ctx) == nil {
		s.cfg.Log.WarnContext(ctx, "not all work is handed out; the next look tries again", "err", err)
	}
}

func fold(queue *domain.Queue, events []domain.Recorded) error {
	for _, r := range events {
		e, err := r.Decode()
		if err != nil {
			return fmt.Errorf("fold %s at %s: %w", r.Type, r.Cursor, err)
		}
		queue.Fold(r, e)
	}
	return nil
}

// RunOnce hands out what the free slots allow now. What goes wrong with one
// piece of work keeps no other waiting; the error joins all of it.
func (s *Scheduler) RunOnce(ctx context.Context, queue *domain.Queue) error {
	if len(queue.Works) == 0 {
		return nil
	}
	free, err := s.cfg.Leases.Slots(ctx)
	if err != nil {
		return fmt.Errorf("count slots: %w", err)
	}
	for _, w := range queue.Works {
		if w.Attempt != "" {
			free[w.Class]--
		}
	}
	plan := queue.Plan(free, s.cfg.Now(), s.cfg.Republish)
	var problems []error
	for _, r := range plan.Supersede {
		problems = append(problems, s.supersede(ctx, r))
	}
	for _, w := range plan.Publish {
		err := s.publish(ctx, w)
		if errors.Is(err, bus.ErrUnavailable) {
			break // the next look tries again
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

func (s *Scheduler) supersede(ctx context.Context, r domain.Replaced) error {
	origin, err := s.cfg.Commands.Origin(ctx, domain.BuildStream(r.Build))
	if err != nil {
		return err
	}
	_, err = s.cfg.Commands.Execute(ctx, domain.SupersedeBuild(r), commands.Meta{
		CommandID: domain.Derive("supersede", string(r.Build)), Actor: "scheduler", At: s.cfg.Now(), Project: origin.ProjectID,
		CorrelationID: origin.CorrelationID, CausationID: origin.ID, Trace: origin.Trace,
	})
	return err
}

func (s *Scheduler) publish(ctx context.Context, w *domain.Work) error {
	origin, err := s.cfg.Commands.Origin(ctx, stream(w))
	if err != nil {
		return err
	}
	e, err := origin.Decode()
	if err != nil {
		return fmt.Errorf("job for %s: %w", w.Subject, err)
	}
	job := bus.Job{Kind: bus.Kind(w.Class), Subject: w.Subject, Project: w.Project, Published: domain.At(s.cfg.Now())}
	switch e := e.(type) {
	case domain.BuildRequested:
		job.Context, err = json.Marshal(domain.BuildContext{Request: e})
	case domain.DeploymentRequested:
		job.Context, err = json.Marshal(domain.DeployContext{Request: e})
	}
	if err != nil {
		return fmt.Errorf("job for %s: %w", w.Subject, err)
	}
	if err := s.cfg.Bus.PublishJob(ctx, job); err != nil {
		return fmt.Errorf("publish job for %s: %w", w.Subject, err)
	}
	w.Published = s.cfg.Now()
	return nil
}

func stream(w *domain.Work) domain.Stream {
	if w.Class == "deploy" {
		return domain.DeploymentStream(domain.DeploymentID(w.Subject))
	}
	return domain.BuildStream(domain.BuildID(w.Subject))
}
