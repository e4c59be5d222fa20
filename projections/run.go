package projections

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// run is one process's work on a place. As long as its compare-and-set of the checkpoint succeeds nobody else has
// written there, so the rows that it keeps in memory are those of the tables.
type run struct {
	*Projector
	checkpoint

	at      place
	skips   skips
	rows    *rows
	applied domain.Cursor       // what the rows in memory have seen; the checkpoint follows
	moved   func(domain.Cursor) // told after each commit
}

// run begins where the checkpoint stands.
func (p *Projector) run(ctx context.Context, at place) (*run, error) {
	from, err := loadCheckpoint(ctx, p.config.Pool, at, "")
	if err != nil {
		return nil, err
	}
	if err := p.config.Store.Check(ctx, from.Cursor); err != nil {
		return nil, err
	}
	skips, err := p.loadSkips(ctx, at)
	if err != nil {
		return nil, err
	}
	if err := skips.passed(from); err != nil {
		return nil, err
	}
	r := &run{Projector: p, checkpoint: from, at: at, skips: skips, rows: newRows(), applied: from.Cursor, moved: func(domain.Cursor) {}}
	if at.suffix == "" {
		r.moved = func(c domain.Cursor) { p.marks.reach(at.name, c) }
	}
	r.moved(from.Cursor)
	return r, nil
}

var errOvertaken = errors.New("the checkpoint stands elsewhere, or the tables were replaced, or the log says what to leave out")

// stoppedError is an event that a projection can't get over.
type stoppedError struct {
	event domain.Recorded
	err   error
}

func (e *stoppedError) Error() string {
	return fmt.Sprintf("event %s (%s) at %s can't be applied: %v", e.event.ID, e.event.Type, e.event.Cursor, e.err)
}

func (e *stoppedError) Unwrap() error { return e.err }

// before is what was seen when the event at hand wasn't.
func (e *stoppedError) before() domain.Cursor {
	return domain.Cursor{LogEpoch: e.event.Cursor.LogEpoch, Position: e.event.Cursor.Position - 1}
}

// work is a decoded part of the log.
type work struct {
	events  []decoded
	skipped []int64       // positions that are left out
	changed bool          // the log says in it what else is left out
	cursor  domain.Cursor // all up to here stands in it
	stopped *stoppedError // the event after them that can't be read; nil: none
}

// decode picks what the projection is made of. Event types that this binary doesn't know are left out: a projection
// that knows them has another version, and so other tables.
func (r *run) decode(batch eventstore.Batch) work {
	w := work{cursor: batch.Cursor}
	for _, e := range batch.Events {
		if r.skips.changes(e, r.at) {
			w.changed = true
		}
		if r.skips.at[e.Cursor.Position] {
			w.skipped = append(w.skipped, e.Cursor.Position)
			continue
		}
		d, made, err := r.at.decode(e)
		if err != nil {
			w.stopped = &stoppedError{e, err}
			break
		}
		if made {
			w.events = append(w.events, d)
		}
	}
	return w
}

const (
	batchEvents = 4096    // of the log, in one transaction
	batchBytes  = 4 << 20 // of bodies
	rowBytes    = 8 << 20 // of rows that wait to be written
)

// advance applies the log up to a cursor: it is read, decoded, applied and written at the same time, in bounded memory.
// After an error nothing more can be done with the run.
func (r *run) advance(ctx context.Context, until domain.Cursor) error {
	if until.Position <= r.Position {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	coming := make(chan chan work, 2) // batches that are being decoded, in order; two, so that neither side waits for the other
	group.Go(func() error {
		defer close(coming)
		return r.read(ctx, until, func(batch eventstore.Batch) bool {
			done := make(chan work, 1) // 1: whoever decodes doesn't wait
			group.Go(func() error { done <- r.decode(batch); return nil })
			return send(ctx, coming, done)
		})
	})
	applied := make(chan *changes)
	stopped := make(chan error, 1) // 1: it is looked at when all before it is written
	group.Go(func() error {
		defer close(applied)
		for done := range coming {
			err := r.prepare(ctx, <-done, func(c *changes) error {
				if !send(ctx, applied, c) {
					return context.Cause(ctx)
				}
				return nil
			})
			if err != nil {
				stopped <- err
				return nil
			}
		}
		return nil
	})
	group.Go(func() error {
		for c := range applied {
			if err := r.write(ctx, c); err != nil {
				return err
			}
		}
		select {
		case err := <-stopped:
			return err
		default:
			return nil
		}
	})
	return group.Wait()
}

// send is false when ctx has ended before.
func send[T any](ctx context.Context, to chan<- T, value T) bool {
	select {
	case to <- value:
		return true
	case <-ctx.Done():
		return false
	}
}

// read gives the log after the checkpoint in batches.
func (r *run) read(ctx context.Context, until domain.Cursor, each func(eventstore.Batch) bool) error {
	query := eventstore.Query{After: r.Cursor, Until: until.Position}
	if len(r.at.streams) == 1 {
		query.Streams = r.at.streams[0] + "/"
	}
	var batch eventstore.Batch
	size := 0
	for e, err := range r.config.Store.Read(ctx, query) {
		if err != nil {
			return err
		}
		if batch.Events == nil {
			batch.Events = make([]domain.Recorded, 0, batchEvents)
		}
		batch.Events, batch.Cursor = append(batch.Events, e), e.Cursor
		if size += len(e.Body); len(batch.Events) == batchEvents || size >= batchBytes {
			if !each(batch) {
				return context.Cause(ctx)
			}
			batch, size = eventstore.Batch{}, 0
		}
	}
	batch.Cursor = until
	if !each(batch) {
		return context.Cause(ctx)
	}
	return nil
}

// commit applies a part of the log, in one transaction with the move of the checkpoint; in several when the rows get
// too many for memory. Of an event that can't be applied all before it is done, and a *stoppedError tells.
func (r *run) commit(ctx context.Context, w work) error {
	return r.prepare(ctx, w, func(c *changes) error { return r.write(ctx, c) })
}

// changes are what one transaction writes.
type changes struct {
	batch   int64
	to      domain.Cursor
	skipped []int64
	tables  map[string]*tableChanges
}

// prepare applies a part of the log to the rows in memory, and gives each what it has changed, which is written in the
// order given. Rows that aren't in memory are loaded as they are asked for; whoever else has changed them since has also
// moved the checkpoint, and so nothing is written that was made of them.
func (r *run) prepare(ctx context.Context, w work, each func(*changes) error) error {
	if w.changed {
		return errOvertaken
	}
	for rest := &w; rest != nil; {
		var c *changes
		var err error
		if c, rest, err = r.step(ctx, *rest); c == nil {
			return err
		}
		if failed := each(c); failed != nil {
			return failed
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// step is one transaction. rest is what doesn't fit into it; changes may come with a *stoppedError.
func (r *run) step(ctx context.Context, w work) (c *changes, rest *work, err error) {
	to, stopped := w.cursor, w.stopped
	if stopped != nil {
		to = stopped.before()
	}
	applied, err := r.apply(ctx, w.events)
	failed := new(stoppedError)
	switch {
	case errors.As(err, &failed):
		to, stopped = failed.before(), failed
	case err != nil:
		return nil, nil, err
	case applied < len(w.events):
		to = w.events[applied-1].Cursor
		rest = &work{events: w.events[applied:], skipped: w.skipped, cursor: w.cursor, stopped: w.stopped}
	}
	if stopped != nil && to == r.applied {
		return nil, nil, stopped // nothing was done: what the checkpoint says of the stop may stay
	}
	r.applied = to
	c = &changes{to: to, skipped: w.skipped}
	c.batch, c.tables = r.rows.take(r.at.tables)
	if rest == nil && stopped != nil {
		return c, nil, stopped
	}
	return c, rest, nil
}

// write writes changes.
func (r *run) write(ctx context.Context, c *changes) error {
	err := pgx.BeginFunc(ctx, r.config.Pool, func(tx pgx.Tx) error {
		if err := r.move(ctx, tx, c.to, c.skipped); err != nil {
			return err
		}
		return flush(ctx, tx, r.at, c.tables)
	})
	if err != nil {
		return err
	}
	r.rows.stand(c)
	r.Cursor = c.to
	r.moved(c.to)
	return nil
}

// move takes the checkpoint's row, for which a former leader that still works must wait, and moves it, if it stands where
// this run left it. What is left out of the log can't change from here to the commit: see WhileStopped.
//
// A commit isn't waited for until it is on the disk: after a crash of the database rows and checkpoint go back together.
// A process that freezes in the middle doesn't hold up the next leader for long, but for one case: frozen within a COPY
// it does so until it wakes or dies, and /readyz names the projection meanwhile.
func (r *run) move(ctx context.Context, tx pgx.Tx, to domain.Cursor, skipped []int64) error {
	batch := &pgx.Batch{}
	batch.Queue("SELECT set_config('synchronous_commit', 'off', true), set_config('idle_in_transaction_session_timeout', '10s', true)")
	batch.Queue(`UPDATE projections.checkpoints SET epoch = $5, position = $6, moved_at = clock_timestamp(),
		skipped = skipped || (SELECT coalesce(array_agg(s), '{}') FROM unnest($7::bigint[]) s WHERE s > position AND s <= $6),
		stopped_position = 0, stopped_event = '', stopped_type = '', stopped_error = '', stopped_at = NULL
		WHERE name = $1 AND epoch = $2 AND position = $3 AND generation = $4`,
		r.at.checkpoint(), r.LogEpoch, r.Position, r.generation, to.LogEpoch, to.Position, skipped)
	results := tx.SendBatch(ctx, batch)
	_, err := results.Exec()
	if err != nil {
		return errors.Join(err, results.Close())
	}
	found, err := results.Exec()
	if err = errors.Join(err, results.Close()); err != nil {
		return fmt.Errorf("move checkpoint %s from %s to %s: %w", r.at.checkpoint(), r.Cursor, to, err)
	}
	if found.RowsAffected() == 0 {
		return errOvertaken
	}
	return nil
}

// apply applies events to rows, which it loads as they are asked for: those that a first look asks for at once, the
// others one event at a time. It gives how many it has applied, fewer than all when the rows get too many.
func (r *run) apply(ctx context.Context, events []decoded) (int, error) {
	r.foresee(events)
	if err := load(ctx, r.config.Pool, r.at, r.rows); err != nil {
		return 0, err
	}
	for i, e := range events {
		if r.rows.pending >= rowBytes {
			return i, nil
		}
		for {
			complete, err := r.rows.try(r.at.projection, e)
			if err != nil {
				return i, &stoppedError{e.Recorded, err}
			}
			if complete {
				break
			}
			if err := load(ctx, r.config.Pool, r.at, r.rows); err != nil {
				return i, err
			}
		}
	}
	return len(events), nil
}

// foresee notes the rows that events ask for when nothing is known yet; of a stream's events the first one, as mostly
// all ask for the same.
func (r *run) foresee(events []decoded) {
	clear(r.rows.missing)
	blank, seen := newRows(), map[domain.Stream]bool{}
	for _, e := range events {
		if seen[e.Stream] {
			continue
		}
		seen[e.Stream] = true
		_, _ = blank.try(r.at.projection, e) // an error comes again when it counts
		for of := range blank.missing {
			if _, known := r.rows.states[of]; !known {
				r.rows.missing[of] = true
			}
		}
		clear(blank.states)
	}
}

// finish makes the indexes of tables that are full for the first time.
func (r *run) finish(ctx context.Context) error {
	if r.caughtUp {
		return nil
	}
	err := pgx.BeginFunc(ctx, r.config.Pool, func(tx pgx.Tx) error {
		if err := r.move(ctx, tx, r.Cursor, nil); err != nil {
			return err
		}
		if err := r.at.each(ctx, tx, createIndexes); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "UPDATE projections.checkpoints SET caught_up_at = clock_timestamp() WHERE name = $1", r.at.checkpoint())
		return err
	})
	r.caughtUp = err == nil
	return err
}
