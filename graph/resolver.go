package graph

import (
	"context"
	"strings"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/projections"
)

// Resolver answers the fields of the schema.
type Resolver struct{ config Config }

// mayRead says whether who asks may see what belongs to a project.
func (r *Resolver) mayRead(ctx context.Context, project domain.ProjectID) bool {
	return r.config.MayRead(ctx, Actor(ctx), project)
}

// visible picks what the caller may see.
func visible[T any](ctx context.Context, r *Resolver, rows []T, project func(T) domain.ProjectID) []T {
	out := make([]T, 0, len(rows))
	for _, row := range rows {
		if r.mayRead(ctx, project(row)) {
			out = append(out, row)
		}
	}
	return out
}

// seen gives a row, or nil when the caller may not see it.
func seen[T any](ctx context.Context, r *Resolver, row *T, err error, project func(T) domain.ProjectID) (*T, error) {
	if err != nil || row == nil || !r.mayRead(ctx, project(*row)) {
		return nil, err
	}
	return row, nil
}

func ofProject(p projections.Project) domain.ProjectID       { return p.ID }
func ofStatus(s projections.ServiceStatus) domain.ProjectID  { return s.Project }
func ofBuild(b projections.Build) domain.ProjectID           { return b.Project }
func ofDeployment(d projections.Deployment) domain.ProjectID { return d.Project }
func ofPush(p projections.Push) domain.ProjectID             { return p.Project }

// projectID finds a project by name or id among those that the caller may see.
func (r *Resolver) projectID(ctx context.Context, nameOrID string) (domain.ProjectID, error) {
	p, err := r.config.Queries.Project(ctx, nameOrID, at(ctx))
	p, err = seen(ctx, r, p, err, ofProject)
	if err != nil {
		return "", err
	}
	if p == nil {
		return "", noProject(ctx, nameOrID)
	}
	return p.ID, nil
}

// noProject says that there is no such project, and as of when.
func noProject(ctx context.Context, nameOrID string) error {
	what := "project " + nameOrID
	if then := at(ctx).AsOf; then != nil {
		what += " as of " + then.String()
	}
	return notFound("project", what, "see: pipeops project list")
}

// loadProject folds a project from the log itself: who wants something must not meet yesterday's settings.
func (r *Resolver) loadProject(ctx context.Context, nameOrID string) (*domain.Project, error) {
	id := domain.ProjectID(nameOrID)
	if !strings.HasPrefix(nameOrID, "prj_") { // a name has no underscore
		state, _, err := r.config.Commands.Load(ctx, domain.CreateProject{Name: nameOrID})
		if err != nil {
			return nil, err
		}
		id = domain.Of[domain.ProjectName](state, domain.ProjectNameStream(nameOrID)).Project
	}
	if id != "" {
		state, _, err := r.config.Commands.Load(ctx, domain.ConfigureProject{ID: id})
		if err != nil {
			return nil, err
		}
		if p := domain.Of[domain.Project](state, domain.ProjectStream(id)); p.ID != "" && r.mayRead(ctx, p.ID) {
			return p, nil
		}
	}
	return nil, notFound("project", "project "+nameOrID, "see: pipeops project list")
}

// pageOfProjects gives the next projects after a name that the caller may see.
func (r *Resolver) pageOfProjects(ctx context.Context, first int, after string) (out []projections.Project, err error) {
	if _, err := page(first, nil); err != nil {
		return nil, err
	}
	for more := true; more && len(out) < first; {
		found, err := r.config.Queries.Projects(ctx, projections.Names{First: first, After: after}, at(ctx))
		if err != nil {
			return nil, err
		}
		if more = len(found) == first; more {
			after = found[first-1].Name
		}
		out = append(out, visible(ctx, r, found, ofProject)...)
	}
	return out[:min(first, len(out))], nil
}

func page(first int, before *int64) (projections.Page, error) {
	if first < 1 || first > projections.MaxFirst {
		return projections.Page{}, badInput("first", "a page has 1 to 500 rows", "ask for 100, and for the next page with before or after")
	}
	return projections.Page{First: first, Before: value(before)}, nil
}

// value gives what p points to, or the zero value.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
