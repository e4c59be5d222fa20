// Package projections receives recorded events from the event store, keeps read models of them current, and hands
// those to the graph, as they are now or as they were at any position; effects (PostgreSQL), but for the functions
// that turn an event into rows, which are pure.
//
// It keeps: rows, history rows (from_position, to_position) and checkpoint change in one transaction; one process leads
// each projection, the others follow its checkpoint, and moving that by compare-and-set comes first in the transaction
// and fences a leader that was frozen; a read model says nothing that doesn't follow from the log, and can be dropped
// and rebuilt; tables are named by the projection's version, so that another binary builds its own beside them; an
// event that can't be applied stops its projection alone, visibly (Status, metrics), until it can be applied or the log
// says that it is left out.
//
//	p, err := projections.New(projections.Config{Store: store, Opener: open, Leader: leaders, Log: log})
//	go p.Run(ctx)
//	status, err := p.Queries().Status(ctx, "hello", projections.At{AtLeast: cursor})
package projections

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// Opener decrypts a personal field; false when the key of its subject was erased.
type Opener func(ctx context.Context, subject, eventID, field, ciphertext string) (text string, ok bool, err error)

// Leader runs a function in one process at a time: it waits to lead in name, and ends run's ctx when it doesn't any
// more. It gives what run returned, or nil when ctx has ended.
type Leader interface {
	Lead(ctx context.Context, name string, run func(context.Context) error) error
}

// Config says where the log is and how to open what is sealed in it.
type Config struct {
	Store  *eventstore.Store // required; its Run must be running
	Opener Opener            // required
	Leader Leader            // required
	Log    *slog.Logger      // required

	Pool         *pgxpool.Pool // of the store's database; default Store.Pool()
	RetryStopped time.Duration // how often a stopped projection is tried again; default 30 s
	Patience     time.Duration // how long a query waits for a read model to catch up; default 10 s
	Unused       time.Duration // after which a version that no process was seen to use is dropped; default 1 min
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
	if c.Leader == nil {
		problems = append(problems, errors.New("the Leader is missing"))
	}
	if c.Log == nil {
		problems = append(problems, errors.New("the Log is missing"))
	}
	if min(c.RetryStopped, c.Patience, c.Unused) < 0 {
		problems = append(problems, errors.New("RetryStopped, Patience or Unused is negative: 0 means its default"))
	}
	return errors.Join(problems...)
}

// Projector keeps read models current. Its methods may be called at the same time.
type Projector struct {
	config  Config
	models  []*projection
	process string // names this projector among those that use the same tables
	marks   *marks
}

// New gives a projector; Run sets it to work.
func New(config Config) (*Projector, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("projections: %w", err)
	}
	if config.Pool == nil {
		config.Pool = config.Store.Pool()
	}
	config.RetryStopped = cmp.Or(config.RetryStopped, 30*time.Second)
	config.Patience = cmp.Or(config.Patience, 10*time.Second)
	config.Unused = cmp.Or(config.Unused, time.Minute)
	return &Projector{config: config, models: all, process: uuid.NewString(), marks: newMarks()}, nil
}

// Run keeps all read models current until ctx ends. Any number of processes may do so; of those with the same version
// of a projection one does the work.
func (p *Projector) Run(ctx context.Context) error {
	for {
		err := create(ctx, p.config.Pool, p.process, p.places()...)
		if err == nil || context.Cause(ctx) != nil {
			break
		}
		p.config.Log.WarnContext(ctx, "tables of the read models can't be made yet", "err", err)
		pause(ctx, time.Second)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, at := range p.places() {
		group.Go(func() error {
			return p.config.Leader.Lead(ctx, "projection "+at.checkpoint(), func(ctx context.Context) error {
				p.marks.lead(at.name, true)
				defer p.marks.lead(at.name, false)
				p.keep(ctx, at)
				return nil
			})
		})
	}
	group.Go(func() error { p.watch(ctx); return nil })
	group.Go(func() error { p.tend(ctx); return nil })
	return group.Wait()
}

func (p *Projector) places() []place {
	places := make([]place, len(p.models))
	for i, projection := range p.models {
		places[i] = place{projection, ""}
	}
	return places
}

// keep follows the log for one projection, again after each trouble.
func (p *Projector) keep(ctx context.Context, at place) {
	for context.Cause(ctx) == nil {
		asked, err := p.follow(ctx, at)
		var stopped *stoppedError
		switch {
		case context.Cause(ctx) != nil:
			return
		case errors.Is(err, errOvertaken): // another process did the work, or rebuilt the tables
		case errors.As(err, &stopped):
			p.stop(ctx, at, stopped)
			p.awaitRetry(ctx, at, asked)
		case errors.Is(err, errPassed):
			p.leaveOut(ctx, at, err)
		case isGone(err):
			p.restart(ctx, at, err)
		default:
			p.config.Log.WarnContext(ctx, "projection is interrupted", "projection", at.name, "err", err)
			pause(ctx, time.Second)
			p.mend(ctx, at)
		}
	}
}

// mend makes tables again that were dropped while this process was frozen.
func (p *Projector) mend(ctx context.Context, at place) {
	if err := create(ctx, p.config.Pool, p.process, at); err != nil && context.Cause(ctx) == nil {
		p.config.Log.WarnContext(ctx, "tables of a read model can't be made", "projection", at.name, "err", err)
	}
}

// nearHead is how many positions a read model may be behind the log and still count as current.
const nearHead = 1000

// follow applies what comes after the checkpoint until something goes wrong: what there is fast, what comes as it
// comes. asked is where the log stood before; whatever was asked of the projection after it may not be known yet.
func (p *Projector) follow(ctx context.Context, at place) (asked domain.Cursor, err error) {
	if asked, err = p.config.Store.Head(ctx); err != nil {
		return asked, err
	}
	r, err := p.run(ctx, at)
	if err != nil {
		return asked, err
	}
	for head := asked; ; {
		if err := r.advance(ctx, head); err != nil {
			return asked, err
		}
		if head, err = p.config.Store.Head(ctx); err != nil {
			return asked, err
		}
		if head.Position-r.Position <= nearHead {
			break
		}
	}
	if err := r.finish(ctx); err != nil {
		return asked, err
	}
	for batch, err := range p.config.Store.Subscribe(ctx, r.Cursor, eventstore.Filter{}) {
		if err != nil {
			return asked, err
		}
		if err := r.commit(ctx, r.decode(batch)); err != nil {
			return asked, err
		}
	}
	return asked, context.Cause(ctx)
}

// watch learns the checkpoints of the projections that other processes lead.
func (p *Projector) watch(ctx context.Context) {
	const soon, late = 5 * time.Millisecond, time.Second
	wait := soon
	for context.Cause(ctx) == nil {
		lowest, moved, err := p.look(ctx)
		if err != nil && context.Cause(ctx) == nil {
			p.config.Log.WarnContext(ctx, "checkpoints of the projections can't be read", "err", err)
		}
		wait = min(2*wait, late)
		if moved {
			wait = soon
		}
		if lowest != nil {
			seen, cancel := context.WithTimeoutCause(ctx, late, errImpatient)
			head, err := p.config.Store.Wait(seen, *lowest)
			cancel()
			if err == nil && head.Position > lowest.Position+nearHead {
				wait = max(wait, 20*soon) // it is being built: nobody waits for each step
			}
		}
		pause(ctx, wait)
	}
}

// look reads the checkpoints that others move. lowest is nil when there is none of them, moved says whether any did.
func (p *Projector) look(ctx context.Context) (lowest *domain.Cursor, moved bool, err error) {
	var others []place
	for _, at := range p.places() {
		if !p.marks.leads(at.name) {
			others = append(others, at)
		}
	}
	if len(others) == 0 {
		return nil, false, nil
	}
	found, err := p.checkpoints(ctx)
	if err != nil {
		return nil, false, err
	}
	for _, at := range others {
		status, there := found[at.checkpoint()]
		if !there || p.marks.leads(at.name) {
			continue
		}
		known, here, _ := p.marks.of(at.name)
		moved = moved || !here || known != status.Cursor
		p.marks.reach(at.name, status.Cursor)
		if lowest == nil || status.Cursor.Position < lowest.Position {
			lowest = &status.Cursor
		}
	}
	return lowest, moved, nil
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
