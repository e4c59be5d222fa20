package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pipeops/pipeops/domain"
)

// checkpoint is how far a place has come.
type checkpoint struct {
	domain.Cursor
	generation int64   // of its tables
	skipped    []int64 // positions that it left out
	caughtUp   bool    // it was at the head before
}

// querier is a pool or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func loadCheckpoint(ctx context.Context, q querier, at place, lock string) (c checkpoint, err error) {
	err = q.QueryRow(ctx, "SELECT epoch, position, generation, skipped, caught_up_at IS NOT NULL FROM projections.checkpoints WHERE name = $1 "+lock,
		at.checkpoint()).Scan(&c.LogEpoch, &c.Position, &c.generation, &c.skipped, &c.caughtUp)
	if err != nil {
		return c, fmt.Errorf("load checkpoint %s: %w", at.checkpoint(), err)
	}
	return c, nil
}

// ProjectionStatus is how one projection stands.
type ProjectionStatus struct {
	Name            string        // "builds"
	Version         int           // of the projection: the same events give other rows in another one
	Table           string        // name with version: "builds_v1"
	Cursor          domain.Cursor // its checkpoint
	Behind          int64         // positions up to the head of the log
	BehindFor       time.Duration // since the first event that it hasn't seen was recorded
	MovedAt         time.Time     // when the checkpoint moved last
	CaughtUpAt      time.Time     // when it was at the head for the first time; zero: it is being built
	Skipped         []int64       // positions of events that it left out, because somebody decided so
	StoppedPosition int64         // of the event that it can't get over; 0: it runs
	StoppedEvent    string        // id of that event
	StoppedType     string
	StoppedError    string // why
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
	age, err := p.age(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]ProjectionStatus, len(p.models))
	for i, projection := range p.models {
		s := found[place{projection, ""}.checkpoint()]
		s.Name, s.Version, s.Table = projection.name, projection.version, place{projection, ""}.checkpoint()
		s.Behind, s.BehindFor = max(0, head.Position-s.Cursor.Position), age[s.Table]
		out[i] = s
	}
	return out, nil
}

// checkpoints gives all checkpoints by name with version.
func (p *Projector) checkpoints(ctx context.Context) (map[string]ProjectionStatus, error) {
	rows, err := p.config.Pool.Query(ctx, //nolint:rowserrcheck // ForEachRow does
		`SELECT name, epoch, position, moved_at, caught_up_at, skipped, stopped_position, stopped_event, stopped_type,
			stopped_error, stopped_at FROM projections.checkpoints`)
	out := map[string]ProjectionStatus{}
	if err == nil {
		var s ProjectionStatus
		var caughtUp, stopped *time.Time
		_, err = pgx.ForEachRow(rows, []any{
			&s.Table, &s.Cursor.LogEpoch, &s.Cursor.Position, &s.MovedAt, &caughtUp, &s.Skipped,
			&s.StoppedPosition, &s.StoppedEvent, &s.StoppedType, &s.StoppedError, &stopped,
		}, func() error {
			row := s
			row.Skipped = slices.Clone(s.Skipped)
			row.CaughtUpAt, row.StoppedAt = deref(caughtUp), deref(stopped)
			out[s.Table] = row
			return nil
		})
	}
	if isUndefined(err) {
		return nil, nil // no projector has ever run: the tables are not made yet
	}
	if err != nil {
		return nil, fmt.Errorf("read the checkpoints of the projections: %w", err)
	}
	return out, nil
}

// age gives, by name with version, how long ago the first event was recorded that a projection hasn't seen.
func (p *Projector) age(ctx context.Context) (map[string]time.Duration, error) {
	rows, err := p.config.Pool.Query(ctx, //nolint:rowserrcheck // ForEachRow does
		`SELECT c.name, greatest(clock_timestamp() - e.recorded_at, '0')
		FROM projections.checkpoints c JOIN pipeops.events e ON e.position = c.position + 1`)
	out := map[string]time.Duration{}
	if err == nil {
		var name string
		var age time.Duration
		_, err = pgx.ForEachRow(rows, []any{&name, &age}, func() error {
			out[name] = age
			return nil
		})
	}
	if isUndefined(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read how long the projections are behind: %w", err)
	}
	return out, nil
}

// isUndefined says whether a table isn't there.
func isUndefined(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "42P01"
}

// Late is how old an event may get before a read model that hasn't seen it is no longer near the head of the log. A
// burst of many thousand events is applied within it, a leader that froze is replaced within it.
const Late = 15 * time.Second

// Unready says why a process shouldn't be asked yet, "" when there is no reason: a version of a read model that was
// never at the head of the log is still being built, and one that hasn't seen what is older than late is held up, or
// nobody works on it.
//
// One that has stopped at an event is no reason. It stays so until somebody decides, and every other process would say
// the same: with none of them asked, pushes would be refused because of one bad row, where all else goes on.
func (s ProjectionStatus) Unready(late time.Duration) string {
	switch {
	case s.CaughtUpAt.IsZero():
		return fmt.Sprintf("%s: is being built, %d positions to go", s.Name, s.Behind)
	case s.StoppedPosition == 0 && s.BehindFor > late:
		return fmt.Sprintf("%s: %d positions behind for %s", s.Name, s.Behind, s.BehindFor.Round(time.Second/10))
	}
	return ""
}

// Standing gives how all projections stand, in a fixed order, whichever process keeps them.
func (q *Queries) Standing(ctx context.Context) ([]ProjectionStatus, error) { return q.p.Status(ctx) }
