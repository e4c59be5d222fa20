package replay

import (
	"context"
	"errors"
	"fmt"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/policies"
)

// Policy lets the policies and deciders of this version answer again what the policies have answered after a cursor,
// each in the state that it was decided in then, and compares the decisions; of one project, or of all.
func (r *Replays) Policy(ctx context.Context, run Run, after domain.Cursor, project domain.ProjectID) (Result, error) {
	r.underWay.RLock()
	defer r.underWay.RUnlock()
	result := Result{Kind: "policy", Subject: string(project), From: after, To: after, Counts: []domain.ReplayCount{}}
	err := r.policy(ctx, run, project, &result)
	return r.end(ctx, run, result, "policy after "+result.To.String(), err)
}

// policy adds to a result what it finds, and up to where.
func (r *Replays) policy(ctx context.Context, run Run, project domain.ProjectID, result *Result) error {
	until, err := r.cfg.Store.LoadCursor(ctx, policies.CursorName)
	if err != nil || until.Position <= result.From.Position {
		return err
	}
	query := eventstore.Query{After: result.From, Until: until.Position, Project: project, Types: domain.Followed()}
	for e, err := range r.cfg.Store.Read(ctx, query) {
		if err != nil {
			return fmt.Errorf("replay the policies after %s: %w", result.To, err)
		}
		if err := r.answer(ctx, e, result); err != nil {
			return fmt.Errorf("replay the policy for %s at %s: %w", e.Type, e.Cursor, err)
		}
		result.To = e.Cursor
		run.step(Step{"policy", e.Cursor.Position, until.Position})
	}
	result.To = until
	run.step(Step{"policy", until.Position, until.Position})
	return nil
}

// answer compares what follows from an event with what followed from it.
func (r *Replays) answer(ctx context.Context, of domain.Recorded, result *Result) error {
	was, err := r.cfg.Commands.Decided(ctx, domain.Derive("policy", of.ID))
	if err != nil {
		return err
	}
	e, err := of.Decode()
	if err != nil {
		return err
	}
	ids, err := idsOf(was)
	if err != nil {
		return err
	}
	// Another project's or process's event may stand between what was loaded then and what was recorded: the decision
	// was made in a state between these two.
	moments := []int64{of.Cursor.Position + 1}
	if len(was) > 0 {
		moments = append(moments, was[0].Cursor.Position)
	}
	var found []Difference
	for _, before := range moments {
		var would []domain.Change
		if cmd, follows := domain.Follow(of, e, ids.next()); follows {
			if would, err = r.decide(ctx, cmd, before); err != nil {
				return err
			}
		}
		if found, err = r.compare(ctx, of.ID, was, would); err != nil {
			return err
		}
		if len(found) == 0 {
			break
		}
	}
	result.count("decisions", 1)
	result.count("events", int64(len(was)))
	result.differ(found...)
	return nil
}

// decide lets a command be decided in the state of a moment of the log. A refusal decides nothing.
func (r *Replays) decide(ctx context.Context, cmd domain.Command, before int64) ([]domain.Change, error) {
	state, err := r.cfg.Commands.LoadBefore(ctx, cmd, before)
	if err != nil {
		return nil, err
	}
	changes, err := cmd.Decide(state)
	if _, refused := errors.AsType[*domain.Refusal](err); refused {
		return nil, nil
	}
	return changes, err
}

// ids are those that a decision gave out, in order.
type ids map[string][]string

func idsOf(decided []domain.Recorded) (ids, error) {
	out := ids{}
	for _, d := range decided {
		e, err := d.Decode()
		if err != nil {
			return nil, err
		}
		switch e := e.(type) {
		case domain.BuildRequested:
			out["bld"] = append(out["bld"], string(e.Build))
		case domain.DeploymentRequested:
			out["dep"] = append(out["dep"], string(e.Deployment))
		}
	}
	return out, nil
}

// next gives them out again; whoever asks for more gets names that nothing has.
func (i ids) next() domain.NewID {
	given := map[string]int{}
	return func(prefix string) string {
		n := given[prefix]
		given[prefix]++
		if n < len(i[prefix]) {
			return i[prefix][n]
		}
		return fmt.Sprintf("%s_another-%d", prefix, n+1)
	}
}
