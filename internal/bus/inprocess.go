package bus

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Config sets up a bus within one process. The zero value is complete.
type Config struct {
	Log           *slog.Logger  // default: discarded
	MaxDeliveries int           // until a message is dead; default 8
	FirstWait     time.Duration // until a failed message comes again, doubled each time; default 250 ms
	LongestWait   time.Duration // default 15 s
	QueueBytes    int           // of bodies in one queue; publishing waits for room while it is full; default 64 MiB
}

// NewInProcess gives a bus for publishers and consumers of one process. What is
// published before a consumer comes is kept, but all ends with the process.
//
// Watermill's GoChannel was tried and left: it keeps no order, has no bound,
// repeats a failed message at once, and loses what no subscriber waits for.
func NewInProcess(c Config) Bus {
	if c.QueueBytes <= 0 {
		c.QueueBytes = 64 << 20
	}
	t := &memory{since: time.Now(), limit: c.QueueBytes, bound: map[route]*memoryQueue{}, closed: make(chan struct{})}
	for _, q := range queues {
		t.bind(q)
	}
	return newClient(t, c)
}

// memory is the transport within a process.
type memory struct {
	since  time.Time
	limit  int
	closed chan struct{}

	mu    sync.Mutex
	bound map[route]*memoryQueue
}

// bind declares q unless it is there.
func (t *memory) bind(q queue) *memoryQueue {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, from := range q.bindings() {
		if known := t.bound[from]; known != nil {
			return known
		}
	}
	made := &memoryQueue{queue: q, limit: t.limit, active: make(chan struct{}, 1), changed: make(chan struct{})}
	for _, from := range q.bindings() {
		t.bound[from] = made
	}
	return made
}

func (t *memory) unbind(q queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, from := range q.bindings() {
		delete(t.bound, from)
	}
}

func (t *memory) publish(ctx context.Context, r route, m Message) error {
	select {
	case <-t.closed:
		return errClosed
	default:
	}
	t.mu.Lock()
	q := t.bound[r]
	t.mu.Unlock()
	switch {
	case q == nil && r.needsQueue():
		return fmt.Errorf("%w: %w", ErrUnavailable, unroutable(r))
	case q == nil:
		return nil
	}
	// What comes back takes the place of what is being handled, so a full queue
	// takes it: else queue and handler would wait for each other.
	return q.push(ctx, m, r.exchange == returns, t.closed)
}

func (t *memory) consume(ctx context.Context, q queue, readers int, settle func(context.Context, Message) bool) error {
	from := t.bind(q)
	if q.kind == exclusive {
		defer t.unbind(q)
	}
	if q.single {
		select {
		case from.active <- struct{}{}:
			defer func() { <-from.active }()
		case <-ctx.Done():
			return nil
		}
	}
	return together(ctx, readers, func(ctx context.Context, _ int) error {
		for {
			m, ok := from.take(ctx)
			if !ok {
				return nil
			}
			if !settle(ctx, m) {
				from.giveBack(m)
			}
		}
	})
}

func (t *memory) connectedSince() (time.Time, bool) {
	select {
	case <-t.closed:
		return time.Time{}, false
	default:
		return t.since, true
	}
}

func (t *memory) close() error {
	close(t.closed)
	return nil
}

// memoryQueue is first in, first out.
type memoryQueue struct {
	queue
	limit  int           // bytes
	active chan struct{} // size 1: held by the single active consumer

	mu      sync.Mutex
	waiting []Message
	bytes   int           // of waiting
	changed chan struct{} // closed at the next change
}

// fleetingLimit is how many messages a fleeting queue keeps.
const fleetingLimit = 10_000

// overhead of a message in bytes, roughly: small ones need a bound too.
const overhead = 512

func weight(m Message) int { return len(m.Body) + overhead }

func (q *memoryQueue) push(ctx context.Context, m Message, force bool, closed <-chan struct{}) error {
	for {
		q.mu.Lock()
		if force || q.kind != kept || q.bytes == 0 || q.bytes+weight(m) <= q.limit {
			q.insert(len(q.waiting), m)
			if q.kind != kept && len(q.waiting) > fleetingLimit {
				q.removeFirst()
			}
			q.mu.Unlock()
			return nil
		}
		changed := q.changed
		q.mu.Unlock()
		select {
		case <-changed:
		case <-closed:
			return errClosed
		case <-ctx.Done():
			return fmt.Errorf("queue %s is full: %w: %w", q.name, ErrUnavailable, context.Cause(ctx))
		}
	}
}

// take gives the first message, waiting for one; false when ctx ended.
func (q *memoryQueue) take(ctx context.Context) (Message, bool) {
	for context.Cause(ctx) == nil {
		q.mu.Lock()
		if len(q.waiting) > 0 {
			m := q.removeFirst()
			q.mu.Unlock()
			return m, true
		}
		changed := q.changed
		q.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return Message{}, false
}

func (q *memoryQueue) giveBack(m Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.insert(0, m)
}

// insert, removeFirst and tell need the lock.
func (q *memoryQueue) insert(at int, m Message) {
	q.waiting = slices.Insert(q.waiting, at, m)
	q.bytes += weight(m)
	q.tell()
}

func (q *memoryQueue) removeFirst() Message {
	m := q.waiting[0]
	q.waiting[0] = Message{} // lets go of the body
	q.waiting = q.waiting[1:]
	q.bytes -= weight(m)
	q.tell()
	return m
}

func (q *memoryQueue) tell() {
	close(q.changed)
	q.changed = make(chan struct{})
}
