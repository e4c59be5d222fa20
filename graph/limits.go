package graph

import (
	"context"

	"github.com/99designs/gqlgen/graphql"
	"github.com/99designs/gqlgen/graphql/errcode"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/gqlerror"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/generated"
	"github.com/pipeops/pipeops/graph/model"
)

// depthLimit refuses queries that nest deeper.
type depthLimit int

// ExtensionName implements graphql.HandlerExtension.
func (depthLimit) ExtensionName() string { return "DepthLimit" }

// Validate implements graphql.HandlerExtension.
func (depthLimit) Validate(graphql.ExecutableSchema) error { return nil }

// MutateOperationContext implements graphql.OperationContextMutator.
func (d depthLimit) MutateOperationContext(_ context.Context, op *graphql.OperationContext) *gqlerror.Error {
	if depth := depthOf(op.Operation.SelectionSet); depth > int(d) {
		err := gqlerror.Errorf("the query is nested %d deep, at most %d is served", depth, int(d))
		errcode.Set(err, "DEPTH_LIMIT_EXCEEDED")
		return err
	}
	return nil
}

// depthOf is how deep fields nest; those that tools ask about the schema don't count: they can't grow with the data.
func depthOf(selection ast.SelectionSet) int {
	deepest := 0
	for _, s := range selection {
		depth := 0
		switch s := s.(type) {
		case *ast.Field:
			if s.Name != "__schema" && s.Name != "__type" {
				depth = 1 + depthOf(s.SelectionSet)
			}
		case *ast.InlineFragment:
			depth = depthOf(s.SelectionSet)
		case *ast.FragmentSpread:
			depth = depthOf(s.Definition.SelectionSet)
		}
		deepest = max(deepest, depth)
	}
	return deepest
}

// usual lengths of lists that name none.
const (
	fewRows  = 20
	someRows = 100
)

// complexity counts a field of a list as often as the list is long.
func complexity() (c generated.ComplexityRoot) {
	times := func(n int) func(int) int { return func(child int) int { return 1 + n*child } }
	page := func(child, first int) int { return 1 + max(1, first)*child }
	c.Query.Projects = func(child, first int, _ *string, _ *model.Moment, _ *domain.Cursor) int { return page(child, first) }
	c.Query.Status = func(child int, project *string, first int, _ *string, _ *model.Moment, _ *domain.Cursor) int {
		if value(project) != "" {
			first = fewRows
		}
		return page(child, first)
	}
	c.Query.Workers = times(fewRows)
	c.Query.Builds = func(child int, _ string, _ *string, first int, _ *int64, _ *model.Moment, _ *domain.Cursor) int {
		return page(child, first)
	}
	c.Query.Pushes = func(child int, _ string, _ bool, first int, _ *int64, _ *model.Moment, _ *domain.Cursor) int {
		return page(child, first)
	}
	c.Query.Deployments = func(child int, _ string, _, _ *string, first int, _ *int64, _ *model.Moment, _ *domain.Cursor) int {
		return page(child, first)
	}
	c.Query.Events = func(child int, _ *domain.Cursor, _ *model.Moment, _ *string, _ []string, _, _ *string, first int) int {
		return page(child, first)
	}
	c.Subscription.Events = func(child int, _ *domain.Cursor, _ *model.EventFilter) int { return times(someRows)(child) }
	c.Subscription.ProjectsChanged = times(fewRows)
	c.Subscription.StatusChanged = func(child int, _ string) int { return times(fewRows)(child) }
	c.Project.Status = times(fewRows / 4)
	c.Push.Builds = times(fewRows / 4)
	c.Push.Deployments = times(fewRows / 4)
	c.Timeline.Entries = times(someRows)
	return c
}
