package projections

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pipeops/pipeops/domain"
)

func loadCheckpoint(ctx context.Context, pool *pgxpool.Pool, name string) (c domain.Cursor, err error) {
	err = pool.QueryRow(ctx, "SELECT epoch, position FROM projections.checkpoints WHERE name = $1", name).Scan(&c.LogEpoch, &c.Position)
	if err != nil {
		return c, fmt.Errorf("load checkpoint %s: %w", name, err)
	}
	return c, nil
}

// moveCheckpoint is the fence: whoever comes second with the same from waits until the first has committed, and then
// finds it elsewhere. It takes the row's lock, so all that follows in the transaction is alone.
func moveCheckpoint(ctx context.Context, tx pgx.Tx, name string, from, to domain.Cursor) error {
	tag, err := tx.Exec(ctx, `UPDATE projections.checkpoints SET epoch = $4, position = $5, moved_at = clock_timestamp(),
		stopped_position = 0, stopped_event = '', stopped_error = '', stopped_at = NULL
		WHERE name = $1 AND epoch = $2 AND position = $3`, name, from.LogEpoch, from.Position, to.LogEpoch, to.Position)
	if err != nil {
		return fmt.Errorf("move checkpoint %s from %s to %s: %w", name, from, to, err)
	}
	if tag.RowsAffected() == 0 {
		return errOvertaken
	}
	return nil
}

// stop says in the checkpoint's row what a projection can't get over, unless another process did.
func (p *Projector) stop(ctx context.Context, at place, stopped *stoppedError) {
	tag, err := p.config.Pool.Exec(ctx, `UPDATE projections.checkpoints
		SET stopped_position = $2::bigint, stopped_event = $3, stopped_error = $4, stopped_at = coalesce(stopped_at, clock_timestamp())
		WHERE name = $1 AND position = $2::bigint - 1`,
		at.checkpoint(), stopped.event.Cursor.Position, stopped.event.ID, stopped.err.Error())
	if err == nil && tag.RowsAffected() == 0 {
		return
	}
	p.config.Log.ErrorContext(ctx, "projection has stopped at an event that it can't apply",
		"projection", at.name, "position", stopped.event.Cursor.Position, "err", stopped.err)
	if err != nil {
		p.config.Log.WarnContext(ctx, "the stop of a projection isn't recorded", "projection", at.name, "err", err)
	}
}

// ProjectionStatus is how one projection stands.
type ProjectionStatus struct {
	Name            string        // "builds"
	Table           string        // name with version: "builds_v1"
	Cursor          domain.Cursor // its checkpoint
	Behind          int64         // positions up to the head of the log
	MovedAt         time.Time     // when the checkpoint moved last
	StoppedPosition int64         // of the event that it can't get over; 0: it runs
	StoppedEvent    string        // id of that event
	StoppedError    string        // why
	StoppedAt       time.Time
}

// Status gives how all projections stand, in a fixed order.
func (p *Projector) Status(ctx context.Context) ([]ProjectionStatus, error) {
	found, err := p.checkpoints(ctx)
	if err != nil {
		return nil, err
	}
	head, err := p.config.Store.Head(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]ProjectionStatus, len(all))
	for i, projection := range all {
		s := found[place{projection, ""}.checkpoint()]
		s.Name, s.Table = projection.name, place{projection, ""}.checkpoint()
		s.Behind = max(0, head.Position-s.Cursor.Position)
		out[i] = s
	}
	return out, nil
}

// checkpoints gives all checkpoints by name with version.
func (p *Projector) checkpoints(ctx context.Context) (map[string]ProjectionStatus, error) {
	rows, err := p.config.Pool.Query(ctx, //nolint:rowserrcheck // ForEachRow does
		`SELECT name, epoch, position, moved_at, stopped_position, stopped_event,
		stopped_error, stopped_at FROM projections.checkpoints`)
	out := map[string]ProjectionStatus{}
	if err == nil {
		var s ProjectionStatus
		var stoppedAt *time.Time
		_, err = pgx.ForEachRow(rows, []any{
			&s.Table, &s.Cursor.LogEpoch, &s.Cursor.Position, &s.MovedAt, &s.StoppedPosition, &s.StoppedEvent, &s.StoppedError, &stoppedAt,
		}, func() error {
			s.StoppedAt = deref(stoppedAt)
			out[s.Table] = s
			return nil
		})
	}
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "42P01" {
		return nil, nil // no projector has ever run: the tables are not made yet
	}
	if err != nil {
		return nil, fmt.Errorf("read the checkpoints of the projections: %w", err)
	}
	return out, nil
}

// Lag gives, by name, how many positions each projection is behind the log.
func (p *Projector) Lag(ctx context.Context) (map[string]int64, error) {
	status, err := p.Status(ctx)
	lag := map[string]int64{}
	for _, s := range status {
		lag[s.Name] = s.Behind
	}
	return lag, err
}

// marks are where this process knows the checkpoints to be, with a way to wait for them.
type marks struct {
	mu      sync.Mutex
	cursors map[string]domain.Cursor
	moves   map[string]uint64 // how often each has moved
	changed chan struct{}     // closed, and replaced, when one moves
}

func newMarks() *marks {
	return &marks{cursors: map[string]domain.Cursor{}, moves: map[string]uint64{}, changed: make(chan struct{})}
}

func (m *marks) reach(name string, cursor domain.Cursor) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at, here := m.cursors[name]; here && at == cursor {
		return
	}
	m.cursors[name] = cursor
	m.moves[name]++
	close(m.changed)
	m.changed = make(chan struct{})
}

// of gives a projection's checkpoint, if this process keeps it, and what is closed when that may have changed.
func (m *marks) of(name string) (cursor domain.Cursor, here bool, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cursor, here = m.cursors[name]
	return cursor, here, m.changed
}

// count gives how often any of these has moved, and what is closed when that may have changed.
func (m *marks) count(names []string) (moves uint64, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range names {
		moves += m.moves[n]
	}
	return moves, m.changed
}
