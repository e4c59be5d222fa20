package graph

import (
	"context"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/model"
)

// eraseSubject destroys the keys first, then records it: what is on record is done. Cut short in between, it is asked
// for again, and recorded then.
func (r *Resolver) eraseSubject(ctx context.Context, in model.EraseSubjectInput) (*model.EraseSubjectPayload, error) {
	if err := domain.CheckReason(in.Reason); err != nil { // before anything is gone
		return nil, err
	}
	erased, err := r.config.Erasures.Erase(ctx, in.Subject)
	if err != nil {
		return nil, err
	}
	result, cursor, err := r.execute(ctx, domain.EraseSubject{
		Subject: erased.Subject, Reason: in.Reason, Keys: erased.Keys, At: r.config.Now(),
	}, r.commandID(ctx, "eraseSubject", in.IdempotencyKey), "")
	if err != nil {
		return nil, err
	}
	if _, err := decided[domain.SubjectErased](result.Events); err != nil {
		return nil, err
	}
	return &model.EraseSubjectPayload{
		Subject: erased.Subject, Keys: erased.Keys, Deliveries: erased.Deliveries,
		BackupsSince: erased.Since, Cursor: cursor,
	}, nil
}
