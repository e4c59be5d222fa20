package eventstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pipeops/pipeops/domain"
)

const (
	commitWithin = 30 * time.Second // then the connection counts as lost
	slowCommit   = 2 * time.Second  // then the log says who is in the way
	firstBackoff = 20 * time.Millisecond
	lastBackoff  = 2 * time.Second
	gatherPause  = 200 * time.Microsecond // longer than callers need to come back; Go may make up to a millisecond of it
	gatherEach   = 4 * time.Microsecond   // for each of them, as they come one after the other
	maxMisses    = 6                      // then one batch in 63 waits, to see whether callers come back again
	cancelWithin = 5 * time.Second
)

var errCommitTooLong = errors.New("no answer from the database for " + commitWithin.String())

// committer gathers the appends of all goroutines: while one batch is in flight, the next one fills up. Who comes while
// nothing is in flight sends its batch itself, which saves two switches between goroutines; all else is run's.
type committer struct {
	config    Config
	settings  *pgx.ConnConfig
	hints     *hints
	committed func()        // called after each commit; must not block
	wake      chan struct{} // 1: that something waits is enough to know
	closing   chan struct{}
	done      chan struct{}
	turn      chan struct{} // 1: who has put something in may use conn
	conn      *pgx.Conn     // nil when lost
	versions  versions
	columns   columns
	wire      []byte        // the statement in flight
	crowd     int           // how many were in the batch or behind it when one was last answered
	back      chan struct{} // 1: the crowd that gather waits for is there
	patience  *time.Timer
	misses    int            // how often in a row gather waited in vain
	skips     int            // so many batches more leave without waiting
	overflows bool           // more waited than went into the last batch
	ending    sync.WaitGroup // of lost connections

	mu      sync.Mutex
	queue   []*request
	awaited int       // how many gather waits for; 0: it doesn't
	taken   footprint // of the batch that is being taken
	closed  bool
}

func newCommitter(config Config, settings *pgx.ConnConfig, hints *hints, committed func()) *committer {
	return &committer{
		config: config, settings: settings, hints: hints, committed: committed,
		wake: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}), turn: make(chan struct{}, 1),
		back: make(chan struct{}, 1), patience: time.NewTimer(0),
	}
}

// do queues r and waits for its outcome.
func (c *committer) do(ctx context.Context, r *request) (Appended, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return Appended{}, ErrClosed
	}
	c.queue = append(c.queue, r)
	if c.awaited > 0 && len(c.queue) >= c.awaited {
		c.awaited = 0
		signal(c.back)
	}
	c.mu.Unlock()
	select {
	case c.turn <- struct{}{}:
		c.lead(ctx, r)
	default: // whoever has the turn looks at the queue after it
	}
	select {
	case a := <-r.done:
		return a.appended, a.err
	case <-ctx.Done():
		r.abandoned.Store(true)
		return Appended{}, fmt.Errorf("append %s: outcome unknown: %w", r.name(), context.Cause(ctx))
	}
}

// name says in a message what the append is about.
func (r *request) name() string {
	if len(r.Writes) == 0 {
		return "move of cursor " + r.Move.Name
	}
	return fmt.Sprintf("%s at version %d", r.Writes[0].Stream, r.Writes[0].Expected)
}

// close lets the batch in flight come to its end and refuses all others.
func (c *committer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	close(c.closing)
	<-c.done
}

// run commits what nobody leads, until close.
func (c *committer) run(ctx context.Context) {
	defer close(c.done)
	for open := true; open; {
		select {
		case <-c.wake:
			c.turn <- struct{}{}
			for batch := c.take(); len(batch) > 0; batch = c.take() {
				c.commit(ctx, batch)
				c.gather()
			}
			c.yield()
		case <-c.closing:
			open = false
		}
	}
	c.turn <- struct{}{}        // kept: nobody leads any more
	for _, r := range c.queue { // nobody adds to it once closed is set
		r.done <- r.closed()
	}
	c.disconnect(ctx)
	c.ending.Wait()
}

// lead sends a request in its caller's own goroutine and time, if it is the only one. All else, and what doesn't go
// through at once, is left to run: a caller that gives up costs the connection, which no other should pay for.
func (c *committer) lead(ctx context.Context, r *request) {
	sound := false
	defer func() {
		if !sound { // it panics
			c.lose()
		}
		c.yield()
	}()
	if batch := c.take(); len(batch) != 1 || batch[0] != r {
		c.putBack(batch)
	} else if answers, err := c.try(ctx, batch); err == nil {
		c.answer(batch, answers)
	} else {
		r.sent = err
		r.abandoned.Store(context.Cause(ctx) != nil)
		c.putBack(batch)
	}
	sound = true
}

// yield gives the turn away, to run when something waits.
func (c *committer) yield() {
	<-c.turn
	if c.queued() > 0 {
		signal(c.wake)
	}
}

func (c *committer) queued() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue)
}

// putBack queues a batch again, before all others.
func (c *committer) putBack(batch []*request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(batch, c.queue...)
}

// closed is what a request is told that waits when the store closes.
func (r *request) closed() answer {
	if r.sent == nil {
		return answer{err: ErrClosed}
	}
	return answer{err: fmt.Errorf("append %s: outcome unknown, the store was closed: %w", r.name(), r.sent)}
}

// gather waits a moment for those who were just answered: they tend to come back, and a batch that leaves without them
// makes them wait for a flush more. It ends when as many wait as were there before. The more often that was in vain, the
// more batches leave at once.
func (c *committer) gather() {
	if c.crowd < 2 || c.overflows {
		return
	}
	if c.skips > 0 {
		c.skips--
		return
	}
	if c.expect(c.crowd) < c.crowd {
		c.patience.Reset(gatherPause + time.Duration(c.crowd)*gatherEach)
		select {
		case <-c.back:
			c.patience.Stop()
		case <-c.patience.C:
			if c.expect(0) < c.crowd {
				c.misses = min(c.misses+1, maxMisses)
				c.skips = 1<<c.misses - 2
				return
			}
		}
	}
	c.misses = 0
}

// expect has do signal back as soon as n are queued, unless they are there already (0: not at all), and says how many are.
func (c *committer) expect(n int) (queued int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.back: // of an earlier crowd
	default:
	}
	if c.awaited = n; len(c.queue) >= n {
		c.awaited = 0
	}
	return len(c.queue)
}

// take cuts the next batch from the queue. Two requests that share a stream, an id or a cursor never stand in the same
// batch, and keep their order: so the database need not know of an order within a batch.
func (c *committer) take() []*request {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	batch, rest := make([]*request, 0, len(c.queue)), c.queue[:0]
	c.taken.clear()
	c.overflows = false
	events, size := 0, 0
	for i, r := range c.queue {
		if r.abandoned.Load() {
			continue
		}
		if len(batch) > 0 && (events+len(r.ids) > c.config.BatchEvents || size+r.size > c.config.BatchBytes) {
			rest = append(rest, c.queue[i:]...)
			c.overflows = true
			break
		}
		if c.taken.add(r) {
			rest = append(rest, r)
			continue
		}
		batch = append(batch, r)
		events, size = events+len(r.ids), size+r.size
	}
	clear(c.queue[len(rest):])
	c.queue = rest
	return batch
}

// footprint is what the requests of a batch, and those passed over, touch.
type footprint struct {
	streams map[domain.Stream]bool
	ids     map[[16]byte]bool
	cursors map[string]bool
}

// clear keeps the room, up to what a usual batch takes.
func (f *footprint) clear() {
	if f.streams == nil || len(f.ids) > 1<<12 {
		*f = footprint{map[domain.Stream]bool{}, map[[16]byte]bool{}, map[string]bool{}}
	}
	clear(f.streams)
	clear(f.ids)
	clear(f.cursors)
}

// add takes in what r touches, and says whether any of it was there already.
func (f *footprint) add(r *request) (overlaps bool) {
	for _, w := range r.Writes {
		overlaps = overlaps || f.streams[w.Stream]
		f.streams[w.Stream] = true
	}
	for _, id := range r.ids {
		overlaps = overlaps || f.ids[id]
		f.ids[id] = true
	}
	if r.Move != nil {
		overlaps = overlaps || f.cursors[r.Move.Name]
		f.cursors[r.Move.Name] = true
	}
	return overlaps
}

// commit has the batch written and answers its callers. Whatever it doesn't know the outcome of it sends again:
// an attempt that did succeed is then found by its ids.
func (c *committer) commit(ctx context.Context, batch []*request) {
	for backoff := firstBackoff; ; backoff = min(2*backoff, lastBackoff) {
		answers, err := c.try(ctx, batch)
		if err == nil {
			c.answer(batch, answers)
			return
		}
		if c.conn != nil {
			c.refuse(ctx, batch, err)
			return
		}
		c.config.Log.WarnContext(ctx, "append will be sent again", "events", len(batch), "err", err)
		if batch = wanted(batch); len(batch) == 0 {
			return
		}
		if !c.pause(backoff) {
			for _, r := range batch {
				r.sent = err
				r.done <- r.closed()
			}
			return
		}
	}
}

func (c *committer) answer(batch []*request, answers []answer) {
	c.crowd = len(batch) + c.queued()
	for i, r := range batch {
		r.done <- answers[i]
	}
	c.committed()
}

// refuse answers a batch that the database does not take as it is. Whose fault it is shows when each goes alone.
func (c *committer) refuse(ctx context.Context, batch []*request, err error) {
	if len(batch) == 1 {
		batch[0].done <- answer{err: fmt.Errorf("append %s: %w", batch[0].name(), err)}
		return
	}
	for _, r := range batch {
		c.commit(ctx, []*request{r})
	}
}

func wanted(batch []*request) (rest []*request) {
	for _, r := range batch {
		if !r.abandoned.Load() {
			rest = append(rest, r)
		}
	}
	return rest
}

// pause waits before the next try; false when the store is closing.
func (c *committer) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.closing:
		return false
	}
}

// try sends the batch once. After an error c.conn is nil where another try, on a new connection, may succeed.
func (c *committer) try(ctx context.Context, batch []*request) (answers []answer, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, commitWithin, errCommitTooLong)
	defer cancel()
	if c.conn == nil {
		if c.conn, err = pgx.ConnectConfig(ctx, c.settings); err != nil {
			c.conn = nil
			return nil, fmt.Errorf("connect: %w", err)
		}
		// Planning anew for each batch's arrays costs more than it gains, and a plan made while the log was empty must not
		// stay a scan.
		if err = setUp(ctx, c.conn); err == nil {
			_, err = c.conn.Exec(ctx, "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off")
		}
		if err == nil {
			err = c.versions.meet(ctx, c.conn)
		}
		if err != nil {
			c.disconnect(ctx)
			return nil, fmt.Errorf("connect: %w", err)
		}
	}
	quick := c.watch(ctx, c.conn.PgConn().PID())
	hint := c.hints.due()
	answers, err = c.send(ctx, batch, hint)
	if hint && c.conn != nil && isHintRefused(err) {
		hint = false
		answers, err = c.send(ctx, batch, hint)
	}
	quick()
	if err == nil {
		c.hints.appended(hint)
	}
	if err != nil && c.conn != nil && (c.conn.IsClosed() || isPassing(err)) {
		c.disconnect(ctx)
	}
	return answers, err
}

// watch tells, unless it is called off soon, which sessions keep the append of that session waiting.
func (c *committer) watch(ctx context.Context, session uint32) (calledOff func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(slowCommit, func() {
		blockers, err := c.blockers(ctx, session)
		if context.Cause(ctx) == nil {
			c.config.Log.WarnContext(ctx, "an append has been waiting", "for", slowCommit, "blocked_by", blockers, "err", err)
		}
	})
	return func() {
		timer.Stop()
		cancel(nil)
	}
}

// blockers gives the sessions that a session waits for: process id, login, and what they do as far as ours may see it.
func (c *committer) blockers(ctx context.Context, session uint32) ([]string, error) {
	conn, err := pgx.ConnectConfig(ctx, c.settings)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is in flight
	rows, err := conn.Query(ctx, `SELECT concat_ws(' ', 'pid', pid, usename, application_name, state, 'since', xact_start, left(query, 200))
		FROM pg_stat_activity WHERE pid = ANY (pg_blocking_pids($1::integer)) ORDER BY pid`, int64(session))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func (c *committer) disconnect(ctx context.Context) {
	if c.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), time.Second, errCommitTooLong)
	defer cancel()
	if err := c.conn.Close(ctx); err != nil {
		c.config.Log.DebugContext(ctx, "closing the connection for appends", "err", err)
	}
	c.conn = nil
}

// lose gives up the connection, on which a statement may be under way. The server shall end that too: it would go on to
// wait for a lock, ahead of others, with nobody there.
func (c *committer) lose() {
	conn := c.conn
	if c.conn = nil; conn == nil || conn.IsClosed() { // then pgconn sees to it
		return
	}
	c.ending.Go(func() {
		ctx, cancel := context.WithTimeoutCause(context.Background(), cancelWithin, errCommitTooLong)
		defer cancel()
		if err := errors.Join(conn.PgConn().CancelRequest(ctx), conn.Close(ctx)); err != nil {
			c.config.Log.DebugContext(ctx, "giving up a connection for appends", "err", err)
		}
	})
}

// isPassing says whether the same statement may well succeed later: the server restarts, is full, recovers or has become
// a standby, somebody cancelled the statement, or what was prepared is lost, there already or out of date: on another
// connection it is prepared anew.
func isPassing(err error) bool {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return false
	}
	switch refused.Code {
	case "57P01", "57P02", "57P03", "57P04", "57P05", "57014", "53300", "40001", "40P01", "55P03", "25006", "26000", "42P05", "0A000":
		return true
	}
	return refused.Code[:2] == "08"
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
