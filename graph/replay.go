package graph

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/model"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/handlers/replay"
	"github.com/pipeops/pipeops/projections"
)

func (r *Resolver) projections(ctx context.Context) ([]model.Projection, error) {
	status, err := r.config.Queries.Standing(ctx)
	out := make([]model.Projection, len(status))
	for i, s := range status {
		out[i] = projection(s)
	}
	return out, err
}

func projection(s projections.ProjectionStatus) model.Projection {
	p := model.Projection{
		Name: s.Name, Version: s.Version, Cursor: s.Cursor, Behind: s.Behind, BehindMs: s.BehindFor.Milliseconds(),
		MovedAt: &s.MovedAt, CaughtUpAt: &s.CaughtUpAt, Skipped: s.Skipped,
	}
	if s.StoppedPosition > 0 {
		p.Stopped = &model.ProjectionStop{
			Position: s.StoppedPosition, Event: s.StoppedEvent, Type: s.StoppedType, Error: s.StoppedError, At: &s.StoppedAt,
		}
	}
	return p
}

func (r *Resolver) retryProjection(ctx context.Context, in model.StoppedProjectionInput) (*model.ProjectionPayload, error) {
	return r.decideStopped(ctx, "retryProjection", in, func(s domain.StoppedProjection) domain.Command {
		return domain.RetryProjection{StoppedProjection: s, Reason: in.Reason, At: r.config.Now()}
	})
}

func (r *Resolver) skipProjection(ctx context.Context, in model.StoppedProjectionInput) (*model.ProjectionPayload, error) {
	return r.decideStopped(ctx, "skipProjection", in, func(s domain.StoppedProjection) domain.Command {
		return domain.SkipProjection{StoppedProjection: s, Reason: in.Reason, At: r.config.Now()}
	})
}

// decideStopped records what becomes of a read model that has stopped.
func (r *Resolver) decideStopped(ctx context.Context, mutation string, in model.StoppedProjectionInput, command func(domain.StoppedProjection) domain.Command) (*model.ProjectionPayload, error) {
	id := r.commandID(ctx, mutation, in.IdempotencyKey)
	known, err := r.config.Commands.Decided(ctx, id)
	if err != nil {
		return nil, err
	}
	cursor := commands.Result{Events: known}.Cursor()
	if len(known) == 0 {
		err = r.config.Queries.WhileStopped(ctx, in.Name, func(s projections.ProjectionStatus) error {
			_, cursor, err = r.execute(ctx, command(domain.StoppedProjection{
				Projection: s.Name, Version: s.Version, Event: s.StoppedEvent, Position: s.StoppedPosition,
			}), id, "")
			return err
		})
	}
	if err != nil {
		return nil, r.replayError(ctx, err)
	}
	all, err := r.projections(ctx)
	for _, p := range all {
		if p.Name == in.Name {
			return &model.ProjectionPayload{Projection: &p, Cursor: cursor}, nil
		}
	}
	return &model.ProjectionPayload{Cursor: cursor}, err
}

// replayError says to the caller what it can do something about. Why a replay ended is in the log, under the number that
// is on record.
func (r *Resolver) replayError(ctx context.Context, err error) error {
	if ended, ok := errors.AsType[*replay.EndedError](err); ok && ended.Number != "" {
		r.config.Log.ErrorContext(ctx, "replay failed", "error_id", ended.Number, "err", err)
	} else if ok {
		r.config.Log.WarnContext(ctx, "replay was cut", "err", err)
	}
	var unknown *projections.UnknownError
	var running *projections.RunningError
	var busy *projections.BusyError
	var missing *replay.UnknownDeliveryError
	switch {
	case errors.As(err, &unknown):
		return &coded{"NOT_FOUND", "name", unknown.Error(), "see: pipeops projections list"}
	case errors.As(err, &running):
		return &coded{"NOT_STOPPED", "name", running.Error(), "see: pipeops projections list"}
	case errors.As(err, &busy):
		return &coded{"BUSY", "", busy.Error(), "wait for it to end"}
	case errors.As(err, &missing):
		return &coded{"NOT_FOUND", "push", missing.Error(), "give the id of a push, psh_…, or the git host's id of a delivery that is still kept"}
	}
	return err
}

func (r *Resolver) replayDelivery(ctx context.Context, id string) (*replay.Result, error) {
	push, err := r.delivered(ctx, id)
	if err != nil {
		return nil, r.replayError(ctx, err)
	}
	result, err := r.config.Replays.Delivery(ctx, replay.Run{Actor: Actor(ctx)}, push)
	if err != nil {
		return nil, r.replayError(ctx, err)
	}
	return &result, nil
}

// delivered finds what a delivery has led to, by the push's id or by the one that the git host gave the delivery, among
// what the caller may see.
func (r *Resolver) delivered(ctx context.Context, id string) (domain.PushID, error) {
	p, err := r.config.Queries.Push(ctx, domain.PushID(id), projections.At{})
	if p, err = seen(ctx, r, p, err, ofPush); err != nil {
		return "", err
	}
	if p != nil {
		return p.ID, nil
	}
	all, err := r.config.Queries.Projects(ctx, projections.Names{}, projections.At{})
	if err != nil {
		return "", err
	}
	var projects []domain.ProjectID
	for _, project := range visible(ctx, r, all, ofProject) {
		projects = append(projects, project.ID)
	}
	pushes, err := r.config.Replays.Pushes(ctx, id, projects)
	switch {
	case err != nil:
		return "", err
	case len(pushes) == 0:
		return "", &replay.UnknownDeliveryError{ID: id}
	case len(pushes) > 1:
		return "", &coded{"AMBIGUOUS", "push", fmt.Sprintf("delivery %q has led to %d pushes: %q", id, len(pushes), pushes), "give the id of one of them"}
	}
	return pushes[0], nil
}

func (r *Resolver) replayProjections(ctx context.Context, names []string, verify bool) (<-chan *model.ReplayStep, error) {
	return r.steps(ctx, func(run replay.Run) (replay.Result, error) {
		return r.config.Replays.Projections(ctx, run, names, verify)
	}), nil
}

func (r *Resolver) replayPolicy(ctx context.Context, since *model.Moment, project *string) (<-chan *model.ReplayStep, error) {
	var after domain.Cursor
	var id domain.ProjectID
	var err error
	if since != nil {
		if after, err = r.since(ctx, *since); err != nil {
			return nil, err
		}
	}
	if project != nil {
		if id, err = r.projectID(ctx, *project); err != nil {
			return nil, err
		}
	}
	return r.steps(ctx, func(run replay.Run) (replay.Result, error) {
		return r.config.Replays.Policy(ctx, run, after, id)
	}), nil
}

// since gives the cursor to begin behind: what was recorded at a time comes after it, and before the log is its beginning.
func (r *Resolver) since(ctx context.Context, m model.Moment) (domain.Cursor, error) {
	if !m.Time.IsZero() {
		m.Time = m.Time.Add(-time.Microsecond)
	}
	after, err := r.moment(ctx, "since", m)
	if early, ok := errors.AsType[*projections.TimeError](err); ok && !early.Ahead {
		return domain.Cursor{}, nil
	}
	return after, err
}

// steps runs a replay and tells how far it is, as often as whoever asked takes it; it stops when they leave.
func (r *Resolver) steps(ctx context.Context, run func(replay.Run) (replay.Result, error)) <-chan *model.ReplayStep {
	out, now := make(chan *model.ReplayStep), make(chan *model.ReplayStep, 1) // 1: only the newest counts
	type end struct {
		result replay.Result
		err    error
	}
	ended := make(chan end, 1) // 1: it may be that nobody waits any more
	go func() {
		result, err := run(replay.Run{Actor: Actor(ctx), Step: func(s replay.Step) {
			select {
			case <-now:
			default:
			}
			now <- &model.ReplayStep{Subject: s.Subject, Position: s.Position, Goal: s.Goal}
		}})
		ended <- end{result, r.replayError(ctx, err)}
	}()
	go func() {
		defer close(out)
		for {
			var step *model.ReplayStep
			var last *end
			select {
			case e := <-ended:
				last = &e
			case step = <-now:
			}
			if last != nil && last.err != nil {
				r.fail(ctx, last.err)
				return
			}
			if last != nil {
				step = &model.ReplayStep{Subject: last.result.Kind, Position: last.result.To.Position, Goal: last.result.To.Position, Result: &last.result}
			}
			select {
			case out <- step:
			case <-ctx.Done():
				if last == nil {
					<-ended
				}
				return
			}
			if last != nil {
				return
			}
			pause(ctx, r.config.Interval)
		}
	}()
	return out
}
