package commands

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// Item is one step that a worker reports.
type Item struct {
	Event domain.Event
	At    time.Time // by the worker's clock
}

// Report decides the items of an attempt from number first on, with one load and one append, up to the one that isn't
// accepted. It gives how many were, those known before among them, and why the next one wasn't: *domain.Refusal,
// *domain.GapError, what Unwritable knows, or trouble with the store.
func (h *Handler) Report(ctx context.Context, a domain.AttemptID, first int64, items []Item, actor string) (accepted int, err error) {
	origin, err := h.Origin(ctx, a.Stream())
	if err != nil {
		return 0, err
	}
	m := Meta{
		Actor: actor, Project: origin.ProjectID, CorrelationID: origin.CorrelationID, CausationID: origin.ID, Attempt: a, Trace: origin.Trace,
	}
	for range maxRaces {
		accepted, err = h.report(ctx, m, first, items)
		switch {
		case Unwritable(err) && len(items) > 1: // one of them
			return h.reportEach(ctx, m, first, items)
		case !lostRace(err):
			return accepted, err
		}
	}
	return 0, fmt.Errorf("report %d of %s: lost %d races in a row", first, a, maxRaces)
}

func (h *Handler) reportEach(ctx context.Context, m Meta, first int64, items []Item) (accepted int, err error) {
	for i := range items {
		if _, err := h.Report(ctx, m.Attempt, first+int64(i), items[i:i+1], m.Actor); err != nil {
			return i, err
		}
	}
	return len(items), nil
}

func (h *Handler) report(ctx context.Context, m Meta, first int64, items []Item) (accepted int, refused error) {
	state, versions := domain.State{}, map[domain.Stream]int64{}
	var all []decided
	for i, item := range items {
		m.AttemptSeq, m.At = first+int64(i), item.At
		m.CommandID = domain.ReportCommandID(m.Attempt, m.AttemptSeq)
		cmd := reportCommand(m, item.Event)
		if err := h.load(ctx, cmd, state, versions); err != nil {
			return 0, fmt.Errorf("load for item %d of %s: %w", m.AttemptSeq, m.Attempt, err)
		}
		if p := progressOf(state, m.Attempt.Stream()); p.attempt == m.Attempt && p.sequence >= m.AttemptSeq {
			accepted++ // known; also when it was the last one
			continue
		}
		changes, err := cmd.Decide(state)
		if err != nil {
			refused = err
			break
		}
		for j, c := range changes {
			all = append(all, decided{c, domain.EventID(m.CommandID, j), m})
			if err := state.Fold(c.Stream, c.Event, m.AttemptSeq); err != nil {
				return 0, fmt.Errorf("item %d of %s: %w", m.AttemptSeq, m.Attempt, err)
			}
		}
		accepted++
	}
	if len(all) > 0 {
		if err := h.append(ctx, all, versions, extras{}); err != nil {
			return 0, err
		}
	}
	return accepted, refused
}

func reportCommand(m Meta, item domain.Event) domain.Command {
	if m.Attempt.Stream().Kind() == "deployment" {
		return domain.ReportDeployment{Attempt: m.Attempt, Sequence: m.AttemptSeq, Item: item}
	}
	return domain.ReportBuild{Attempt: m.Attempt, Sequence: m.AttemptSeq, Item: item}
}

// lostRace says whether somebody else was first, so that what was decided on is old.
func lostRace(err error) bool {
	_, conflict := errors.AsType[*eventstore.ConflictError](err)
	_, known := errors.AsType[*eventstore.IdempotencyMismatchError](err) // another caller decided the same command
	return conflict || known
}
