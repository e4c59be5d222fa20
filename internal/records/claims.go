package records

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pipeops/pipeops/domain"
)

// aliveFor is how long a worker's slots count after its last heartbeat; it sends one every 2 s.
const aliveFor = 10 * time.Second

// Claims keeps what workers' heartbeats tell: their slots, and the leases of the attempts that they run. All times are
// the database's, so that the clocks of workers and of several `serve` don't matter.
type Claims struct{ pool *pgxpool.Pool }

// NewClaims gives the tables of workers and leases.
func NewClaims(pool *pgxpool.Pool) *Claims { return &Claims{pool} }

// Beat is what a verified heartbeat says.
type Beat struct {
	Worker      domain.WorkerID
	Incarnation string // new at each start of the worker, and greater (UUIDv7): an old heartbeat sent again ends nothing
	Class       string
	Slots       int // in all
	Stopping    bool
	Running     []domain.AttemptID // whose leases it renews
}

// Grant begins the lease of an attempt.
func (c *Claims) Grant(ctx context.Context, attempt domain.AttemptID, worker domain.WorkerID, incarnation string) error {
	return exec(ctx, c.pool, fmt.Sprintf("begin the lease of %s for worker %s", attempt, worker), renew,
		[]domain.AttemptID{attempt}, worker, incarnation)
}

const renew = `INSERT INTO pipeops.claim_attempts (attempt, worker, incarnation)
	SELECT attempt, $2, $3 FROM unnest($1::text[]) AS a (attempt)
	ON CONFLICT (attempt) DO UPDATE SET worker = excluded.worker, incarnation = excluded.incarnation, renewed_at = clock_timestamp()`

// Beat notes a heartbeat and renews the leases that it names. It gives, once, the attempts that earlier incarnations of
// the worker still held when this one was first heard of: their process is gone.
func (c *Claims) Beat(ctx context.Context, b Beat) (orphans []domain.AttemptID, err error) {
	tried := "heartbeat of worker " + string(b.Worker)
	err = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		var isNew bool
		err := tx.QueryRow(ctx, `INSERT INTO pipeops.claims AS c (incarnation, worker, class, slots, stopping)
			VALUES ($1, $2, $3, $4, $5) ON CONFLICT (incarnation) DO UPDATE
			SET slots = excluded.slots, stopping = excluded.stopping, last_seen = clock_timestamp()
			RETURNING xmax = 0`, b.Incarnation, b.Worker, b.Class, b.Slots, b.Stopping).Scan(&isNew)
		if err != nil {
			return err
		}
		if isNew {
			if orphans, err = takeOver(ctx, tx, b); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, renew, b.Running, b.Worker, b.Incarnation)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tried, err)
	}
	return orphans, nil
}

// takeOver ends the leases of a worker's earlier incarnations, and forgets what is long over.
func takeOver(ctx context.Context, tx pgx.Tx, b Beat) ([]domain.AttemptID, error) {
	_, err := tx.Exec(ctx, "DELETE FROM pipeops.claims WHERE last_seen < clock_timestamp() - interval '1 day'")
	if err == nil {
		_, err = tx.Exec(ctx, "DELETE FROM pipeops.claim_attempts WHERE renewed_at < clock_timestamp() - interval '1 day'")
	}
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, "DELETE FROM pipeops.claim_attempts WHERE worker = $1 AND incarnation < $2 RETURNING attempt",
		b.Worker, b.Incarnation)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[domain.AttemptID])
}

// Slots counts the slots of the live workers of each class, busy ones included.
func (c *Claims) Slots(ctx context.Context) (map[string]int, error) {
	type class struct {
		Name  string
		Slots int
	}
	classes, err := list(ctx, c.pool, "count slots", pgx.RowToStructByPos[class], `SELECT class, sum(slots)::integer
		FROM (SELECT DISTINCT ON (worker) * FROM pipeops.claims ORDER BY worker, incarnation DESC) newest
		WHERE last_seen > clock_timestamp() - $1::interval AND NOT stopping GROUP BY class`, aliveFor)
	slots := map[string]int{}
	for _, class := range classes {
		slots[class.Name] = class.Slots
	}
	return slots, err
}

// Silent gives those of the attempts whose worker has not been heard of for longer than d. For an attempt without a
// lease (its grant was decided, then the process died) the time begins now.
func (c *Claims) Silent(ctx context.Context, attempts []domain.AttemptID, d time.Duration) ([]domain.AttemptID, error) {
	const tried = "look for silent workers"
	err := exec(ctx, c.pool, tried, `INSERT INTO pipeops.claim_attempts (attempt, worker, incarnation)
		SELECT attempt, '', '' FROM unnest($1::text[]) AS a (attempt) ON CONFLICT DO NOTHING`, attempts)
	if err != nil {
		return nil, err
	}
	return list(ctx, c.pool, tried, pgx.RowTo[domain.AttemptID], `SELECT attempt FROM pipeops.claim_attempts
		WHERE attempt = ANY ($1) AND renewed_at < clock_timestamp() - $2::interval ORDER BY attempt`, attempts, d)
}
