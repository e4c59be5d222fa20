package commands

import (
	"context"
	"errors"
	"fmt"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// Keyed makes opaque what the log keeps about people and about what came in.
type Keyed struct {
	Subject     func(provider, person string) string              // id of a person, an HMAC
	Fingerprint func(project domain.ProjectID, raw []byte) string // of a delivery, a keyed MAC
}

// Received is what is recorded about a delivery.
type Received struct {
	Push      domain.PushID     // of the recording; not the command's when another one was first
	Ignored   string            // why it leads to nothing (domain.PushIgnored.Reason), "" when it is built
	Diagnosis *domain.Diagnosis // what to mend, when that is why
	Cursor    domain.Cursor     // of the recorded event
}

// Receive records a delivery once, whoever else brings the same one at the
// same time: every caller gets what the first one recorded. Errors: those of Execute.
func (h *Handler) Receive(ctx context.Context, cmd domain.ReceivePush, m Meta, opts ...Option) (Received, error) {
	for range maxRaces {
		result, err := h.Execute(ctx, cmd, m, opts...)
		// Another caller was first, between our look-up of the command's id and
		// our look at the stream or our append: now the look-up finds it.
		var lost *eventstore.IdempotencyMismatchError
		if errors.As(err, &lost) || err == nil && len(result.Events) == 0 {
			continue
		}
		if err != nil {
			return Received{}, err
		}
		return received(result.Events)
	}
	return Received{}, fmt.Errorf("receive push %s: lost %d races in a row", m.CommandID, maxRaces)
}

func received(events []domain.Recorded) (Received, error) {
	for _, r := range events {
		e, err := r.Decode()
		if err != nil {
			return Received{}, fmt.Errorf("event %s of a delivery: %w", r.ID, err)
		}
		switch e := e.(type) {
		case domain.PushReceived:
			return Received{Push: e.Push, Cursor: r.Cursor}, nil
		case domain.PushIgnored:
			return Received{Push: e.Push, Ignored: e.Reason, Diagnosis: e.Diagnosis, Cursor: r.Cursor}, nil
		}
	}
	return Received{}, errors.New("the command is recorded, but not as a delivery")
}
