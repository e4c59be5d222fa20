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

// UnknownDeliveryError says that no delivery is kept of a push, or under the id of a delivery.
type UnknownDeliveryError struct{ ID string }

func (e *UnknownDeliveryError) Error() string { return fmt.Sprintf("no delivery is kept of %q", e.ID) }

// Delivery reads a delivery as it came in, with the code of this version, decides it in the state that it was decided in
// then, with what follows from it by policy, and compares. Its signature was checked when it came; headers aren't kept,
// but for what the event tells of them. *UnknownDeliveryError where nothing is kept.
func (r *Replays) Delivery(ctx context.Context, run Run, push domain.PushID) (Result, error) {
	r.underWay.RLock()
	defer r.underWay.RUnlock()
	result := Result{Kind: "delivery", Subject: string(push), Counts: []domain.ReplayCount{}}
	err := r.delivery(ctx, push, &result)
	if _, unknown := errors.AsType[*UnknownDeliveryError](err); unknown {
		return Result{}, err // there was nothing to run
	}
	return r.end(ctx, run, result, "delivery", err)
}

// delivery adds to a result what it finds.
func (r *Replays) delivery(ctx context.Context, push domain.PushID, result *Result) error {
	delivery, err := r.cfg.Deliveries.Get(ctx, string(push))
	if _, missing := errors.AsType[*records.NotFoundError](err); missing {
		return &UnknownDeliveryError{string(push)}
	}
	if err != nil {
		return err
	}
	led, err := r.cfg.Store.Find(ctx, delivery.EventID)
	if err != nil {
		return err
	}
	if len(led) == 0 {
		return &UnknownDeliveryError{string(push)}
	}
	result.To = led[0].Cursor
	result.From = domain.Cursor{LogEpoch: led[0].Cursor.LogEpoch, Position: led[0].Cursor.Position - 1}
	was, err := r.cfg.Commands.Decided(ctx, string(led[0].Stream)) // what the doors derive the command's id from
	if err != nil {
		return err
	}
	would, err := r.reread(ctx, led[0], delivery)
	if err != nil {
		return err
	}
	differences, err := r.compare(ctx, string(push), was, would)
	if err != nil {
		return err
	}
	result.count("bytes", int64(len(delivery.Raw)))
	result.count("events", int64(len(was)))
	result.differ(differences...)
	if len(was) > 0 && was[0].Type == domain.TypeOf(domain.PushReceived{}) {
		return r.answer(ctx, was[0], result)
	}
	return nil
}

// Pushes gives what the deliveries of that id, the host's own, have led to in any of the projects: mostly one.
func (r *Replays) Pushes(ctx context.Context, delivery string, projects []domain.ProjectID) (pushes []domain.PushID, err error) {
	var streams []domain.Stream
	for _, project := range projects {
		for _, source := range append(webhook.Providers(), gitremote.Source) {
			streams = append(streams, domain.PushStream(project, source, delivery))
		}
	}
	events, err := r.cfg.Store.Firsts(ctx, streams...)
	if err != nil {
		return nil, err
	}
	for _, recorded := range events {
		e, err := recorded.Decode()
		if err != nil {
			return nil, err
		}
		switch e := e.(type) {
		case domain.PushReceived:
			pushes = append(pushes, e.Push)
		case domain.PushIgnored:
			pushes = append(pushes, e.Push)
		}
	}
	return pushes, nil
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
