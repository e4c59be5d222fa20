package graph

import (
	"context"
	"strings"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/projections"
)

func (r *Resolver) why(ctx context.Context, environment string, service, project *string) (*domain.Why, error) {
	q := r.config.Queries
	var p *projections.Project
	var err error
	switch {
	case value(project) != "":
		p, err = q.Project(ctx, *project, at(ctx))
	case strings.HasPrefix(environment, "env_"): // a name has no underscore
		p, err = q.ProjectOf(ctx, domain.EnvironmentID(environment), at(ctx))
	default:
		return nil, badInput("project", "the name of an environment says something within its project only", "give the project, or the environment's id")
	}
	if p, err = seen(ctx, r, p, err, ofProject); err != nil {
		return nil, err
	}
	if p == nil && value(project) != "" {
		return nil, noProject(ctx, *project)
	}
	if p == nil {
		return nil, nil
	}
	e, s, err := target(&p.Project, &environment, service)
	if err != nil {
		return nil, err
	}
	return q.Why(ctx, *p, e, s, at(ctx))
}
