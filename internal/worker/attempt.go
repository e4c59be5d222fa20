package worker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
)

// Attempt is one granted try at a build or a deployment. All methods may be called concurrently.
type Attempt struct {
	ID    domain.AttemptID
	Grant bus.Grant

	worker    *Worker
	secrets   map[string]string
	problem   error                   // why it can't begin at all
	ctx       context.Context         //nolint:containedctx // the life of the attempt is what the type is
	cancel    context.CancelCauseFunc // of Do; its reports still matter
	gone      context.Context         //nolint:containedctx // ends when nobody wants the reports any more
	leave     context.CancelCauseFunc
	firstBeat int64 // heartbeat that named it first, 0 = none yet; guarded by Worker.mu
	output    output

	mu          sync.Mutex
	items       []bus.Item // those after stored
	stored      int64      // last item that the control plane has
	sent        int64      // last item that the broker has
	sentAt      time.Time
	resendAfter time.Duration
	changed     chan struct{} // closed at the next change
}

const (
	// firstResend is how long a sent item may stay unstored before it is sent again, doubled each time up to lastResend.
	firstResend = 3 * time.Second
	lastResend  = 30 * time.Second
	// maxItems and maxBytes bound one report; a single item is bounded by what an event may hold.
	maxItems = 100
	maxBytes = 512 << 10
	maxItem  = 256 << 10
	// maxReason bounds why an attempt was lost, in bytes.
	maxReason = 4 << 10
)

// newAttempt needs the lock of w.
func (w *Worker) newAttempt(g bus.Grant, c *claim) *Attempt {
	a := &Attempt{
		ID: g.Attempt, Grant: g, worker: w, changed: make(chan struct{}), resendAfter: firstResend,
		stored: g.Sequence, sent: g.Sequence, output: newOutput(w.cfg.LogLimit),
	}
	a.secrets, a.problem = unseal(g.Sealed, c)
	a.gone, a.leave = context.WithCancelCause(context.Background())
	a.ctx, a.cancel = context.WithCancelCause(a.gone)
	return a
}

// drop stops Do and forgets what isn't stored.
func (a *Attempt) drop(why error) { a.leave(why) }

// Secret is a secret of this job by its name, empty when there is none.
func (a *Attempt) Secret(name string) string { return a.secrets[name] }

// Secrets are the names and values of all secrets of this job, so that they can be masked in what is told.
func (a *Attempt) Secrets() map[string]string { return a.secrets }

// Effect returns nil when a new effect may start: the control plane was heard of within Config.Pause. It waits for
// that, and returns why ctx or the attempt ended, if that comes first. Call it before each effect that others see.
func (a *Attempt) Effect(ctx context.Context) error {
	ctx, done := a.joined(ctx)
	defer done()
	return a.worker.contact.await(ctx, a.worker.cfg.Pause)
}

// joined gives a context that ends with ctx and with the attempt.
func (a *Attempt) joined(ctx context.Context) (joined context.Context, done func()) {
	joined, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(a.gone, func() { cancel(context.Cause(a.gone)) })
	return joined, func() { stop(); cancel(nil) }
}

// Report takes the next item and gives its number within the attempt. It never blocks: the item is kept until it is
// stored. It panics on an event that can't be written or exceeds 256 KiB.
func (a *Attempt) Report(e domain.Event) (sequence int64) {
	data, err := domain.Encode(e, "", nil)
	if err == nil && len(data) > maxItem {
		err = fmt.Errorf("%s has %d bytes, over %d", domain.TypeOf(e), len(data), maxItem)
	}
	if err != nil {
		panic(fmt.Errorf("report of %s: %w", a.ID, err))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.items = append(a.items, bus.Item{Type: domain.TypeOf(e), At: domain.At(time.Now()), Data: data})
	a.tell()
	return a.stored + int64(len(a.items))
}

// Stored returns nil once the control plane has stored the item, else why ctx or the attempt ended.
func (a *Attempt) Stored(ctx context.Context, sequence int64) error {
	ctx, done := a.joined(ctx)
	defer done()
	return a.wait(ctx, func() bool { return a.stored >= sequence })
}

// made is the number of the last item.
func (a *Attempt) made() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stored + int64(len(a.items))
}

// wait returns nil when met holds (asked under the lock), else why ctx ended.
func (a *Attempt) wait(ctx context.Context, met func() bool) error {
	for {
		a.mu.Lock()
		ok, changed := met(), a.changed
		a.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tell needs the lock.
func (a *Attempt) tell() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// acknowledge takes how far the attempt is stored. When a heartbeat's answer shows that what was sent a while ago
// isn't, it is sent again: it was lost, or there is a gap before it.
func (a *Attempt) acknowledge(stored int64, beat bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := min(stored-a.stored, int64(len(a.items))); n > 0 {
		a.items = a.items[n:]
		a.stored += n
		a.sent = max(a.sent, a.stored)
		a.resendAfter = firstResend
		a.tell()
		return
	}
	if beat && a.sent > a.stored && time.Since(a.sentAt) > a.resendAfter {
		a.sent = a.stored
		a.resendAfter = min(2*a.resendAfter, lastResend)
		a.tell()
	}
}

// sendReports sends items in order until the attempt is gone; what comes quickly goes in one message.
func (a *Attempt) sendReports(ctx context.Context) {
	const firstPause, longestPause = 100 * time.Millisecond, 2 * time.Second
	pause := firstPause
	unsent := func() bool { return a.sent < a.stored+int64(len(a.items)) }
	for a.wait(ctx, unsent) == nil && context.Cause(ctx) == nil {
		r := a.report()
		err := a.worker.cfg.Bus.PublishReport(ctx, r)
		var large *bus.TooLargeError
		switch {
		case err == nil:
			a.passed(r)
			pause = firstPause
			continue
		case errors.As(err, &large):
			a.drop(err)
			return
		}
		a.worker.cfg.Log.DebugContext(ctx, "report was not sent", "attempt", a.ID, "err", err)
		within(ctx.Done(), pause)
		pause = min(2*pause, longestPause)
	}
}

// report gives the next items that fit into one message.
func (a *Attempt) report() bus.Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := bus.Report{Attempt: a.ID, Incarnation: a.worker.incarnation, Token: a.Grant.Token, First: a.sent + 1}
	size := 0
	for _, item := range a.items[a.sent-a.stored:] {
		if size += len(item.Data); len(r.Items) > 0 && (size > maxBytes || len(r.Items) == maxItems) {
			break
		}
		r.Items = append(r.Items, item)
	}
	return r
}

// passed notes that the broker has r, unless items before it are to be sent again.
func (a *Attempt) passed(r bus.Report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sentAt = time.Now()
	if a.sent >= r.First-1 {
		a.sent = max(a.sent, r.First-1+int64(len(r.Items)))
	}
}

// work does an attempt, and sees to it that its reports are stored.
func (w *Worker) work(live context.Context, a *Attempt) {
	log := w.cfg.Log.With("attempt", a.ID)
	log.InfoContext(live, "attempt begins")
	var senders sync.WaitGroup
	senders.Go(func() { a.sendReports(a.gone) })
	senders.Go(func() { a.sendOutput(a.gone) })

	err := a.do(w.cfg.Do)
	switch {
	case context.Cause(a.gone) != nil:
		log.WarnContext(live, "attempt was stopped", "err", context.Cause(a.gone))
	case err != nil:
		log.WarnContext(live, "attempt is lost", "err", err)
		a.Report(domain.AttemptLost{Attempt: a.ID, Reason: clip(err.Error()), Stopped: errors.Is(context.Cause(a.ctx), ErrStopped)})
	}
	a.cancel(nil) // Do is over
	last := a.made()
	if err := a.wait(a.gone, func() bool { return a.stored >= last }); err != nil {
		log.WarnContext(live, "last reports of the attempt were not stored", "err", err)
	}
	w.finishOutput(a)
	a.leave(nil)
	senders.Wait()
	w.mu.Lock()
	delete(w.running, a.ID)
	w.mu.Unlock()
	w.hasten()
	log.InfoContext(live, "attempt is over")
}

// do calls Do; a panic ends this attempt only.
func (a *Attempt) do(do func(context.Context, *Attempt) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.worker.cfg.Log.Error("attempt panicked", "attempt", a.ID, "err", p, "stack", string(debug.Stack()))
			err = errors.New("the worker met a fault of its own; see its log")
		}
	}()
	if a.problem != nil {
		return a.problem
	}
	if err := context.Cause(a.ctx); err != nil {
		return err
	}
	return do(a.ctx, a)
}

func clip(text string) string {
	if len(text) > maxReason {
		text = text[:maxReason] + "…"
	}
	return text
}
