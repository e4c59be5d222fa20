package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/pipeops/pipeops/internal/bus"
)

// contact knows when the control plane was last heard of: when the last answered heartbeat was sent.
type contact struct {
	mu      sync.Mutex
	beats   int64               // sent so far
	sent    map[int64]time.Time // of those that may still be answered
	last    time.Time           // when the last answered one was sent; zero = none yet
	lost    bool                // and that was told
	changed chan struct{}       // closed at the next answer
}

// age is how old the last contact is: steady by the clock that stops for nobody, apparent also by the wall clock, which
// shows the sleep of a whole machine. Huge when there was none.
func (c *contact) age() (steady, apparent time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	steady = now.Sub(c.last)
	return steady, max(steady, now.Round(0).Sub(c.last.Round(0)))
}

func (c *contact) fresh(limit time.Duration) bool {
	_, age := c.age()
	return age < limit
}

// await returns nil as soon as the last contact is younger than limit, else why ctx ended.
func (c *contact) await(ctx context.Context, limit time.Duration) error {
	for context.Cause(ctx) == nil {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if c.fresh(limit) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// next numbers a heartbeat that is about to be sent. One unanswered for longer than keep means nothing any more.
func (c *contact) next(keep time.Duration) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(c.sent, func(_ int64, at time.Time) bool { return now.Sub(at) > keep })
	if c.sent == nil {
		c.sent = map[int64]time.Time{}
	}
	c.beats++
	c.sent[c.beats] = now
	return c.beats
}

// answered notes the answer to a heartbeat; known is false for one that means nothing any more.
func (c *contact) answered(beat int64) (known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, known := c.sent[beat]
	if !known {
		return false
	}
	maps.DeleteFunc(c.sent, func(n int64, _ time.Time) bool { return n <= beat })
	c.last = at
	close(c.changed)
	c.changed = make(chan struct{})
	return true
}

// turned says whether contact was lost or found again since it was asked last.
func (c *contact) turned(lost bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last.IsZero() || c.lost == lost {
		return false
	}
	c.lost = lost
	return true
}

var errBeat = errors.New("heartbeat took too long")

// heartbeats tells that the worker lives until ctx ends, and stops everything when nobody answers.
func (w *Worker) heartbeats(ctx context.Context) {
	ticker := time.NewTicker(w.cfg.Heartbeat)
	defer ticker.Stop()
	for {
		w.beat(ctx)
		w.look(ctx)
		select {
		case <-ticker.C:
		case <-w.beatNow:
		case <-ctx.Done():
			w.beat(context.WithoutCancel(ctx)) // that nothing runs any more
			return
		}
	}
}

// hasten wants a heartbeat at once.
func (w *Worker) hasten() {
	select {
	case w.beatNow <- struct{}{}:
	default: // one is wanted already
	}
}

func (w *Worker) beat(ctx context.Context) {
	ctx, cancel := context.WithTimeoutCause(ctx, w.cfg.Heartbeat, errBeat)
	defer cancel()
	signed, err := bus.SignHeartbeat(w.heartbeat(), w.cfg.Key)
	if err == nil {
		err = w.cfg.Bus.PublishHeartbeat(ctx, signed)
	}
	if err != nil {
		w.cfg.Log.DebugContext(ctx, "heartbeat was not sent", "err", err)
	}
}

func (w *Worker) heartbeat() bus.Heartbeat {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := bus.Heartbeat{
		Worker: w.cfg.Worker, Incarnation: w.incarnation, Class: w.cfg.Kind, Slots: w.cfg.Slots,
		Running: []bus.Running{}, Beat: w.contact.next(w.cfg.GiveUp), Stopping: w.stopping,
	}
	for _, a := range w.running {
		if a.firstBeat == 0 {
			a.firstBeat = h.Beat
		}
		h.Running = append(h.Running, bus.Running{Attempt: a.ID, Token: a.Grant.Token, Sequence: a.made()})
	}
	return h
}

// look stops all attempts once the control plane has been silent for too long: by then they are given up there.
func (w *Worker) look(ctx context.Context) {
	steady, apparent := w.contact.age()
	lost := apparent >= w.cfg.Pause
	if w.contact.turned(lost) {
		if lost {
			w.cfg.Log.WarnContext(ctx, "control plane is silent: no new effects until it answers", "age", apparent)
		} else {
			w.cfg.Log.InfoContext(ctx, "control plane answers again")
		}
	}
	if steady < w.cfg.GiveUp {
		return
	}
	for _, a := range w.attempts() {
		a.drop(fmt.Errorf("%w for %v", ErrNoContact, w.cfg.GiveUp))
	}
}

// answer takes what the control plane says to this worker.
func (w *Worker) answer(_ context.Context, a bus.Answer) error {
	switch {
	case a.Grant != nil:
		w.granted(*a.Grant)
	case a.Refusal != nil:
		w.refused(*a.Refusal)
	case a.Heartbeat != nil:
		w.stored(*a.Heartbeat)
	}
	return nil
}

// stored takes what is stored of each attempt, and stops those that shall or that aren't known there.
func (w *Worker) stored(h bus.HeartbeatAnswer) {
	beat := h.Beat > 0 && w.contact.answered(h.Beat)
	told := map[*Attempt]bool{}
	for _, s := range h.Running {
		w.mu.Lock()
		a := w.running[s.Attempt]
		w.mu.Unlock()
		if a == nil {
			continue
		}
		told[a] = true
		a.acknowledge(s.Stored, beat)
		if s.Cancel != "" {
			a.drop(&CancelledError{Reason: s.Cancel})
		}
	}
	if !beat {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.running {
		if !told[a] && a.firstBeat > 0 && a.firstBeat <= h.Beat {
			a.drop(&CancelledError{Reason: "the attempt isn't known there"})
		}
	}
}
