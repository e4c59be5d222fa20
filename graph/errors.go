package graph

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"

	"github.com/99designs/gqlgen/graphql"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/gqlerror"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/model"
	"github.com/pipeops/pipeops/handlers/replay"
	"github.com/pipeops/pipeops/projections"
)

// coded is an error that is meant for the caller.
type coded struct{ code, field, message, fix string }

func (e *coded) Error() string { return e.message }

// badInput is something in the request that can't be.
func badInput(field, message, fix string) error {
	return &coded{"BAD_INPUT", field, message, fix}
}

// argumentError says which argument an error is about.
type argumentError struct {
	field string
	err   error
}

func (e *argumentError) Error() string { return e.field + ": " + e.err.Error() }
func (e *argumentError) Unwrap() error { return e.err }

func notFound(field, what, fix string) error {
	return &coded{"NOT_FOUND", field, "there is no " + what, fix}
}

// presenter turns errors into what callers see. It is the only place where that happens.
type presenter struct {
	log   *slog.Logger
	newID domain.NewID
}

// failure marks an error that a resolver gave, as opposed to those that gqlgen makes of a bad request.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func (p presenter) aroundField(ctx context.Context, next graphql.Resolver) (any, error) {
	value, err := next(ctx)
	if err != nil {
		err = &failure{err}
	}
	return value, err
}

func (p presenter) recover(ctx context.Context, cause any) error {
	p.log.ErrorContext(ctx, "panic in a resolver", "err", fmt.Sprint(cause), "stack", string(debug.Stack()))
	return &failure{fmt.Errorf("panic: %v", cause)}
}

// present implements graphql.ErrorPresenterFunc.
func (p presenter) present(ctx context.Context, err error) *gqlerror.Error {
	shown := graphql.DefaultErrorPresenter(ctx, err)
	var ours *failure
	if code, _ := shown.Extensions["code"].(string); code != "" && !errors.As(err, &ours) {
		return shown // gqlgen's own: the query doesn't parse, isn't valid, or is too complex
	}
	better := p.show(ctx, err)
	better.Path, better.Locations = shown.Path, shown.Locations
	return better
}

// show gives an error with its code, field and fix. What has no code was not meant for the caller: it goes to the log,
// and the caller gets the number to look for.
func (p presenter) show(ctx context.Context, err error) *gqlerror.Error {
	var known *coded
	var refusal *domain.Refusal
	var cursor *projections.CursorError
	var behind *projections.BehindError
	var moment *projections.TimeError
	var ours *failure
	field := fieldOf(err)
	switch {
	case errors.As(err, &known):
	case errors.As(err, &refusal):
		known = &coded{refusal.Code, refusal.Field, refusal.Message, refusal.Fix}
	case errors.Is(err, domain.ErrCursor):
		known = &coded{"CURSOR_BAD", argumentOf(err), err.Error(), "use a cursor that this server gave you"}
	case errors.As(err, &cursor) && cursor.Forked:
		known = &coded{"CURSOR_FORKED", field, cursor.Error(), fmt.Sprintf("forget what came after position %d, and read on from there", cursor.Since-1)}
	case errors.As(err, &cursor):
		known = &coded{"CURSOR_AHEAD", field, cursor.Error(), "check that this is the server that gave you the cursor"}
	case errors.Is(err, model.ErrMoment):
		known = &coded{"MOMENT_BAD", argumentOf(err), err.Error(), "use a cursor that this server gave you, or a time with its zone"}
	case errors.As(err, &moment) && moment.Ahead:
		known = &coded{"MOMENT_AHEAD", field, moment.Error(), "leave it out for now, or use an earlier time"}
	case errors.As(err, &moment):
		known = &coded{"MOMENT_BEFORE_LOG", field, moment.Error(), "use a later time, or the cursor 1.0 for before the first event"}
	case errors.As(err, &behind):
		known = &coded{"READ_MODEL_BEHIND", "", behind.Error(), "ask again in a moment, or see: pipeops doctor"}
	case !errors.As(err, &ours) && isInput(err):
		known = &coded{"BAD_INPUT", "", err.Error(), ""}
	default:
		number := p.newID("err")
		if ended, ok := errors.AsType[*replay.EndedError](err); ok && ended.Number != "" {
			number = ended.Number // under which it is in the log
		} else if context.Cause(ctx) == nil { // a caller that has left caused it itself
			p.log.ErrorContext(ctx, "request failed", "error_id", number, "err", err)
		}
		known = &coded{"INTERNAL", "", "internal error " + number, "look for this number in the log of pipeops serve"}
	}
	extensions := map[string]any{"code": known.code, "field": known.field, "fix": known.fix}
	if cursor != nil && cursor.Forked { // programs go on from there
		extensions["position"] = strconv.FormatInt(cursor.Since, 10)
	}
	return &gqlerror.Error{Err: err, Message: known.message, Extensions: extensions}
}

// fieldOf names the argument that an error is about; "after" when nothing says more.
func fieldOf(err error) string {
	if in, ok := errors.AsType[*argumentError](err); ok {
		return in.field
	}
	return "after"
}

// argumentOf names the argument that can't be read: the end of the path that gqlgen gives such an error.
func argumentOf(err error) string {
	if made, ok := errors.AsType[*gqlerror.Error](err); ok && len(made.Path) > 1 {
		if name, ok := made.Path[len(made.Path)-1].(ast.PathName); ok {
			return string(name)
		}
	}
	return fieldOf(err)
}

// isInput says whether an error is gqlgen's about the request: an argument of the wrong form, for example.
func isInput(err error) bool {
	var made *gqlerror.Error
	return errors.As(err, &made)
}
