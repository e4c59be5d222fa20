package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

const rebuildSuffix = "_rebuild"

// rebuildLock is held by whoever rebuilds, for as long as its connection lives.
const rebuildLock = tableLock + 1

// Rebuilt says what a rebuild found.
type Rebuilt struct {
	Cursor    domain.Cursor // up to where both were compared
	Different int64         // rows and history rows that only the old or only the new tables had; 0 unless someone tampered
}

// Rebuild makes a read model anew from the log, beside the one in use, and puts it in its place in one transaction:
// readers see either. The projection goes on meanwhile.
func (p *Projector) Rebuild(ctx context.Context, name string) (Rebuilt, error) {
	projection, err := projectionNamed(name)
	if err != nil {
		return Rebuilt{}, err
	}
	conn, err := p.config.Pool.Acquire(ctx)
	if err != nil {
		return Rebuilt{}, fmt.Errorf("rebuild %s: %w", name, err)
	}
	defer conn.Release()
	var mine bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(rebuildLock)).Scan(&mine); err != nil {
		return Rebuilt{}, fmt.Errorf("rebuild %s: %w", name, err)
	}
	if !mine {
		return Rebuilt{}, fmt.Errorf("rebuild %s: another rebuild is under way", name)
	}
	defer conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", int64(rebuildLock)) //nolint:errcheck // a lost connection frees it as well
	r, err := p.rebuild(ctx, place{projection, ""}, place{projection, rebuildSuffix})
	if err != nil {
		return Rebuilt{}, fmt.Errorf("rebuild %s: %w", name, err)
	}
	p.config.Log.InfoContext(ctx, "projection was rebuilt", "projection", name, "position", r.Cursor.Position, "different", r.Different)
	return r, nil
}

func (p *Projector) rebuild(ctx context.Context, current, fresh place) (r Rebuilt, err error) {
	forget := func() error { // what a rebuild that was killed has left
		return pgx.BeginFunc(ctx, p.config.Pool, func(tx pgx.Tx) error { return drop(ctx, tx, fresh) })
	}
	if err := forget(); err != nil {
		return r, err
	}
	if err := create(ctx, p.config.Pool, fresh); err != nil {
		return r, err
	}
	goal, err := loadCheckpoint(ctx, p.config.Pool, current.checkpoint())
	if err != nil {
		return r, err
	}
	cursor, err := p.replay(ctx, fresh, domain.Cursor{}, goal.Position)
	if err != nil {
		return r, err
	}
	err = pgx.BeginFunc(ctx, p.config.Pool, func(tx pgx.Tx) error {
		// From here on the one in use stands still, and a few events bring the fresh one to where it is.
		var old domain.Cursor
		err := tx.QueryRow(ctx, "SELECT epoch, position FROM projections.checkpoints WHERE name = $1 FOR UPDATE",
			current.checkpoint()).Scan(&old.LogEpoch, &old.Position)
		if err != nil {
			return err
		}
		if cursor, err = p.replay(ctx, fresh, cursor, old.Position); err != nil {
			return err
		}
		r.Cursor = cursor
		if r.Different, err = compare(ctx, tx, current, fresh); err != nil {
			return err
		}
		return replace(ctx, tx, current, fresh)
	})
	return r, err
}

// replay applies the log from a cursor up to a position to a place of its own.
func (p *Projector) replay(ctx context.Context, at place, from domain.Cursor, until int64) (domain.Cursor, error) {
	if until <= from.Position {
		return from, nil
	}
	const size = 256
	batch := eventstore.Batch{Cursor: from}
	step := func() error {
		if len(batch.Events) == 0 {
			return nil
		}
		err := p.step(ctx, at, from, batch)
		from, batch.Events = batch.Cursor, nil
		return err
	}
	for e, err := range p.config.Store.Read(ctx, eventstore.Query{After: from, Until: until}) {
		if err != nil {
			return from, err
		}
		batch.Events, batch.Cursor = append(batch.Events, e), e.Cursor
		if len(batch.Events) == size {
			if err := step(); err != nil {
				return from, err
			}
		}
	}
	return from, step()
}

// compare counts the rows that differ.
func compare(ctx context.Context, tx pgx.Tx, a, b place) (different int64, err error) {
	for _, t := range a.tables {
		for _, pair := range [][3]string{
			{quoted(a.table(t)), quoted(b.table(t)), "0"},
			{quoted(a.history(t)), quoted(b.history(t)), "to_position"},
		} {
			columns := "SELECT key, project, lookup, place, from_position, " + pair[2] + ", row::text FROM "
			var n int64
			err := tx.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM (
				(%[1]s%[2]s EXCEPT ALL %[1]s%[3]s) UNION ALL (%[1]s%[3]s EXCEPT ALL %[1]s%[2]s)) d`, columns, pair[0], pair[1])).Scan(&n)
			if err != nil {
				return 0, fmt.Errorf("compare %s: %w", t, err)
			}
			different += n
		}
	}
	return different, nil
}

// replace puts fresh where current is. The checkpoint stays as it is.
func replace(ctx context.Context, tx pgx.Tx, current, fresh place) error {
	for _, t := range current.tables {
		for _, pair := range [][2]string{{current.table(t), fresh.table(t)}, {current.history(t), fresh.history(t)}} {
			if _, err := tx.Exec(ctx, "DROP TABLE "+quoted(pair[0])); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "ALTER TABLE "+quoted(pair[1])+" RENAME TO "+pgx.Identifier{pair[0]}.Sanitize()); err != nil {
				return err
			}
		}
	}
	_, err := tx.Exec(ctx, "DELETE FROM projections.checkpoints WHERE name = $1", fresh.checkpoint())
	return err
}

// restart empties a read model that has seen a log which is no more: the database was restored.
func (p *Projector) restart(ctx context.Context, at place, cause error) {
	p.config.Log.WarnContext(ctx, "the log was restored: the projection begins again", "projection", at.name, "err", cause)
	err := pgx.BeginFunc(ctx, p.config.Pool, func(tx pgx.Tx) error {
		var cursor domain.Cursor
		err := tx.QueryRow(ctx, "SELECT epoch, position FROM projections.checkpoints WHERE name = $1 FOR UPDATE",
			at.checkpoint()).Scan(&cursor.LogEpoch, &cursor.Position)
		if err != nil {
			return err
		}
		if !isGone(p.config.Store.Check(ctx, cursor)) {
			return nil // another process has begun again already
		}
		if _, err := tx.Exec(ctx, "UPDATE projections.checkpoints SET epoch = 0, position = 0 WHERE name = $1", at.checkpoint()); err != nil {
			return err
		}
		for _, t := range at.tables {
			if _, err := tx.Exec(ctx, "TRUNCATE "+quoted(at.table(t))+", "+quoted(at.history(t))); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		p.config.Log.WarnContext(ctx, "projection can't begin again yet", "projection", at.name, "err", err)
		pause(ctx, time.Second)
	}
}
