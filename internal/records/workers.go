package records

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
)

// Worker is a process that builds or deploys, as its heartbeats tell.
type Worker struct {
	ID          domain.WorkerID
	Incarnation string
	Class       string // "build" or "deploy"
	Slots       int
	Stopping    bool
	LastSeen    time.Time
	Running     []domain.AttemptID
}

// Workers gives the newest incarnation of every worker that was heard of within d, by class and id.
func (c *Claims) Workers(ctx context.Context, d time.Duration) ([]Worker, error) {
	return list(ctx, c.pool, "list workers", pgx.RowToStructByPos[Worker], `SELECT worker, incarnation, class, slots, stopping, last_seen,
			ARRAY(SELECT attempt FROM pipeops.claim_attempts a WHERE a.incarnation = newest.incarnation
				AND a.renewed_at > clock_timestamp() - $1::interval ORDER BY attempt)
		FROM (SELECT DISTINCT ON (worker) * FROM pipeops.claims ORDER BY worker, since DESC) newest
		WHERE last_seen > clock_timestamp() - $1::interval ORDER BY class, worker`, d)
}
