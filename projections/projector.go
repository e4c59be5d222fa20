// Package projections receives recorded events from the event store, keeps read models of them current, and hands
// those to the graph, as they are now or as they were at any position; effects (PostgreSQL), but for the functions
// that turn an event into rows, which are pure.
//
// It keeps: rows, history rows (from_position, to_position) and checkpoint change in one transaction; moving the
// checkpoint by compare-and-set comes first in it and fences, so that any number of processes may run the same
// projections side by side; a read model says nothing that doesn't follow from the log, and can be dropped and
// rebuilt; tables are named by the projection's version, so that another binary builds its own beside them; an event
// that can't be applied stops its projection alone, visibly (Status, metrics).
//
//	p, err := projections.New(projections.Config{Store: store, Opener: open, Log: log})
//	go p.Run(ctx)
//	status, err := p.Queries().Status(ctx, "hello", projections.At{AtLeast: cursor})
package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// Opener decrypts a personal field; false when the key of its subject was erased.
type Opener func(ctx context.Context, subject, eventID, field, ciphertext string) (text string, ok bool, err error)

// Config says where the log is and how to open what is sealed in it.
type Config struct {
	Store  *eventstore.Store // required; its Run must be running
	Opener Opener            // required
	Log    *slog.Logger      // required

	Pool         *pgxpool.Pool // of the store's database; default Store.Pool()
	RetryStopped time.Duration // how often a stopped projection is tried again; default 30 s
	Patience     time.Duration // how long a query waits for a read model to catch up; default 10 s
}

// Validate says all that is wrong.
func (c Config) Validate() error {
	var problems []error
	if c.Store == nil {
		problems = append(problems, errors.New("the Store is missing"))
	}
	if c.Opener == nil {
		problems = append(problems, errors.New("the Opener is missing"))
	}
	if c.Log == nil {
		problems = append(problems, errors.New("the Log is missing"))
	}
	if c.RetryStopped < 0 || c.Patience < 0 {
		problems = append(problems, errors.New("the RetryStopped or Patience is negative: 0 means its default"))
	}
	return errors.Join(problems...)
}

// Projector keeps read models current. Its methods may be called at the same time.
type Projector struct {
	config Config
	marks  *marks
}

// New gives a projector; Run sets it to work.
func New(config Config) (*Projector, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("projections: %w", err)
	}
	if config.Pool == nil {
		config.Pool = config.Store.Pool()
	}
	if config.RetryStopped == 0 {
		config.RetryStopped = 30 * time.Second
	}
	if config.Patience == 0 {
		config.Patience = 10 * time.Second
	}
	return &Projector{config: config, marks: newMarks()}, nil
}

// Run keeps all read models current until ctx ends. Any number of processes may do so.
func (p *Projector) Run(ctx context.Context) error {
	places := make([]place, len(all))
	for i, projection := range all {
		places[i] = place{projection, ""}
	}
	for {
		err := create(ctx, p.config.Pool, places...)
		if err == nil || context.Cause(ctx) != nil {
			break
		}
		p.config.Log.WarnContext(ctx, "tables of the read models can't be made yet", "err", err)
		pause(ctx, time.Second)
	}
	var group errgroup.Group
	for _, place := range places {
		group.Go(func() error { p.keep(ctx, place); return nil })
	}
	return group.Wait()
}

// keep follows the log for one projection, again after each trouble.
func (p *Projector) keep(ctx context.Context, at place) {
	for context.Cause(ctx) == nil {
		err := p.follow(ctx, at)
		var stopped *stoppedError
		switch {
		case context.Cause(ctx) != nil:
			return
		case errors.Is(err, errOvertaken): // another process did the work
		case errors.As(err, &stopped):
			p.stop(ctx, at, stopped)
			pause(ctx, p.config.RetryStopped)
		case isGone(err):
			p.restart(ctx, at, err)
		default:
			p.config.Log.WarnContext(ctx, "projection is interrupted", "projection", at.name, "err", err)
			pause(ctx, time.Second)
		}
	}
}

// follow applies what comes after the checkpoint until something goes wrong.
func (p *Projector) follow(ctx context.Context, at place) error {
	cursor, err := loadCheckpoint(ctx, p.config.Pool, at.checkpoint())
	if err != nil {
		return err
	}
	p.marks.reach(at.name, cursor)
	for batch, err := range p.config.Store.Subscribe(ctx, cursor, eventstore.Filter{}) {
		if err != nil {
			return err
		}
		if err := p.step(ctx, at, cursor, batch); err != nil {
			return err
		}
		cursor = batch.Cursor
		p.marks.reach(at.name, cursor)
	}
	return context.Cause(ctx)
}

var errOvertaken = errors.New("the checkpoint stands elsewhere: another process has moved it")

// stoppedError is an event that a projection can't get over.
type stoppedError struct {
	event domain.Recorded
	err   error
}

func (e *stoppedError) Error() string {
	return fmt.Sprintf("event %s (%s) at %s can't be applied: %v", e.event.ID, e.event.Type, e.event.Cursor, e.err)
}

func (e *stoppedError) Unwrap() error { return e.err }

// step applies a batch and moves the checkpoint from where it was to the batch's cursor. When an event can't be
// applied, all before it is done first.
func (p *Projector) step(ctx context.Context, at place, from domain.Cursor, batch eventstore.Batch) error {
	events, bad, err := at.decode(batch.Events)
	for err == nil {
		var applied int
		applied, err = p.commit(ctx, at, from, batch.Cursor, events)
		if err == nil {
			return nil
		}
		var stopped *stoppedError
		if !errors.As(err, &stopped) {
			return err
		}
		bad = indexOf(batch.Events, stopped.event)
		events, err = events[:applied], stopped.err
	}
	if bad > 0 {
		before := batch.Events[bad-1].Cursor
		if _, err := p.commit(ctx, at, from, before, events); err != nil {
			return err
		}
		p.marks.reach(at.name, before)
	}
	return &stoppedError{batch.Events[bad], err}
}

func indexOf(events []domain.Recorded, e domain.Recorded) int {
	return int(e.Cursor.Position - events[0].Cursor.Position) // positions are dense, and nothing is filtered
}

// commit applies events in one transaction with the move of the checkpoint. Of an event that can't be applied the
// first result is the index.
func (p *Projector) commit(ctx context.Context, at place, from, to domain.Cursor, events []decoded) (applied int, err error) {
	err = pgx.BeginFunc(ctx, p.config.Pool, func(tx pgx.Tx) error {
		if err := moveCheckpoint(ctx, tx, at.checkpoint(), from, to); err != nil {
			return err
		}
		r := newRows()
		applied, err = apply(ctx, tx, at, r, events)
		if err != nil {
			return err
		}
		return flush(ctx, tx, at, r)
	})
	return applied, err
}

// apply applies events to rows, which it loads as they are asked for: those that a first look asks for at once, the
// others one event at a time.
func apply(ctx context.Context, tx pgx.Tx, at place, r *rows, events []decoded) (int, error) {
	if err := load(ctx, tx, at, foresee(at, r, events)); err != nil {
		return 0, err
	}
	for i, e := range events {
		for {
			complete, err := r.try(at.projection, e)
			if err != nil {
				return i, &stoppedError{e.Recorded, err}
			}
			if complete {
				break
			}
			if err := load(ctx, tx, at, r); err != nil {
				return i, err
			}
		}
	}
	return len(events), nil
}

// foresee notes the rows that events ask for when nothing is known yet.
func foresee(at place, r *rows, events []decoded) *rows {
	asked := map[ref]bool{}
	for _, e := range events {
		blank := newRows()
		_, _ = blank.try(at.projection, e) // an error comes again when it counts
		for of := range blank.missing {
			asked[of] = true
		}
	}
	r.missing = asked
	return r
}

// isGone says whether the log doesn't hold a cursor any more: it was restored.
func isGone(err error) bool {
	var forked *eventstore.LogForkedError
	var ahead *eventstore.CursorAheadError
	return errors.As(err, &forked) || errors.As(err, &ahead)
}

// pause waits for d, or until ctx has ended.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
