package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pipeops/pipeops/deploy/diagnose"
	"github.com/pipeops/pipeops/deploy/manifests"
	"github.com/pipeops/pipeops/deploy/steps"
	"github.com/pipeops/pipeops/deploy/watch"
	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
)

// attempt is what a job needs of a worker's attempt; *worker.Attempt is one.
type attempt interface {
	Report(e domain.Event) (sequence int64)
	Stored(ctx context.Context, sequence int64) error
	Effect(ctx context.Context) error
}

const (
	// resumeGrace is how long a later attempt observes although the deadline has passed meanwhile.
	resumeGrace = 30 * time.Second
	// blindGrace is how long after the deadline an attempt that can't reach the cluster waits for it.
	blindGrace = 2 * time.Minute
	// stopWait bounds the scaling to zero of a first release that failed.
	stopWait = 30 * time.Second
)

// job is one attempt at a deployment.
type job struct {
	*Deployer
	attempt  attempt
	grant    bus.Grant
	request  domain.DeploymentRequested
	previous *domain.Activation // what serves now, nil = nothing
	started  time.Time          // of the first attempt
	deadline time.Time          // for the verdict
}

// failure is the verdict against what a job tries.
type failure struct {
	diagnosis domain.Diagnosis
	untouched bool // nothing of the release was applied
}

func (f *failure) Error() string { return f.diagnosis.Code + ": " + f.diagnosis.Error }

// do does one attempt: see Config.Do of worker.
func (d *Deployer) do(ctx context.Context, a attempt, g bus.Grant) error {
	var c domain.DeployContext
	if err := json.Unmarshal(g.Context, &c); err != nil {
		return fmt.Errorf("read the grant of %s: %w", g.Attempt, err)
	}
	j := newJob(d, a, g, c, time.Now())
	if g.Rollback {
		return j.rollBack(ctx)
	}
	err := j.rollOut(ctx)
	var failed *failure
	if !errors.As(err, &failed) {
		return err
	}
	if j.previous == nil {
		return j.giveUp(ctx, failed)
	}
	if err := a.Stored(ctx, a.Report(domain.DeploymentFailed{Diagnosis: failed.diagnosis})); err != nil {
		return err
	}
	return j.rollBack(ctx) // RollbackStarted was recorded with the failure
}

func newJob(d *Deployer, a attempt, g bus.Grant, c domain.DeployContext, now time.Time) *job {
	limit := c.Request.Spec.Strategy.Deadline.Duration()
	j := &job{Deployer: d, attempt: a, grant: g, request: c.Request, previous: c.Previous, deadline: c.Deadline.Time}
	if j.deadline.IsZero() {
		j.deadline = now.Add(limit)
	}
	j.started = j.deadline.Add(-limit)
	if _, n, err := g.Attempt.Split(); err == nil && n > 1 && j.deadline.Before(now.Add(resumeGrace)) {
		j.deadline = now.Add(resumeGrace)
	}
	return j
}

// rollOut brings the release into the cluster. A *failure is the verdict against it; any other error says that there is
// none.
func (j *job) rollOut(ctx context.Context) error {
	var before *manifests.Objects
	if j.previous != nil {
		objects, err := render(as(j.request, *j.previous))
		if err != nil {
			return fmt.Errorf("render what serves: %w", err)
		}
		before = &objects
	}
	objects, err := render(j.request)
	if err != nil {
		return &failure{diagnose.Invalid(j.request, err), true}
	}
	s := j.steps(j.request)
	if err := persist(ctx, j.deadline, s.Fence); err != nil {
		return verdict(ctx, j.request, err, "fence", true)
	}
	if err := persist(ctx, j.deadline, func(ctx context.Context) error { return s.Check(ctx, objects, before) }); err != nil {
		return verdict(ctx, j.request, err, "dry run", true)
	}
	p, err := j.rollout(j.request, objects, before, j.deadline).run(ctx)
	if err != nil {
		return err
	}
	j.attempt.Report(domain.DeploymentSucceeded{
		Digest: digest(p, j.request.Release), Available: p.Available, Trailing: p.Trailing,
		Address: manifests.Address(j.request), Duration: since(j.started),
	})
	return nil
}

// rollBack brings what served before back.
func (j *job) rollBack(ctx context.Context) error {
	if j.previous == nil {
		return errors.New("roll back: the grant doesn't say to what")
	}
	begun := time.Now()
	request := as(j.request, *j.previous)
	objects, err := render(request)
	if err != nil {
		return fmt.Errorf("render what served before: %w", err)
	}
	until := begun.Add(request.Spec.Strategy.Deadline.Duration())
	p, err := j.rollout(request, objects, &objects, until).run(ctx)
	var failed *failure
	switch {
	case errors.As(err, &failed):
		d := failed.diagnosis
		d.Title = strings.Replace(d.Title, "Deployment failed", "Rollback failed", 1)
		j.attempt.Report(domain.RollbackFailed{Diagnosis: d})
		return nil
	case err != nil:
		return err
	}
	j.attempt.Report(domain.RolledBack{To: j.previous.Release.ID, Available: p.Available, Duration: since(begun)})
	return nil
}

// giveUp ends a release that failed where nothing served before. Its pods are stopped first: once the failure is
// recorded the slot is free, and nobody would come back for them.
func (j *job) giveUp(ctx context.Context, failed *failure) error {
	d := failed.diagnosis
	if !failed.untouched {
		err := j.stop(ctx)
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		var fenced *steps.FencedError
		switch {
		case errors.As(err, &fenced):
			return err
		case err != nil:
			d.Reason += ". Its pods go on trying, because they couldn't be stopped: " + err.Error()
		default:
			d.Reason += ". Nothing served before it, so its pods were stopped (scaled to zero)"
		}
	}
	j.attempt.Report(domain.DeploymentFailed{Diagnosis: d})
	return nil
}

func (j *job) stop(ctx context.Context) error {
	objects, err := render(j.request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, stopWait, errors.New("the cluster didn't do it within "+stopWait.String()))
	defer cancel()
	s := j.steps(j.request)
	return persist(ctx, time.Now().Add(stopWait), func(ctx context.Context) error { return s.Stop(ctx, objects) })
}

// as is the request with what an earlier release ran with.
func as(r domain.DeploymentRequested, a domain.Activation) domain.DeploymentRequested {
	r.Release, r.Spec = a.Release, a.Spec
	return r
}

func render(r domain.DeploymentRequested) (manifests.Objects, error) {
	for _, step := range r.Spec.Strategy.Steps(r.Spec.Replicas) {
		if step.Kind == domain.StepApply {
			return manifests.Render(r, step)
		}
	}
	return manifests.Objects{}, fmt.Errorf("strategy %q applies nothing", r.Spec.Strategy.Kind)
}

func (j *job) steps(r domain.DeploymentRequested) *steps.Steps {
	return &steps.Steps{Client: j.client, Effect: j.attempt.Effect, Request: r, Attempt: j.grant.Attempt, Epoch: j.grant.FencingEpoch}
}

// digest is the image's as the pods run it; a runtime that doesn't say so has pulled what was asked for.
func digest(p watch.Progress, r domain.Release) string {
	if p.Digest != "" {
		return p.Digest
	}
	_, d, _ := strings.Cut(r.Image, "@")
	return d
}

func since(t time.Time) domain.Milliseconds {
	return domain.Milliseconds(max(0, time.Since(t).Milliseconds()))
}
