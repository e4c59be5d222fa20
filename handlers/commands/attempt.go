package commands

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// Origin is the first event of a stream: it tells the project and the push
// that all of the stream belongs to. A *domain.Refusal when there is none.
func (h *Handler) Origin(ctx context.Context, stream domain.Stream) (domain.Recorded, error) {
	for r, err := range h.cfg.Store.ReadStream(ctx, stream, 0) {
		if err != nil {
			return domain.Recorded{}, fmt.Errorf("read the origin of %s: %w", stream, err)
		}
		return r, nil
	}
	return domain.Recorded{}, &domain.Refusal{Code: "UNKNOWN", Message: "there is no " + string(stream)}
}

// Progress tells the last stored item of an attempt, and why its worker shall
// stop, "" when it may go on or has ended it itself.
func (h *Handler) Progress(ctx context.Context, a domain.AttemptID) (sequence int64, over string, err error) {
	state := domain.State{}
	if _, err := h.fold(ctx, state, a.Stream()); err != nil {
		return 0, "", err
	}
	var current domain.AttemptID
	var lost bool
	switch s := state[a.Stream()].(type) {
	case *domain.Build:
		current, lost, sequence = s.Attempt(), s.Lost, s.Sequence
	case *domain.Deployment:
		current, lost, sequence = s.Attempt(), s.Lost, s.Sequence
	}
	switch {
	case current != a:
		return 0, "another attempt is the current one", nil
	case lost:
		return sequence, "the attempt was given up: its worker had not been heard of", nil
	}
	return sequence, "", nil
}

// Report decides one item of a worker's report. Errors: *domain.Refusal,
// *domain.GapError, or trouble with the store.
func (h *Handler) Report(ctx context.Context, a domain.AttemptID, sequence int64, item domain.Event, at time.Time, actor string) (Result, error) {
	origin, err := h.Origin(ctx, a.Stream())
	if err != nil {
		return Result{}, err
	}
	var cmd domain.Command = domain.ReportBuild{Attempt: a, Sequence: sequence, Item: item}
	if a.Stream().Kind() == "deployment" {
		cmd = domain.ReportDeployment{Attempt: a, Sequence: sequence, Item: item}
	}
	return h.Execute(ctx, cmd, Meta{
		CommandID: domain.ReportCommandID(a, sequence), Actor: actor, At: at, Project: origin.ProjectID,
		CorrelationID: origin.CorrelationID, CausationID: origin.ID, Attempt: a, AttemptSeq: sequence, Trace: origin.Trace,
	})
}

// LoseAttempt gives an attempt up whose worker is gone, once.
func (h *Handler) LoseAttempt(ctx context.Context, a domain.AttemptID, reason string, at time.Time) error {
	origin, err := h.Origin(ctx, a.Stream())
	if err != nil {
		return err
	}
	var cmd domain.Command = domain.LoseBuildAttempt{Attempt: a, Reason: reason}
	if a.Stream().Kind() == "deployment" {
		cmd = domain.LoseDeploymentAttempt{Attempt: a, Reason: reason}
	}
	_, err = h.Execute(ctx, cmd, Meta{
		CommandID: domain.Derive("lose", string(a)), Actor: "scheduler", At: at, Project: origin.ProjectID,
		CorrelationID: origin.CorrelationID, CausationID: origin.ID, Trace: origin.Trace,
	})
	return err
}

// Fail ends a waiting build or deployment that can't be handed out. The id is
// that of the message that told so: a deployment may fail so twice, when its
// roll-back can't be handed out either.
func (h *Handler) Fail(ctx context.Context, id, subject string, d domain.Diagnosis, at time.Time) error {
	stream := domain.AttemptID(subject + "." + strconv.Itoa(1)).Stream()
	origin, err := h.Origin(ctx, stream)
	if err != nil {
		return err
	}
	var cmd domain.Command = domain.FailBuild{Build: domain.BuildID(subject), Diagnosis: d}
	if stream.Kind() == "deployment" {
		cmd = domain.FailDeployment{Deployment: domain.DeploymentID(subject), Diagnosis: d}
	}
	_, err = h.Execute(ctx, cmd, Meta{
		CommandID: domain.Derive("fail", subject, d.Code, id), Actor: "ingest", At: at, Project: origin.ProjectID,
		CorrelationID: origin.CorrelationID, CausationID: origin.ID, Trace: origin.Trace,
	})
	return err
}
