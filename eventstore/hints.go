package eventstore

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// channel carries hints between processes: a position that the log has reached, or would have, had nothing been refused.
// They may be lost: the tail polls as well.
const (
	channel   = "pipeops_events"
	hintPause = 5 * time.Millisecond // between two hints; the first one goes at once
)

// hints decides which appends tell the other processes of themselves. A hint within the append's own transaction costs
// no flush, and one in some milliseconds is enough. Those that went without are told of by a hint apart, unless an append
// that carries one comes to its end soon. At its commit PostgreSQL lets one transaction with a notification through at a
// time, in all databases of a server.
type hints struct {
	owing chan struct{} // 1: an append went without

	mu   sync.Mutex
	last time.Time // when a hint was last begun
	owed bool      // something was appended since
}

func newHints() *hints { return &hints{owing: make(chan struct{}, 1)} }

// due says whether an append that begins now shall carry one.
func (h *hints) due() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.last) < hintPause {
		return false
	}
	h.last = time.Now()
	return true
}

// appended notes an append that has been committed, with a hint or without.
func (h *hints) appended(hinted bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.owed = !hinted; h.owed {
		signal(h.owing)
	}
}

// left is how long to wait for an append that carries what is owed: it is due after one pause, and should come soon.
func (h *hints) left() (wait time.Duration, owed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Until(h.last.Add(2 * hintPause)), h.owed
}

// settled notes a hint apart from appends.
func (h *hints) settled() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last, h.owed = time.Now(), false
}

// hintOthers sends what no append has carried.
func (s *Store) hintOthers(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.hints.owing:
		}
		wait, owed := s.hints.left()
		for ; owed && wait > 0 && context.Cause(ctx) == nil; wait, owed = s.hints.left() {
			pause(ctx, wait)
		}
		if !owed || context.Cause(ctx) != nil {
			continue
		}
		s.hints.settled() // before: what is appended meanwhile is owed
		_, err := s.pool.Exec(ctx, "SELECT pg_notify('"+channel+"', coalesce(max(position), 0)::text) FROM pipeops.events")
		if err != nil && context.Cause(ctx) == nil {
			s.config.Log.DebugContext(ctx, "a hint was not sent", "err", err)
		}
	}
}

// isHintRefused says that PostgreSQL keeps no more notifications, because somebody listens and doesn't take them. It then
// refuses the whole transaction.
func isHintRefused(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "54000"
}
