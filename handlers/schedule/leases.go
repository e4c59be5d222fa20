package schedule

import (
	"context"
	"fmt"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// lapse gives up the attempts of workers that have been silent for too long.
// While this process hears nobody, because the broker is away or came back
// just now, silence proves nothing.
func (s *Scheduler) lapse(ctx context.Context, queue *domain.Queue, caughtUp bool) error {
	since, connected := s.cfg.Bus.ConnectedSince()
	if !caughtUp || !connected || s.cfg.Now().Sub(since) < s.cfg.Lease {
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
	for _, a := range silent {
		reason := fmt.Sprintf("its worker was not heard of for %s", s.cfg.Lease.Round(time.Second))
		if err := s.cfg.Commands.LoseAttempt(ctx, a, reason, s.cfg.Now()); err != nil {
			return fmt.Errorf("give up %s: %w", a, err)
		}
	}
	return nil
}
