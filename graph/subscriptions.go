package graph

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"time"

	"github.com/99designs/gqlgen/graphql/handler/transport"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/model"
	"github.com/pipeops/pipeops/projections"
)

// events follows the log for one subscriber.
func (r *Resolver) events(ctx context.Context, after domain.Cursor, f projections.EventFilter) (<-chan *model.EventBatch, error) {
	if err := r.config.Queries.Check(ctx, after); err != nil {
		return nil, err // a cursor of another log is told at once
	}
	out := make(chan *model.EventBatch)
	go func() {
		defer close(out)
		if err := r.forward(ctx, after, f, out); err != nil {
			r.fail(ctx, err)
		}
	}()
	return out, nil
}

// forward hands batches on as they come, and every while the cursor, when only events that the filter leaves out have
// moved it. It is the one goroutine of a subscriber: what each of a thousand has counts.
func (r *Resolver) forward(ctx context.Context, after domain.Cursor, f projections.EventFilter, out chan<- *model.EventBatch) error {
	told, at := after, time.Now()
	beat := time.NewTicker(r.config.Heartbeat)
	defer beat.Stop()
	for b, err := range r.config.Queries.Follow(ctx, after, f, beat.C) {
		if err != nil {
			return err
		}
		events := visible(ctx, r, b.Events, func(e domain.Recorded) domain.ProjectID { return e.ProjectID })
		if len(events) == 0 && (b.Cursor == told || time.Since(at) < r.config.Heartbeat/2) {
			continue
		}
		select {
		case out <- &model.EventBatch{Events: model.Events(events), Cursor: b.Cursor, Head: r.head(ctx, b.Cursor)}:
			told, at = b.Cursor, time.Now()
			sessionOf(ctx).hand(b.Cursor)
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// head is the newest event's cursor, or at least what was seen.
func (r *Resolver) head(ctx context.Context, seen domain.Cursor) domain.Cursor {
	head, err := r.config.Queries.LiveHead(ctx)
	if err != nil || head.Position < seen.Position {
		return seen
	}
	return head
}

// fail ends a subscription with an error, where the transport has a way to say so: else it just ends, and the reason
// comes with the next attempt.
func (r *Resolver) fail(ctx context.Context, err error) {
	if context.Cause(ctx) == nil && sessionOf(ctx) != nil {
		transport.AddSubscriptionError(ctx, presenter{r.config.Log, r.config.NewID}.show(ctx, &failure{err}))
	}
}

// watched is what a subscriber of a read model gets, with all that makes it worth sending again.
type watched[T any] struct {
	value  T
	nested any
	none   bool // there is nothing to send yet
}

// watch sends what load gives now, and again whenever one of the read models has moved and load gives something else.
func watch[T any](ctx context.Context, r *Resolver, load func(context.Context) (watched[T], error), readModels ...string) (<-chan T, error) {
	q := r.config.Queries
	seen, err := q.Changes(ctx, 0, readModels...)
	if err != nil {
		return nil, err
	}
	now, err := load(ctx)
	if err != nil {
		return nil, err
	}
	out := make(chan T)
	go func() {
		defer close(out)
		for sent := false; ; {
			if !sent && !now.none {
				select {
				case out <- now.value:
				case <-ctx.Done():
					return
				}
			}
			pause(ctx, r.config.Interval)
			if seen, err = q.Changes(ctx, seen, readModels...); err != nil {
				return // the subscriber has gone
			}
			next, err := load(ctx)
			if err != nil {
				r.fail(ctx, err)
				return
			}
			sent = reflect.DeepEqual(now, next)
			now = next
		}
	}()
	return out, nil
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// statusModels are the read models that Status is answered from.
var statusModels = []string{projections.OfProjects, projections.OfEnvironments, projections.OfDeployments}

func (r *Resolver) watchProjects(ctx context.Context) (<-chan []projections.Project, error) {
	q := r.config.Queries
	return watch(ctx, r, func(ctx context.Context) (w watched[[]projections.Project], err error) {
		at, err := q.Pin(ctx, projections.At{}, statusModels...)
		if err != nil {
			return w, err
		}
		found, err := q.Projects(ctx, projections.Names{}, at)
		if err != nil {
			return w, err
		}
		w.value = visible(ctx, r, found, ofProject)
		status, err := q.StatusOf(ctx, w.value, at)
		pushes := make([]*projections.Push, len(w.value))
		for i, p := range w.value {
			var e error
			pushes[i], e = q.LastPush(ctx, p.ID, projections.At{}) // of another read model, which may stand still
			err = errors.Join(err, e)
		}
		w.nested = []any{status, pushes}
		return w, err
	}, append(statusModels, projections.OfTimeline)...)
}

func (r *Resolver) watchStatus(ctx context.Context, project string) (<-chan []projections.ServiceStatus, error) {
	id, err := r.projectID(ctx, project)
	if err != nil {
		return nil, err
	}
	return watch(ctx, r, func(ctx context.Context) (w watched[[]projections.ServiceStatus], err error) {
		at, err := r.config.Queries.Pin(ctx, projections.At{}, statusModels...)
		if err != nil {
			return w, err
		}
		w.value, err = r.config.Queries.Status(ctx, string(id), at)
		return w, err
	}, statusModels...)
}

func (r *Resolver) watchTimeline(ctx context.Context, project string, push domain.PushID) (<-chan *projections.Timeline, error) {
	id, err := r.projectID(ctx, project)
	if err != nil {
		return nil, err
	}
	q := r.config.Queries
	return watch(ctx, r, func(ctx context.Context) (w watched[*projections.Timeline], err error) {
		w.value, err = q.Timeline(ctx, id, push, projections.At{})
		if err != nil {
			return w, err
		}
		if w.value == nil || w.value.Push.Project != id {
			if push != "" {
				return w, notFound("push", "push "+string(push)+" in this project", "see its pushes")
			}
			w.none = true
			return w, nil
		}
		builds, err := q.BuildsOf(ctx, buildIDs(w.value.Push), projections.At{})
		deployments, e := q.DeploymentsOf(ctx, deploymentIDs(w.value.Push), projections.At{})
		w.nested = []any{builds, deployments}
		return w, errors.Join(err, e)
	}, projections.OfTimeline, projections.OfBuilds, projections.OfDeployments)
}

func buildIDs(p projections.Push) []domain.BuildID {
	ids := make([]domain.BuildID, len(p.Builds))
	for i, b := range p.Builds {
		ids[i] = b.ID
	}
	return ids
}

func deploymentIDs(p projections.Push) []domain.DeploymentID {
	ids := make([]domain.DeploymentID, len(p.Deployments))
	for i, d := range p.Deployments {
		ids[i] = d.ID
	}
	return ids
}

// filter reads what a subscriber wants.
func (r *Resolver) filter(ctx context.Context, project *string, types []string, correlation, stream *string) (f projections.EventFilter, err error) {
	f = projections.EventFilter{Types: types, Correlation: value(correlation), Stream: value(stream)}
	for _, t := range types {
		if !slices.Contains(domain.Types(), t) {
			return f, badInput("types", "there is no event type "+t, "see docs/events.md")
		}
	}
	if value(project) != "" {
		id, err := r.projectID(ctx, *project)
		if err != nil {
			return f, err
		}
		f.Projects = []domain.ProjectID{id}
	}
	return f, nil
}
