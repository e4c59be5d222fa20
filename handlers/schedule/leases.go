package schedule

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// hearing knows since when this process has heard workers without a break. A
// process that was frozen, a machine that slept and a database that was away
// show as a long gap between two looks: the workers had nobody to tell.
type hearing struct{ since, last time.Time }

// note takes the time of a look. By the wall clock: the other one may stand
// still while a machine sleeps.
func (h *hearing) note(now time.Time, gap time.Duration) {
	now = now.Round(0)
	if d := now.Sub(h.last); d < 0 || d > gap {
		h.since = now
	}
	h.last = now
}

// gap is how long two looks may lie apart.
func (s *Scheduler) gap() time.Duration { return max(3*s.cfg.Tick, s.cfg.Lease/2) }

// lapse gives up the attempts of workers that have been silent for too long.
// While this process hears nobody, because the broker is away or came back
// just now, silence proves nothing.
func (s *Scheduler) lapse(ctx context.Context, queue *domain.Queue, heard *hearing, caughtUp bool) error {
	heard.note(s.cfg.Now(), s.gap())
	since, connected := s.cfg.Bus.ConnectedSince()
	if !caughtUp || !connected || s.cfg.Now().Sub(since) < s.cfg.Lease || heard.last.Sub(heard.since) < s.cfg.Lease {
		return nil
	}
	var running []domain.AttemptID
	for _, w := range queue.Works {
		if w.Attempt != "" {
			running = append(running, w.Attempt)
		}
	}
	if len(running) == 0 {
		return nil
	}
	silent, err := s.cfg.Leases.Silent(ctx, running, s.cfg.Lease)
	if err != nil {
		return fmt.Errorf("look for silent workers: %w", err)
	}
	if heard.note(s.cfg.Now(), s.gap()); heard.last.Sub(heard.since) < s.cfg.Lease {
		return nil // the look itself took so long that heartbeats may wait behind it
	}
	var problems []error
	for _, a := range silent {
		reason := fmt.Sprintf("its worker was not heard of for %s", s.cfg.Lease.Round(time.Second))
		if err := s.cfg.Commands.LoseAttempt(ctx, a, reason, s.cfg.Now()); err != nil {
			problems = append(problems, fmt.Errorf("give up %s: %w", a, err))
		}
	}
	return errors.Join(problems...)
}
