package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// skips are the events that a version of a projection leaves out, because the log says so (domain.ProjectionSkipped).
// A replay knows all of them before it begins, and so gives the same rows and the same history as the projection that
// had stopped, and was told to go on without the event.
type skips struct{ at map[int64]bool } // positions

func (p *Projector) loadSkips(ctx context.Context, at place) (skips, error) {
	s := skips{at: map[int64]bool{}}
	for r, err := range p.config.Store.Read(ctx, eventstore.Query{Types: []string{domain.TypeOf(domain.ProjectionSkipped{})}}) {
		if err != nil {
			return s, fmt.Errorf("read what projection %s leaves out: %w", at.name, err)
		}
		e, err := r.Decode()
		if err != nil {
			return s, fmt.Errorf("read what projection %s leaves out: event %s: %w", at.name, r.ID, err)
		}
		if position, ok := leaves(e, at); ok {
			s.at[position] = true
		}
	}
	return s, nil
}

// leaves gives the position that an event says a place leaves out.
func leaves(e domain.Event, at place) (position int64, ok bool) {
	s, ok := e.(domain.ProjectionSkipped)
	return s.Position, ok && s.Projection == at.name && s.Version == at.version
}

// changes says whether an event is about something to leave out that isn't known yet.
func (s skips) changes(r domain.Recorded, at place) bool {
	if r.Type != domain.TypeOf(domain.ProjectionSkipped{}) {
		return false
	}
	e, err := r.Decode()
	position, ok := leaves(e, at)
	return err == nil && ok && !s.at[position]
}

// errPassed says that the log wants an event left out that was applied before it said so.
var errPassed = errors.New("an event was applied that the log says is left out")

// passed finds an event that should have been left out, and was not.
func (s skips) passed(c checkpoint) error {
	for position := range s.at {
		if position <= c.Position && !slices.Contains(c.skipped, position) {
			return fmt.Errorf("position %d: %w", position, errPassed)
		}
	}
	return nil
}

// leaveOut replays a projection without an event that it had applied already. The log says so only when whoever decided
// it was frozen between looking at the projection and recording it (WhileStopped).
func (p *Projector) leaveOut(ctx context.Context, at place, cause error) {
	p.config.Log.WarnContext(ctx, "projection is built anew", "projection", at.name, "err", cause)
	if _, err := p.Rebuild(ctx, at.name, nil); err != nil && context.Cause(ctx) == nil {
		p.config.Log.WarnContext(ctx, "projection can't be built anew yet", "projection", at.name, "err", err)
		pause(ctx, p.config.RetryStopped)
	}
}

// stop says in the checkpoint's row what a projection can't get over, unless that is known.
func (p *Projector) stop(ctx context.Context, at place, stopped *stoppedError) {
	e := stopped.event
	tag, err := p.config.Pool.Exec(ctx, `UPDATE projections.checkpoints
		SET stopped_position = $2::bigint, stopped_event = $3, stopped_type = $4, stopped_error = $5,
			stopped_at = coalesce(stopped_at, clock_timestamp())
		WHERE name = $1 AND position = $2::bigint - 1 AND (stopped_position <> $2::bigint OR stopped_error <> $5)`,
		at.checkpoint(), e.Cursor.Position, e.ID, e.Type, stopped.err.Error())
	if err != nil {
		p.config.Log.WarnContext(ctx, "the stop of a projection isn't recorded", "projection", at.name, "err", err)
	}
	if err != nil || tag.RowsAffected() > 0 {
		p.config.Log.ErrorContext(ctx, "projection has stopped at an event that it can't apply; see: pipeops projections list",
			"projection", at.name, "position", e.Cursor.Position, "type", e.Type, "err", stopped.err)
	}
}

var errRetry = errors.New("time to try again")

// awaitRetry waits until a stopped projection is to be tried again: after a while, or as soon as the log says so.
func (p *Projector) awaitRetry(ctx context.Context, at place, asked domain.Cursor) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.config.RetryStopped, errRetry)
	defer cancel()
	filter := eventstore.Filter{Types: []string{domain.TypeOf(domain.ProjectionRetried{}), domain.TypeOf(domain.ProjectionSkipped{})}}
	for batch, err := range p.config.Store.Subscribe(ctx, asked, filter) {
		if err != nil {
			return // the log has gone back: following it will tell
		}
		for _, r := range batch.Events {
			if e, err := r.Decode(); err == nil && concerns(e, at) {
				return
			}
		}
	}
}

func concerns(e domain.Event, at place) bool {
	switch e := e.(type) {
	case domain.ProjectionRetried:
		return e.Projection == at.name
	case domain.ProjectionSkipped:
		return e.Projection == at.name
	}
	return false
}

// RunningError says that a projection isn't stopped: there is nothing to try again or to leave out.
type RunningError struct {
	Projection string
	Position   int64 // where it is
}

func (e *RunningError) Error() string {
	return fmt.Sprintf("projection %s isn't stopped: it is at position %d", e.Projection, e.Position)
}

// WhileStopped calls f with the state of a stopped projection, which can't get over its event meanwhile: what f records
// about that is known to the projection before it tries again. *UnknownError, *RunningError, or what f returned.
func (q *Queries) WhileStopped(ctx context.Context, name string, f func(ProjectionStatus) error) error {
	at, err := q.p.place(name)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, q.p.config.Pool, func(tx pgx.Tx) error {
		// Whoever freezes here doesn't hold up the projection for long.
		_, err := tx.Exec(ctx, "SELECT set_config('idle_in_transaction_session_timeout', '10s', true)")
		if err != nil {
			return err
		}
		if _, err := loadCheckpoint(ctx, tx, at, "FOR UPDATE"); err != nil {
			return err
		}
		status, err := q.p.Status(ctx)
		if err != nil {
			return err
		}
		s := status[slices.IndexFunc(status, func(s ProjectionStatus) bool { return s.Name == name })]
		if s.StoppedPosition == 0 {
			return &RunningError{name, s.Cursor.Position}
		}
		if err := f(s); err != nil {
			return err
		}
		// Whoever waits for the row loads what is left out anew.
		_, err = tx.Exec(ctx, "UPDATE projections.checkpoints SET generation = generation + 1 WHERE name = $1", at.checkpoint())
		return err
	})
}
