package commands

import (
	"context"
	"strconv"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// Origin is the first event of a stream: it tells the project and the push
// that all of the stream belongs to. A *domain.Refusal when there is none.
func (h *Handler) Origin(ctx context.Context, stream domain.Stream) (domain.Recorded, error) {
	first, ok, err := h.cfg.Store.First(ctx, stream)
	if err != nil || ok {
		return first, err
	}
	return domain.Recorded{}, &domain.Refusal{Code: "UNKNOWN", Message: "there is no " + string(stream)}
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
