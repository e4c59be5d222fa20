package projections

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
)

// replayLock is held by whoever replays, for as long as its connection lives.
const replayLock = tableLock + 1

// Replayed tells how far a replay is.
type Replayed struct {
	Projection string
	Position   int64
	Goal       int64
}

// Rebuilt says what a replay found.
type Rebuilt struct {
	Projection string
	Version    int
	Cursor     domain.Cursor // up to where both were compared
	Rows       int64         // of the replay, history among them
	Checksum   string        // of these, hexadecimal: the same log gives the same one anywhere
	InUse      string        // checksum of the rows in use, as of the same position
	Different  int64         // rows and history rows that only one of both has; 0 unless someone tampered
	Replaced   bool          // the replay is in use now
}

// BusyError says that somebody else replays: it is done one at a time.
type BusyError struct{ Projection string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("replay of projection %s: another replay is under way", e.Projection)
}

// Verify replays a projection beside the one in use, and compares them, rows and history: as of the position where the
// one in use stood when it began. Nothing is changed, and nobody waits. progress may be nil.
// Errors: *UnknownError, *BusyError, and whatever stops the replay.
func (p *Projector) Verify(ctx context.Context, name string, progress func(Replayed)) (Rebuilt, error) {
	return p.replay(ctx, name, progress, func(context.Context, *run) (bool, error) { return false, nil })
}

// Rebuild is Verify, and then puts what it made in the place of what was in use, in one transaction: readers see either.
// The projection goes on meanwhile. What came with an error was made all the same when it says that it was replaced.
func (p *Projector) Rebuild(ctx context.Context, name string, progress func(Replayed)) (Rebuilt, error) {
	return p.replay(ctx, name, progress, p.replace)
}

func (p *Projector) replay(ctx context.Context, name string, progress func(Replayed), then func(context.Context, *run) (bool, error)) (Rebuilt, error) {
	current, err := p.place(name)
	if err != nil {
		return Rebuilt{}, err
	}
	conn, err := p.config.Pool.Acquire(ctx)
	if err != nil {
		return Rebuilt{}, fmt.Errorf("replay projection %s: %w", name, err)
	}
	defer conn.Release()
	var mine bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(replayLock)).Scan(&mine); err != nil {
		return Rebuilt{}, fmt.Errorf("replay projection %s: %w", name, err)
	}
	if !mine {
		return Rebuilt{}, &BusyError{name}
	}
	defer conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", int64(replayLock)) //nolint:errcheck // a lost connection frees it as well
	rebuilt, err := p.beside(ctx, current, progress, then)
	if err != nil {
		return rebuilt, fmt.Errorf("replay projection %s: %w", name, err)
	}
	p.config.Log.InfoContext(ctx, "projection was replayed", "projection", name, "position", rebuilt.Cursor.Position, "different", rebuilt.Different)
	return rebuilt, nil
}

// beside replays a projection into tables of its own, compares, and lets then do the rest, which says whether it put them
// in the place of those in use.
func (p *Projector) beside(ctx context.Context, current place, progress func(Replayed), then func(context.Context, *run) (bool, error)) (out Rebuilt, err error) {
	shadow := place{current.projection, shadowSuffix}
	if err := p.forget(ctx, shadow); err != nil { // what a replay has left that was killed
		return out, err
	}
	if err := create(ctx, p.config.Pool, p.process, shadow); err != nil {
		return out, err
	}
	defer func() {
		grace, cancel := afterwards(ctx)
		defer cancel()
		err = errors.Join(err, p.forget(grace, shadow))
	}()
	goal, err := loadCheckpoint(ctx, p.config.Pool, current, "")
	if err != nil {
		return out, err
	}
	r, err := p.run(ctx, shadow)
	if err != nil {
		return out, err
	}
	if progress != nil {
		r.moved = func(c domain.Cursor) { progress(Replayed{current.name, c.Position, goal.Position}) }
	}
	if err := r.advance(ctx, goal.Cursor); err != nil {
		return out, err
	}
	if err := r.finish(ctx); err != nil {
		return out, err
	}
	out = Rebuilt{Projection: current.name, Version: current.version, Cursor: r.Cursor}
	if err := p.compare(ctx, current, shadow, &out); err != nil {
		return out, err
	}
	out.Replaced, err = then(ctx, r)
	return out, err
}

var errSlowCleanup = errors.New("the database took too long to end the replay")

// afterwards is for what must be done also when whoever waited has left.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), 10*time.Second, errSlowCleanup)
}

func (p *Projector) forget(ctx context.Context, shadow place) error {
	return pgx.BeginFunc(ctx, p.config.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM pipeops.projection_uses WHERE projection = $1", shadow.checkpoint()); err != nil {
			return err
		}
		return drop(ctx, tx, shadow.checkpoint())
	})
}

// replace puts a replay in the place of what is in use, and says whether it is there, also beside an error.
func (p *Projector) replace(ctx context.Context, r *run) (done bool, err error) {
	current := place{r.at.projection, ""}
	for !done {
		// What has come meanwhile is applied before anybody has to wait.
		goal, err := loadCheckpoint(ctx, p.config.Pool, current, "")
		if err != nil {
			return false, err
		}
		if err := r.advance(ctx, goal.Cursor); err != nil {
			return false, err
		}
		if done, err = p.swap(ctx, r, current); err != nil {
			done, unknown := p.swapped(ctx, r.at)
			return done, errors.Join(err, unknown)
		}
	}
	return true, nil
}

// swapped says whether a replay was put in its place by a transaction that gave an error: the commit may have been
// answered to nobody. One that is still under way holds the table, and is waited for.
func (p *Projector) swapped(ctx context.Context, fresh place) (bool, error) {
	grace, cancel := afterwards(ctx)
	defer cancel()
	_, err := p.config.Pool.Exec(grace, "SELECT FROM "+quoted(fresh.table(fresh.tables[0]))+" LIMIT 0")
	if isUndefined(err) {
		return true, nil // it has the other name
	}
	return false, err
}

// swap holds the projection in use at its checkpoint, brings the replay there, and renames. It is not done when that is
// too far away.
func (p *Projector) swap(ctx context.Context, r *run, current place) (done bool, err error) {
	err = pgx.BeginFunc(ctx, p.config.Pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "SELECT set_config('idle_in_transaction_session_timeout', '10s', true)")
		if err != nil {
			return err
		}
		goal, err := loadCheckpoint(ctx, tx, current, "FOR UPDATE")
		if err != nil {
			return err
		}
		if goal.Position-r.Position > nearHead {
			return nil
		}
		if err := r.advance(ctx, goal.Cursor); err != nil {
			return err
		}
		if err := exchange(ctx, tx, current, r.at); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE projections.checkpoints c SET generation = c.generation + 1, skipped = s.skipped
			FROM projections.checkpoints s WHERE c.name = $1 AND s.name = $2`, current.checkpoint(), r.at.checkpoint())
		done = err == nil
		return err
	})
	return done, err
}

// exchange puts fresh tables where the current ones are. The checkpoint stays as it is.
func exchange(ctx context.Context, tx pgx.Tx, current, fresh place) error {
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
	return nil
}

// restart empties a read model that has seen a log which is no more: the database was restored.
func (p *Projector) restart(ctx context.Context, at place, cause error) {
	p.config.Log.WarnContext(ctx, "the log was restored: the projection begins again", "projection", at.name, "err", cause)
	err := pgx.BeginFunc(ctx, p.config.Pool, func(tx pgx.Tx) error {
		from, err := loadCheckpoint(ctx, tx, at, "FOR UPDATE")
		if err != nil {
			return err
		}
		if !isGone(p.config.Store.Check(ctx, from.Cursor)) {
			return nil // another process has begun again already
		}
		_, err = tx.Exec(ctx, `UPDATE projections.checkpoints SET epoch = 0, position = 0, generation = generation + 1, skipped = '{}'
			WHERE name = $1`, at.checkpoint())
		if err != nil {
			return err
		}
		return at.each(ctx, tx, "TRUNCATE $table, $history")
	})
	if err != nil {
		p.config.Log.WarnContext(ctx, "projection can't begin again yet", "projection", at.name, "err", err)
		pause(ctx, time.Second)
	}
}
