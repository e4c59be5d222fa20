package projections

import (
	"context"
	"fmt"
	"slices"

	"github.com/pipeops/pipeops/domain"
)

// maxBeside is how many pushes and deployments that don't serve an explanation tells of, at most.
const maxBeside = 50

// Why explains what a service runs in an environment. The read models say which streams of the log to look at; what it
// says comes from the log.
func (q *Queries) Why(ctx context.Context, project Project, environment domain.Environment, service domain.Service, at At) (*domain.Why, error) {
	at, err := q.Pin(ctx, at, OfProjects, OfBuilds, OfDeployments, OfTimeline)
	if err != nil {
		return nil, err
	}
	l := lookup{q: q, at: at, project: project, environment: environment, service: service, streams: map[domain.Stream]bool{}}
	l.add(domain.ProjectStream(project.ID), domain.SlotStream(environment.ID, service.ID))
	for _, find := range []func(context.Context) error{l.findServing, l.findPushes, l.findByHand} {
		if err := find(ctx); err != nil {
			return nil, err
		}
	}
	events, err := l.events(ctx)
	if err != nil {
		return nil, fmt.Errorf("explain %s of %s in %s: %w", service.Name, project.Name, environment.Name, err)
	}
	why := domain.Explain(environment.ID, service.ID, events)
	why.AsOf, why.More = *at.AsOf, l.more
	return &why, nil
}

// ProjectOf finds the project that an environment belongs to; nil when there is none.
func (q *Queries) ProjectOf(ctx context.Context, environment domain.EnvironmentID, at At) (*Project, error) {
	slot, err := first(list(ctx, q, at, environmentsProjection, slots, "lookup = $2 LIMIT 1", environment))
	if err != nil {
		return nil, err
	}
	if slot != nil {
		return q.Project(ctx, string(slot.Project), at)
	}
	return first(list(ctx, q, at, projectsProjection, projects, // nothing was ever deployed there
		`EXISTS (SELECT FROM json_array_elements(CASE json_typeof(now_.row -> 'Environments') WHEN 'array' THEN now_.row -> 'Environments' ELSE '[]' END) e
			WHERE e ->> 'ID' = $2)`, environment))
}

// lookup finds the streams that an explanation is made of.
type lookup struct {
	q           *Queries
	at          At
	project     Project
	environment domain.Environment
	service     domain.Service

	streams map[domain.Stream]bool
	since   int64 // position of the oldest push that is told of
	more    int   // relevant ones that are left out
}

func (l *lookup) add(streams ...domain.Stream) {
	for _, s := range streams {
		l.streams[s] = true
	}
}

// findServing finds what serves, and the push that it and what served before it came from: all since then is told of.
func (l *lookup) findServing(ctx context.Context) error {
	slot := domain.SlotStream(l.environment.ID, l.service.ID)
	recorded, err := l.q.p.config.Store.ReadStreams(ctx, l.at.AsOf.Position, []string{"ReleaseActivated"}, slot)
	if err != nil || len(recorded) == 0 {
		return err
	}
	activations := make([]domain.ReleaseActivated, len(recorded))
	for i, r := range recorded {
		e, err := r.Decode()
		if err != nil {
			return err
		}
		activations[i], _ = e.(domain.ReleaseActivated)
	}
	serves := activations[len(activations)-1]
	builds := []domain.BuildID{serves.Release.Build}
	for _, a := range slices.Backward(activations) {
		if a.Release.ID == serves.Release.ID {
			l.add(domain.DeploymentStream(a.Deployment))
		} else if len(builds) == 1 {
			builds = append(builds, a.Release.Build)
			l.add(domain.DeploymentStream(a.Deployment))
		}
	}
	return l.findBuilds(ctx, builds)
}

// findBuilds adds builds and the pushes that they came from.
func (l *lookup) findBuilds(ctx context.Context, ids []domain.BuildID) error {
	rows, err := l.q.BuildsOf(ctx, ids, l.at)
	if err != nil {
		return err
	}
	var from []string
	for _, b := range rows {
		l.add(domain.BuildStream(b.ID))
		from = append(from, string(b.Push))
	}
	found, err := list(ctx, l.q, l.at, timelineProjection, pushes, "key = ANY ($2)", from)
	for _, p := range found {
		l.add(domain.PushStream(p.Project, p.Source, p.Delivery))
		if l.since == 0 || p.Position < l.since {
			l.since = p.Position
		}
	}
	return err
}

// findPushes finds the pushes for here since then, with their builds and deployments.
func (l *lookup) findPushes(ctx context.Context) error {
	found, err := list(ctx, l.q, l.at, timelineProjection, pushes, "project = $2 AND place >= $3 ORDER BY place DESC LIMIT $4", l.project.ID, l.since, MaxFirst)
	if err != nil {
		return err
	}
	var ids []domain.BuildID
	told := 0
	for _, p := range found {
		if !l.concerns(p) {
			continue
		}
		if told++; told > maxBeside {
			l.more++
			continue
		}
		l.add(domain.PushStream(p.Project, p.Source, p.Delivery))
		for _, b := range p.Builds {
			ids = append(ids, b.ID)
		}
		for _, d := range p.Deployments {
			if l.isHere(d) {
				l.add(domain.DeploymentStream(d.ID))
			}
		}
	}
	rows, err := l.q.BuildsOf(ctx, ids, l.at)
	for _, b := range rows {
		if slices.Contains(b.Services, l.service.ID) {
			l.add(domain.BuildStream(b.ID))
		}
	}
	return err
}

func (l *lookup) isHere(d PushDeployment) bool {
	return d.Environment == l.environment.Name && d.Service == l.service.Name
}

// concerns says whether a push was for here: it was deployed here, or its branch is followed; of the ignored ones those
// that someone must mend something for.
func (l *lookup) concerns(p Push) bool {
	if slices.ContainsFunc(p.Deployments, l.isHere) {
		return true
	}
	branch := l.environment.Branch
	if branch == "" {
		branch = l.project.Settings.Branch
	}
	return p.Ref == "refs/heads/"+branch && (p.Status != PushIgnored || p.Diagnosis != nil)
}

// findByHand finds the deployments here since then that people asked for, with their builds.
func (l *lookup) findByHand(ctx context.Context) error {
	found, err := l.q.Deployments(ctx, l.project.ID, l.environment.ID, l.service.ID, Page{First: 2 * maxBeside}, l.at)
	for _, d := range found {
		if d.Position >= l.since && d.Reason != "push" {
			l.add(domain.DeploymentStream(d.ID))
		}
	}
	return err
}

// events reads the streams, with personal fields opened.
func (l *lookup) events(ctx context.Context) ([]domain.Happened, error) {
	streams := make([]domain.Stream, 0, len(l.streams))
	for s := range l.streams {
		streams = append(streams, s)
	}
	recorded, err := l.q.p.config.Store.ReadStreams(ctx, l.at.AsOf.Position, domain.Explained(), streams...)
	if err != nil {
		return nil, err
	}
	open := func(subject, eventID, field, ciphertext string) (string, bool, error) {
		return l.q.p.config.Opener(ctx, subject, eventID, field, ciphertext)
	}
	out := make([]domain.Happened, len(recorded))
	for i, r := range recorded {
		e, err := r.Decode()
		if err == nil {
			e, err = domain.Open(e, r.ID, open)
		}
		if err != nil {
			return nil, fmt.Errorf("event %s: %w", r.Cursor, err)
		}
		out[i] = domain.Happened{Recorded: r, Event: e}
	}
	return out, nil
}
