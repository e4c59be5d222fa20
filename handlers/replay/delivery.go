package replay

import (
	"context"
	"errors"
	"fmt"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/gitremote"
	"github.com/pipeops/pipeops/handlers/webhook"
	"github.com/pipeops/pipeops/internal/records"
)

// UnknownDeliveryError says that no delivery is kept under an id.
type UnknownDeliveryError struct{ ID domain.PushID }

func (e *UnknownDeliveryError) Error() string {
	return fmt.Sprintf("no delivery is kept of push %q", string(e.ID))
}

// Delivery reads a delivery as it came in, with the code of this version, decides it in the state that it was decided in
// then, with what follows from it by policy, and compares. Its signature was checked when it came; headers aren't kept,
// but for what the event tells of them. *UnknownDeliveryError where nothing is kept.
func (r *Replays) Delivery(ctx context.Context, run Run, push domain.PushID) (Result, error) {
	delivery, err := r.cfg.Deliveries.Get(ctx, string(push))
	if _, missing := errors.AsType[*records.NotFoundError](err); missing {
		return Result{}, &UnknownDeliveryError{push}
	}
	if err != nil {
		return Result{}, err
	}
	led, err := r.cfg.Store.Find(ctx, delivery.EventID)
	if err != nil {
		return Result{}, err
	}
	if len(led) == 0 {
		return Result{}, &UnknownDeliveryError{push}
	}
	was, err := r.cfg.Commands.Decided(ctx, string(led[0].Stream)) // what the doors derive the command's id from
	if err != nil {
		return Result{}, err
	}
	result := Result{Kind: "delivery", Subject: string(push), To: led[0].Cursor}
	result.From = domain.Cursor{LogEpoch: led[0].Cursor.LogEpoch, Position: led[0].Cursor.Position - 1}
	would, err := r.reread(ctx, led[0], delivery)
	if err != nil {
		return Result{}, err
	}
	differences, err := r.compare(ctx, string(push), was, would)
	if err != nil {
		return Result{}, err
	}
	result.count("bytes", int64(len(delivery.Raw)))
	result.count("events", int64(len(was)))
	result.differ(differences...)
	if len(was) > 0 && was[0].Type == domain.TypeOf(domain.PushReceived{}) {
		if err := r.answer(ctx, was[0], &result); err != nil {
			return Result{}, err
		}
	}
	return r.record(ctx, run, result)
}

// reread gives what this version would decide about a delivery.
func (r *Replays) reread(ctx context.Context, led domain.Recorded, delivery records.Delivery) ([]domain.Change, error) {
	e, err := led.Decode()
	if err != nil {
		return nil, err
	}
	var cmd domain.ReceivePush
	switch e := e.(type) {
	case domain.PushReceived:
		cmd = domain.ReceivePush{
			Push: e.Push, Project: e.Project, Source: e.Source, Delivery: e.Delivery, Kind: "push",
			Author: e.Author, Message: e.Message, Forced: e.Forced, Time: e.Timestamp,
		}
	case domain.PushIgnored:
		cmd = domain.ReceivePush{Push: e.Push, Project: e.Project, Source: e.Source, Delivery: e.Delivery, Kind: e.Kind}
	default:
		return nil, fmt.Errorf("delivery %s led to %s, which no door records", delivery.ID, led.Type)
	}
	if cmd.Source == gitremote.Source {
		cmd, err = gitremote.Reread(cmd, delivery.Raw, r.cfg.Keyed)
	} else {
		cmd, err = webhook.Reread(cmd, delivery.ContentType, delivery.Raw, r.cfg.Keyed)
	}
	if err != nil {
		return nil, err
	}
	return r.decide(ctx, cmd, led.Cursor.Position)
}
