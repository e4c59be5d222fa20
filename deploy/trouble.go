package deploy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pipeops/pipeops/deploy/diagnose"
	"github.com/pipeops/pipeops/deploy/steps"
	"github.com/pipeops/pipeops/domain"
)

const (
	firstPause   = 250 * time.Millisecond
	longestPause = 5 * time.Second
)

// persist does op again while the API server is busy, until then, or can't be reached, until blindGrace later. Op must
// be safe to repeat.
func persist(ctx context.Context, until time.Time, op func(context.Context) error) error {
	wait := firstPause
	for {
		err := op(ctx)
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		limit := until
		switch steps.TroubleOf(err) {
		case steps.Refusal:
			return err
		case steps.Blind:
			limit = limit.Add(blindGrace)
		case steps.Busy:
		}
		if time.Now().After(limit) {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, longestPause)
	}
}

// pause waits, or returns why ctx ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// verdict makes a *failure of what the API server refuses. What says nothing about the release stays as it is.
func verdict(ctx context.Context, r domain.DeploymentRequested, err error, step string, untouched bool) error {
	var fenced *steps.FencedError
	var foreign *steps.ForeignError
	var zero *steps.ZeroError
	var paused *steps.PausedError
	switch {
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case errors.As(err, &fenced):
		return err
	case errors.As(err, &foreign):
		return &failure{diagnose.Foreign(r, err), untouched}
	case errors.As(err, &zero):
		return &failure{diagnose.ScaledToZero(r, err), untouched}
	case errors.As(err, &paused):
		return &failure{diagnose.Paused(r, err), untouched}
	case steps.TroubleOf(err) == steps.Blind:
		return fmt.Errorf("%s: the cluster can't be reached: %w", step, err)
	}
	return &failure{diagnose.Refused(r, step, err), untouched}
}
