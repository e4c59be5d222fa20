package graph

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/99designs/gqlgen/graphql"
	"github.com/vektah/gqlparser/v2/ast"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/model"
	"github.com/pipeops/pipeops/projections"
)

// readModels says what fields are answered from, by type and name. A field that asks more than it says here gets the
// right answer all the same: it waits for it.
var readModels = map[string][]string{
	"Query.projects":    {projections.OfProjects},
	"Query.project":     {projections.OfProjects},
	"Query.status":      {projections.OfProjects, projections.OfEnvironments, projections.OfDeployments},
	"Query.build":       {projections.OfBuilds},
	"Query.builds":      {projections.OfProjects, projections.OfBuilds},
	"Query.deployment":  {projections.OfDeployments},
	"Query.deployments": {projections.OfProjects, projections.OfDeployments},
	"Query.push":        {projections.OfTimeline},
	"Query.pushes":      {projections.OfProjects, projections.OfTimeline},
	"Query.timeline":    {projections.OfProjects, projections.OfTimeline},
	"Query.why":         {projections.OfProjects, projections.OfBuilds, projections.OfDeployments, projections.OfEnvironments, projections.OfTimeline},
	"Project.status":    {projections.OfEnvironments, projections.OfDeployments},
	"Project.lastPush":  {projections.OfTimeline},
	"Push.builds":       {projections.OfBuilds},
	"Push.deployments":  {projections.OfDeployments},
}

// modelsOf gives what a selection is answered from.
func modelsOf(selection ast.SelectionSet) (models []string) {
	for _, s := range selection {
		switch s := s.(type) {
		case *ast.Field:
			if s.ObjectDefinition != nil {
				models = append(models, readModels[s.ObjectDefinition.Name+"."+s.Name]...)
			}
			models = append(models, modelsOf(s.SelectionSet)...)
		case *ast.InlineFragment:
			models = append(models, modelsOf(s.SelectionSet)...)
		case *ast.FragmentSpread:
			models = append(models, modelsOf(s.Definition.SelectionSet)...)
		}
	}
	slices.Sort(models)
	return slices.Compact(models)
}

// moments sees to it that all fields of one query are answered as of one moment, but for those that name their own, and
// that the answer tells which.
type moments struct{ *Resolver }

// answered is when the fields of one query are.
type answered struct {
	now func() (projections.At, error) // of the fields that name no moment

	mu   sync.Mutex
	asOf map[string]string // cursors by the field's name in the answer
}

type (
	answeredKey struct{}
	atKey       struct{}
)

// at says as of when a field is answered: as the field of Query that it stands in, or with the mutation's outcome seen.
func at(ctx context.Context) projections.At {
	for f := graphql.GetFieldContext(ctx); f != nil; f = f.Parent {
		if answer, ok := f.Result.(model.Answer); ok {
			return projections.At{AtLeast: answer.Seen()}
		}
	}
	pinned, _ := ctx.Value(atKey{}).(projections.At)
	return pinned
}

// aroundOperation implements graphql.OperationMiddleware.
func (m moments) aroundOperation(ctx context.Context, next graphql.OperationHandler) graphql.ResponseHandler {
	op := graphql.GetOperationContext(ctx)
	if op.Operation.Operation != ast.Query {
		return next(ctx)
	}
	now := sync.OnceValues(func() (projections.At, error) { return m.now(ctx, op) })
	return next(context.WithValue(ctx, answeredKey{}, &answered{now: now, asOf: map[string]string{}}))
}

// aroundResponse implements graphql.ResponseMiddleware.
func (m moments) aroundResponse(ctx context.Context, next graphql.ResponseHandler) *graphql.Response {
	response := next(ctx)
	if a, ok := ctx.Value(answeredKey{}).(*answered); ok && response != nil && len(a.asOf) > 0 {
		if response.Extensions == nil {
			response.Extensions = map[string]any{}
		}
		response.Extensions["asOf"] = a.asOf
	}
	return response
}

// aroundField implements graphql.FieldMiddleware.
func (m moments) aroundField(ctx context.Context, next graphql.Resolver) (any, error) {
	field := graphql.GetFieldContext(ctx)
	a, query := ctx.Value(answeredKey{}).(*answered)
	if !query || field.Object != "Query" {
		return next(ctx)
	}
	models := modelsOf(ast.SelectionSet{field.Field.Field})
	if len(models) == 0 {
		return next(ctx)
	}
	pinned, err := m.pin(ctx, a, field, models)
	if err != nil {
		return nil, err
	}
	value, err := next(context.WithValue(ctx, atKey{}, pinned))
	if err == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.asOf[field.Field.Alias] = pinned.AsOf.String()
	}
	return value, err
}

// pin gives the moment of a field of Query.
func (m moments) pin(ctx context.Context, a *answered, field *graphql.FieldContext, models []string) (at projections.At, err error) {
	if c, ok := field.Args["atLeast"].(*domain.Cursor); ok && c != nil {
		if err := m.config.Queries.Check(ctx, *c); err != nil {
			return at, &argumentError{"atLeast", err}
		}
		at.AtLeast = *c
	}
	asOf, ok := field.Args["asOf"].(*model.Moment)
	if !ok || asOf == nil {
		return a.now()
	}
	if at.AsOf = &asOf.Cursor; !asOf.Time.IsZero() {
		c, err := m.moment(ctx, "asOf", *asOf)
		if err != nil {
			return at, err
		}
		at.AsOf = &c
	}
	at, err = m.config.Queries.Pin(ctx, at, models...)
	if _, wrong := errors.AsType[*projections.CursorError](err); wrong {
		err = &argumentError{"asOf", err}
	}
	return at, err
}

// now gives the moment for the fields of a query that name none: what all that they are answered from has seen.
func (m moments) now(ctx context.Context, op *graphql.OperationContext) (projections.At, error) {
	var at projections.At
	var models []string
	for _, field := range graphql.CollectFields(op, op.Operation.SelectionSet, []string{"Query"}) {
		args := field.ArgumentMap(op.Variables)
		if args["asOf"] != nil {
			continue
		}
		models = append(models, modelsOf(ast.SelectionSet{field.Field})...)
		text, _ := args["atLeast"].(string)
		c, err := domain.ParseCursor(text) // one that is wrong fails its own field
		if err == nil && c.Position > at.AtLeast.Position && m.config.Queries.Check(ctx, c) == nil {
			at.AtLeast = c
		}
	}
	slices.Sort(models)
	return m.config.Queries.Pin(ctx, at, slices.Compact(models)...)
}

// moment gives the cursor for an argument.
func (r *Resolver) moment(ctx context.Context, argument string, m model.Moment) (c domain.Cursor, err error) {
	if m.Time.IsZero() {
		c, err = m.Cursor, r.config.Queries.Check(ctx, m.Cursor)
	} else {
		c, err = r.config.Queries.Moment(ctx, m.Time)
	}
	if err != nil {
		return c, &argumentError{argument, err}
	}
	return c, nil
}
