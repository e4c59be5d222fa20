package records

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	leaderPing   = 2 * time.Second  // how often a leader shows that it lives, and looks whether it still leads
	leaderFrozen = 10 * time.Second // after that silence the server ends the leader's session, and the next one leads
	leaderRetry  = time.Second      // before the lease is asked for again, doubled up to leaderPatience for a leader that fails again and again
	// leaderPatience is short: after an outage all shall go on soon.
	leaderPatience = 5 * time.Second
)

// Leaders lets one process at a time do a thing.
type Leaders struct {
	pool *pgxpool.Pool
	log  *slog.Logger
}

// NewLeaders gives the leadership that sessions of this database hold.
func NewLeaders(pool *pgxpool.Pool, log *slog.Logger) *Leaders { return &Leaders{pool, log} }

// errDeposed is the cause with which a former leader's context ends.
var errDeposed = errors.New("another process may lead now: the connection to the database was lost")

// Lead waits until this process leads in name and runs run; it gives nil once run did or ctx has ended. When run gives
// an error, or the leader's connection is lost (then run's ctx ends), the lease is given up, so that another process can
// try what this one can't, and Lead asks for it again after a pause. The next leader begins at once where
// the old one's process died or stopped, within seconds where it froze. Since a frozen one wakes up without knowing
// that it was deposed, what run does must be fenced, by a cursor's move for instance.
func (l *Leaders) Lead(ctx context.Context, name string, run func(ctx context.Context) error) error {
	for pause := leaderRetry; ; {
		began := time.Now()
		deposed, err := l.leadOnce(ctx, name, run)
		if context.Cause(ctx) != nil || err == nil {
			return nil //nolint:nilerr // what run met on the way out is no news
		}
		if deposed || time.Since(began) > leaderPatience {
			pause = leaderRetry
		}
		l.log.WarnContext(ctx, "not leading for now", "name", name, "err", err, "again_in", pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		pause = min(2*pause, leaderPatience)
	}
}

// leadOnce leads at most once. deposed says that err is the connection's, not what run returned.
func (l *Leaders) leadOnce(ctx context.Context, name string, run func(ctx context.Context) error) (deposed bool, err error) {
	conn, err := l.acquire(ctx, name)
	if err != nil {
		return true, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	held := make(chan error, 1)
	go func() {
		err := hold(ctx, conn)
		cancel(errDeposed)
		held <- errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}()
	err = run(ctx)
	deposed = errors.Is(context.Cause(ctx), errDeposed)
	cancel(nil)
	if lost := <-held; deposed {
		return true, fmt.Errorf("lead %s: %w", name, lost)
	}
	return false, err
}

// acquire waits for the lock on a connection of its own, outside of the pool: it is kept for as long as we lead.
func (l *Leaders) acquire(ctx context.Context, name string) (*pgx.Conn, error) {
	settings := l.pool.Config().ConnConfig
	settings.RuntimeParams["application_name"] = "pipeops leader of " + name
	settings.RuntimeParams["idle_session_timeout"] = strconv.FormatInt(leaderFrozen.Milliseconds(), 10)
	settings.RuntimeParams["statement_timeout"], settings.RuntimeParams["lock_timeout"] = "0", "0" // it may take for ever
	conn, err := pgx.ConnectConfig(ctx, settings)
	if err != nil {
		return nil, fmt.Errorf("lead %s: %w", name, err)
	}
	_, err = conn.Exec(ctx, "SELECT pg_advisory_lock(hashtext('pipeops/leader'), hashtext($1))", name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lead %s: %w", name, err), conn.Close(context.WithoutCancel(ctx)))
	}
	return conn, nil
}

// hold keeps the session alive, and returns when it is lost or ctx has ended.
func hold(ctx context.Context, conn *pgx.Conn) error {
	for {
		// No notification is awaited: reading notices at once when the connection breaks.
		wait, cancel := context.WithTimeoutCause(ctx, leaderPing, errPing)
		_, err := conn.WaitForNotification(wait)
		cancel()
		if conn.IsClosed() || context.Cause(ctx) != nil {
			return err
		}
		ping, cancel := context.WithTimeoutCause(ctx, leaderFrozen, errPing)
		err = conn.Ping(ping)
		cancel()
		if err != nil {
			return err
		}
	}
}

var errPing = errors.New("time to ask the database whether it is still there")
