package eventstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
)

// appendLock is the one that pipeops.lock_log takes.
const appendLock = 7021798406534587747

// NotYetError says that a time lies ahead, by the database's clock: what will be recorded until then isn't known.
type NotYetError struct{ Time, Now time.Time }

func (e *NotYetError) Error() string {
	return fmt.Sprintf("%s lies ahead: the database's clock says %s", e.Time.UTC().Format(time.RFC3339Nano), e.Now.UTC().Format(time.RFC3339Nano))
}

// BeforeLogError says that nothing was recorded yet at a time. First is when the first event was, zero in an empty log.
type BeforeLogError struct{ Time, First time.Time }

func (e *BeforeLogError) Error() string {
	if e.First.IsZero() {
		return "nothing is recorded yet"
	}
	return fmt.Sprintf("the log begins at %s, after %s", e.First.UTC().Format(time.RFC3339Nano), e.Time.UTC().Format(time.RFC3339Nano))
}

// Times of recording never go back, so that the place is found by halving; no index has to be kept for it.
const findMoment = `
WITH RECURSIVE search (low, high, head) AS (
    SELECT 0::bigint, m.head, m.head FROM (SELECT coalesce(max(position), 0) AS head FROM pipeops.events) m
    UNION ALL
    SELECT CASE WHEN e.recorded_at <= $1 THEN e.position ELSE s.low END,
           CASE WHEN e.recorded_at <= $1 THEN s.high ELSE e.position - 1 END, s.head
    FROM search s JOIN pipeops.events e ON e.position = (s.low + s.high + 1) / 2 WHERE s.low < s.high
)
SELECT coalesce(e.log_epoch, 0), s.low, s.head, clock_timestamp()
FROM search s LEFT JOIN pipeops.events e ON e.position = s.low WHERE s.low = s.high`

// At gives the last place in the log that was recorded at or before t, to the microsecond. The same t gives the same
// place whenever it is asked for: an append under way that may still be recorded at or before t is waited for. Only a
// clock that is set back behind t lets more be recorded at or before it, if nothing had been recorded after t by then.
// Errors: *NotYetError, *BeforeLogError, or the database's.
func (s *Store) At(ctx context.Context, t time.Time) (domain.Cursor, error) {
	c, settled, err := moment(ctx, s.pool, t)
	if err == nil && !settled {
		err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock_shared($1)", int64(appendLock)); err != nil {
				return err
			}
			c, _, err = moment(ctx, tx, t)
			return err
		})
	}
	var known *NotYetError
	switch {
	case errors.As(err, &known):
		return domain.Cursor{}, err
	case err != nil:
		return domain.Cursor{}, fmt.Errorf("find the place in the log at %s: %w", t.UTC().Format(time.RFC3339Nano), err)
	case c.Position == 0:
		return domain.Cursor{}, s.beforeLog(ctx, t)
	}
	return c, nil
}

// moment is At as far as it can be seen now; settled says that something was recorded after t, so that nothing can
// come in before.
func moment(ctx context.Context, from interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, t time.Time,
) (c domain.Cursor, settled bool, err error) {
	var head int64
	var now time.Time
	t = t.Truncate(time.Microsecond)
	if err := from.QueryRow(ctx, findMoment, t).Scan(&c.LogEpoch, &c.Position, &head, &now); err != nil {
		return c, false, err
	}
	if !t.Before(now) {
		return c, false, &NotYetError{t, now}
	}
	return c, c.Position < head, nil
}

func (s *Store) beforeLog(ctx context.Context, t time.Time) error {
	var first time.Time
	err := s.pool.QueryRow(ctx, "SELECT recorded_at FROM pipeops.events ORDER BY position LIMIT 1").Scan(&first)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("look up the first event: %w", err)
	}
	return &BeforeLogError{t, first}
}
