package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// use says that a process uses a place.
func use(ctx context.Context, tx pgx.Tx, process string, at place) error {
	_, err := tx.Exec(ctx, `INSERT INTO pipeops.projection_uses (projection, process) VALUES ($1, $2)
		ON CONFLICT (projection, process) DO UPDATE SET seen_at = clock_timestamp()`, at.checkpoint(), process)
	if err != nil {
		return fmt.Errorf("say that %s is used: %w", at.checkpoint(), err)
	}
	return nil
}

// tend shows that this process uses its read models, and drops those that no process uses any more.
func (p *Projector) tend(ctx context.Context) {
	tick := time.NewTicker(p.config.Unused / 6)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := create(ctx, p.config.Pool, p.process, p.places()...) // also what was dropped while this process was frozen
		if err == nil {
			err = p.dropUnused(ctx)
		}
		if err != nil && context.Cause(ctx) == nil {
			p.config.Log.WarnContext(ctx, "unused read models can't be looked for", "err", err)
		}
	}
}

// dropUnused drops the read models, of whatever version, that no process was seen to use lately, and what replays have
// left that were killed.
func (p *Projector) dropUnused(ctx context.Context) error {
	var names []string
	err := pgx.BeginFunc(ctx, p.config.Pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1), set_config('lock_timeout', '2s', true)", int64(tableLock))
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM pipeops.projection_uses WHERE seen_at < clock_timestamp() - $1::interval", p.config.Unused); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT name FROM projections.checkpoints WHERE CASE
			WHEN name LIKE '%'||$1 THEN pg_try_advisory_xact_lock($2)
			ELSE name NOT IN (SELECT projection FROM pipeops.projection_uses) END ORDER BY name`, shadowSuffix, int64(replayLock))
		if err != nil {
			return err
		}
		if names, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return err
		}
		for _, name := range names {
			if err := drop(ctx, tx, name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("drop unused read models: %w", err)
	}
	for _, name := range names {
		p.config.Log.InfoContext(ctx, "read model is dropped: no process uses it", "table", name)
	}
	return nil
}
