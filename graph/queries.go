package graph

import (
	"context"
	"maps"
	"slices"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/model"
	"github.com/pipeops/pipeops/projections"
)

const maxEvents = 1000 // of a page of the log

func (r *Resolver) eventPage(ctx context.Context, after domain.Cursor, until *model.Moment, project *string, types []string, correlation, stream *string, first int) (*model.EventPage, error) {
	if first < 1 || first > maxEvents {
		return nil, badInput("first", "a page has 1 to 1000 events", "ask for 100, and for the next page with after")
	}
	f, err := r.filter(ctx, project, types, correlation, stream)
	if err != nil {
		return nil, err
	}
	if until != nil {
		last, err := r.moment(ctx, "until", *until)
		if err != nil {
			return nil, err
		}
		f.Until = last.Position
	}
	batch, more, err := r.config.Queries.Events(ctx, after, f, first)
	if err != nil {
		return nil, err
	}
	head, err := r.config.Queries.Head(ctx)
	if err != nil {
		return nil, err
	}
	events := visible(ctx, r, batch.Events, func(e domain.Recorded) domain.ProjectID { return e.ProjectID })
	return &model.EventPage{Events: model.Events(events), Cursor: batch.Cursor, Head: head, More: more}, nil
}

func (r *Resolver) deployments(ctx context.Context, project string, environment, service *string, first int, before *int64) ([]projections.Deployment, error) {
	p, err := page(first, before)
	if err != nil {
		return nil, err
	}
	row, err := r.config.Queries.Project(ctx, project, at(ctx))
	if row, err = seen(ctx, r, row, err, ofProject); err != nil {
		return nil, err
	}
	if row == nil {
		return nil, noProject(ctx, project)
	}
	var e domain.Environment
	var s domain.Service
	var ok bool
	if value(environment) != "" {
		if e, ok = row.Environment(*environment); !ok {
			return nil, missing("environment", *environment, &row.Project)
		}
	}
	if value(service) != "" {
		if s, ok = row.Service(*service); !ok {
			return nil, missing("service", *service, &row.Project)
		}
	}
	return r.config.Queries.Deployments(ctx, row.ID, e.ID, s.ID, p, at(ctx))
}

func (r *Resolver) timeline(ctx context.Context, project *string, push domain.PushID) (*projections.Timeline, error) {
	var id domain.ProjectID
	var err error
	switch {
	case value(project) != "":
		if id, err = r.projectID(ctx, *project); err != nil {
			return nil, err
		}
	case push == "":
		return nil, badInput("project", "a timeline is that of a push, or of a project's last one", "give push or project")
	}
	t, err := r.config.Queries.Timeline(ctx, id, push, at(ctx))
	if t != nil && id != "" && t.Push.Project != id {
		return nil, err
	}
	return seen(ctx, r, t, err, func(t projections.Timeline) domain.ProjectID { return t.Push.Project })
}

// webhooks gives the providers that have a secret, by name.
func webhooks(revisions map[string]int) []model.Webhook {
	out := make([]model.Webhook, 0, len(revisions))
	for _, provider := range slices.Sorted(maps.Keys(revisions)) {
		out = append(out, model.Webhook{Provider: provider, Revision: revisions[provider]})
	}
	return out
}
