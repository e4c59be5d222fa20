// Package worker receives jobs, grants and cancels from internal/bus, hands each granted attempt to the Do of the
// runner or the deployer, and its reports, log chunks and heartbeats back to the bus; effects.
//
// It is all that the two kinds of worker share. What it keeps:
//   - No grant, no work: Do is called for granted attempts only, one per slot, and jobs are taken only while a slot is
//     free, so that none lies here that another worker could have.
//   - What Do reports is numbered, kept until the control plane has stored it, and sent again as often as needed.
//   - Contact counts from when the last answered heartbeat was sent. Without it for Pause no new effect starts (see
//     Attempt.Effect), without it for GiveUp every attempt is stopped. A process that was frozen thus knows it at once.
//   - An attempt that the control plane cancels, or doesn't know, is stopped, and what it hasn't stored is dropped.
//
// A runner, in short:
//
//	w, err := worker.New(worker.Config{Bus: b, Kind: bus.KindBuild, Worker: id, Key: key, Slots: 2, Do: build})
//	err = w.Run(ctx)
//
//	func build(ctx context.Context, a *worker.Attempt) error {
//		…                                          // a.Grant.Context says what to build
//		n := a.Report(domain.ImagePushed{…})
//		if err := a.Stored(ctx, n); err != nil {    // accepted now
//			return err
//		}
//		if err := a.Effect(ctx); err != nil {       // in contact now
//			return err
//		}
//		…
//		a.Report(domain.BuildSucceeded{…})
//		return nil                                 // the rest is seen to
//	}
package worker

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
)

// Config sets a worker up. Bus, Kind, Worker, Key, Slots and Do are required.
type Config struct {
	Bus    bus.Bus
	Kind   bus.Kind
	Worker domain.WorkerID
	Key    ed25519.PrivateKey // its public half is enrolled
	Slots  int                // attempts at once

	// Do does one attempt, to the end: it reports the final item, after which it does nothing more, and returns nil.
	// An error instead ends the attempt as lost, and the control plane hands the work to another one; its text is
	// recorded, so it holds no secrets. When ctx ends, Do tidies up and returns context.Cause(ctx): a *CancelledError,
	// ErrNoContact, or ErrStopped.
	Do func(ctx context.Context, a *Attempt) error

	Log *slog.Logger // default: discarded

	Heartbeat  time.Duration // between two heartbeats; default 2 s
	ClaimWait  time.Duration // for the answer to a claim; default 5 s
	ClaimTries int           // until a job is handed back; default 3
	Pause      time.Duration // without contact, no new effects; default 10 s
	GiveUp     time.Duration // without contact, all attempts are stopped; default 60 s
	Grace      time.Duration // that running attempts get to end when the worker is stopped; default none
	StopWait   time.Duration // for the last reports to be stored when the worker is stopped; default 10 s
	LogLimit   int64         // bytes of output of one attempt that are kept, waiting or sent; default 64 MiB
}

// Validate tells every problem at once.
func (c Config) Validate() error {
	var problems []error
	need := func(ok bool, problem string) {
		if !ok {
			problems = append(problems, errors.New("worker: "+problem))
		}
	}
	need(c.Bus != nil, "bus is missing")
	need(c.Kind == bus.KindBuild || c.Kind == bus.KindDeploy, fmt.Sprintf("kind %q: want %q or %q", c.Kind, bus.KindBuild, bus.KindDeploy))
	need(c.Worker != "", "id is missing: enroll the worker first")
	need(len(c.Key) == ed25519.PrivateKeySize, "key is missing: enroll the worker first")
	need(c.Slots > 0, fmt.Sprintf("%d slots: want 1 or more", c.Slots))
	need(c.Do != nil, "do is missing")
	need(min(c.Heartbeat, c.ClaimWait, c.Pause, c.GiveUp, c.Grace, c.StopWait) >= 0, "a duration is negative")
	return errors.Join(problems...)
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	def(&c.Heartbeat, 2*time.Second)
	def(&c.ClaimWait, 5*time.Second)
	def(&c.Pause, 10*time.Second)
	def(&c.GiveUp, 60*time.Second)
	def(&c.StopWait, 10*time.Second)
	if c.ClaimTries <= 0 {
		c.ClaimTries = 3
	}
	if c.LogLimit <= 0 {
		c.LogLimit = 64 << 20
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Why an attempt's context ended; see Config.Do.
var (
	ErrNoContact = errors.New("no contact with the control plane")
	ErrStopped   = errors.New("worker stopped")
)

// CancelledError is why an attempt's context ended when the control plane wants it stopped.
type CancelledError struct{ Reason string }

func (e *CancelledError) Error() string { return "cancelled by the control plane: " + e.Reason }

// Worker does attempts. Use New, and Run once.
type Worker struct {
	cfg         Config
	incarnation string
	contact     contact
	beatNow     chan struct{} // size 1: a heartbeat is wanted at once

	mu       sync.Mutex
	running  map[domain.AttemptID]*Attempt
	claims   map[string]*claim // not answered yet, by claim id
	stopping bool
}

// New gives a worker that isn't running yet.
func New(c Config) (*Worker, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	w := &Worker{
		cfg: c.withDefaults(), incarnation: uuid.Must(uuid.NewV7()).String(), beatNow: make(chan struct{}, 1),
		running: map[domain.AttemptID]*Attempt{}, claims: map[string]*claim{},
	}
	w.contact.changed = make(chan struct{})
	return w, nil
}

// Run works until ctx ends. Running attempts then get Grace to end; what has not ended by then is stopped, reported as
// lost (which then counts as no failed try), and waited for.
func (w *Worker) Run(ctx context.Context) error {
	live, end := context.WithCancelCause(context.WithoutCancel(ctx))
	var answers, heartbeats, slots sync.WaitGroup
	failed := make(chan error, 1+w.cfg.Slots) // one of each that consumes
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	answers.Go(func() {
		if err := w.cfg.Bus.ConsumeAnswers(live, w.incarnation, w.answer); err != nil {
			failed <- fmt.Errorf("hear answers: %w", err)
			stop(err)
		}
	})
	heartbeats.Go(func() { w.heartbeats(live) })
	for range w.cfg.Slots {
		slots.Go(func() {
			if err := w.slot(ctx, live); err != nil {
				failed <- fmt.Errorf("take %s jobs: %w", w.cfg.Kind, err)
				stop(err)
			}
		})
	}
	<-ctx.Done()
	w.wind(&slots)
	end(ErrStopped)
	heartbeats.Wait()
	answers.Wait()
	close(failed)
	var problems []error
	for err := range failed {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// wind ends what runs: first by itself, then by force, then without its reports.
func (w *Worker) wind(slots *sync.WaitGroup) {
	w.mu.Lock()
	w.stopping = true
	w.mu.Unlock()
	w.hasten()
	done := make(chan struct{})
	go func() { slots.Wait(); close(done) }()
	if !within(done, w.cfg.Grace) {
		for _, a := range w.attempts() {
			a.cancel(ErrStopped)
		}
	}
	if !within(done, w.cfg.StopWait) {
		for _, a := range w.attempts() {
			a.drop(ErrStopped)
		}
	}
	<-done
}

// within waits for done, false if it took longer.
func within(done <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// errTaken ends the taking of jobs of a slot that has one.
var errTaken = errors.New("slot is taken")

// slot takes a job, works on it, and takes the next, until ctx ends.
func (w *Worker) slot(ctx, live context.Context) error {
	for w.contact.await(ctx, w.cfg.Pause) == nil {
		taking, taken := context.WithCancelCause(ctx)
		var granted *Attempt
		err := w.cfg.Bus.ConsumeJobs(taking, w.cfg.Kind, 1, func(ctx context.Context, job bus.Job) error {
			a, err := w.claim(ctx, job)
			if a != nil {
				granted = a
				taken(errTaken)
			}
			return err
		})
		taken(nil)
		if granted != nil {
			if context.Cause(ctx) != nil && w.cfg.Grace == 0 {
				granted.cancel(ErrStopped) // granted while stopping
			}
			w.work(live, granted)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// attempts gives those that run.
func (w *Worker) attempts() []*Attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]*Attempt, 0, len(w.running))
	for _, a := range w.running {
		out = append(out, a)
	}
	return out
}
