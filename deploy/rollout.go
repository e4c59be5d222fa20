package deploy

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/pipeops/pipeops/deploy/diagnose"
	"github.com/pipeops/pipeops/deploy/manifests"
	"github.com/pipeops/pipeops/deploy/steps"
	"github.com/pipeops/pipeops/deploy/watch"
	"github.com/pipeops/pipeops/domain"
)

// beat is how often a rollout is looked at although nothing changed, and how often progress is told at most.
const beat = time.Second

// rollout brings one release of a service to where it serves alone: forward, or back.
type rollout struct {
	*job
	request domain.DeploymentRequested
	steps   *steps.Steps
	objects manifests.Objects
	before  *manifests.Objects // what PipeOps applied last and serves; nil = nothing
	until   time.Time          // for the verdict

	notes       []string // about other field managers
	told        domain.RolloutProgressed
	toldAt      time.Time
	asked       time.Time // when a live snapshot was read last
	events      []*corev1.Event
	askedEvents time.Time
}

func (j *job) rollout(r domain.DeploymentRequested, objects manifests.Objects, before *manifests.Objects, until time.Time) *rollout {
	return &rollout{job: j, request: r, steps: j.steps(r), objects: objects, before: before, until: until}
}

// errReplaced says that what was applied isn't there any more, or isn't what runs: it must be applied again.
var errReplaced = errors.New("the workload was changed or deleted by somebody else")

// run does the strategy's steps, from the start again if somebody interferes. A *failure is the verdict against the
// release; any other error says that there is none.
func (r *rollout) run(ctx context.Context) (watch.Progress, error) {
	for {
		p, err := r.once(ctx)
		if !errors.Is(err, errReplaced) {
			return p, err
		}
		if time.Now().After(r.until) {
			v := diagnose.NewExaminer(r.request).Overdue(diagnose.Evidence{Now: time.Now()}, err.Error())
			return p, &failure{diagnosis: v.Diagnosis}
		}
		r.log.WarnContext(ctx, "workload is applied again", "attempt", r.grant.Attempt, "err", err)
		if err := pause(ctx, beat); err != nil {
			return p, err
		}
	}
}

func (r *rollout) once(ctx context.Context) (p watch.Progress, err error) {
	var workload *appsv1.Deployment
	for _, step := range r.request.Spec.Strategy.Steps(r.request.Spec.Replicas) {
		switch step.Kind {
		case domain.StepApply:
			workload, err = r.apply(ctx)
		case domain.StepWatch:
			p, err = r.follow(ctx, workload)
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

func (r *rollout) apply(ctx context.Context) (*appsv1.Deployment, error) {
	var applied steps.Applied
	err := persist(ctx, r.until, func(ctx context.Context) (err error) {
		applied, err = r.steps.Apply(ctx, r.objects, r.before)
		return err
	})
	if err != nil {
		return nil, verdict(ctx, r.request, err, "apply", false)
	}
	r.notes = applied.Notes
	r.attempt.Report(domain.ManifestsApplied{Namespace: r.request.Namespace, Objects: applied.Objects, Changed: applied.Changed})
	return applied.Workload, nil
}

// follow watches what was applied until it is complete.
func (r *rollout) follow(ctx context.Context, applied *appsv1.Deployment) (watch.Progress, error) {
	key := watch.Key{Namespace: r.request.Namespace, Service: r.request.Service}
	changes, stop := r.watcher.Follow(key)
	defer stop()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	x := diagnose.NewExaminer(r.request)
	r.asked, r.askedEvents = time.Now(), time.Now()
	for {
		p := r.look(ctx, key, applied)
		v := x.Examine(r.evidence(ctx, p))
		r.progress(p, v.Message, time.Now())
		late := time.Now().After(r.until)
		if v.Final || late { // not on the word of a cache
			live, err := watch.Live(ctx, r.client, key)
			switch {
			case err == nil:
				p = live.Progress(applied)
				v = x.Examine(r.evidence(ctx, p))
			case time.Now().After(r.until.Add(blindGrace)):
				return p, fmt.Errorf("the cluster could not be seen until %s after the deadline: %w", blindGrace, err)
			default:
				v.Final, late = false, false // blind: no verdict
			}
		}
		switch {
		case p.State == watch.Complete:
			return p, nil
		case p.State == watch.Replaced:
			return p, errReplaced
		case p.State == watch.Paused:
			return p, &failure{diagnosis: diagnose.Paused(r.request, errors.New("spec.paused is true"))}
		case v.Final:
			return p, r.explained(ctx, v)
		case late:
			return p, r.explained(ctx, x.Overdue(r.evidence(ctx, p), shown(p)))
		}
		select {
		case <-changes:
		case <-tick.C:
		case <-ctx.Done():
			return p, context.Cause(ctx)
		}
	}
}
