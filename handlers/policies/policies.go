// Package policies receives committed events from the event store and hands
// the commands that follow from them (domain.Follow) to handlers/commands; effects.
//
// It reads the log from its own cursor. The outcome of a command and the
// cursor move in one append, which also fences a second leader: whoever loses
// the compare-and-set starts again from the stored cursor. What can never be
// decided, now or later, is left out, so that one project's event doesn't hold
// up all others; what a newer version wrote holds up until this one is upgraded.
package policies

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
)

// CursorName names the policies' place in the log.
const CursorName = "policies"

// Leader runs a function in one process at a time.
type Leader interface {
	Lead(ctx context.Context, name string, run func(context.Context) error) error
}

// Config of the policies. All fields are required.
type Config struct {
	Store    *eventstore.Store
	Commands *commands.Handler
	Leader   Leader
	NewID    domain.NewID
	Now      func() time.Time
	Log      *slog.Logger
}

// Policies follow events. Use New.
type Policies struct{ cfg Config }

// New gives the policies.
func New(cfg Config) *Policies { return &Policies{cfg} }

// Run follows the log until ctx ends, in one process at a time. One that meets
// an error, an event of a newer version for instance, lets the next one try.
func (p *Policies) Run(ctx context.Context) error {
	return p.cfg.Leader.Lead(ctx, CursorName, p.follow)
}

// follow works from the stored cursor until something goes wrong.
func (p *Policies) follow(ctx context.Context) error {
	at, err := p.cfg.Store.LoadCursor(ctx, CursorName)
	if err != nil {
		return fmt.Errorf("load cursor %s: %w", CursorName, err)
	}
	filter := eventstore.Filter{Types: domain.Followed()}
	for batch, err := range p.cfg.Store.Subscribe(ctx, at, filter) {
		if err != nil {
			return fmt.Errorf("follow the log after %s: %w", at, err)
		}
		if at, err = p.RunOnce(ctx, at, batch); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// RunOnce answers one batch of events, moving the cursor from at to the batch's.
func (p *Policies) RunOnce(ctx context.Context, at domain.Cursor, batch eventstore.Batch) (domain.Cursor, error) {
	for _, r := range batch.Events {
		if err := p.answer(ctx, r, at); err != nil {
			return at, fmt.Errorf("policy for %s at %s: %w", r.Type, r.Cursor, err)
		}
		at = r.Cursor
	}
	return at, nil
}

func (p *Policies) answer(ctx context.Context, r domain.Recorded, at domain.Cursor) error {
	e, err := r.Decode()
	if err != nil {
		return err
	}
	move := commands.WithMove(eventstore.CursorMove{Name: CursorName, From: at, To: r.Cursor})
	cmd, follows := domain.Follow(r, e, p.cfg.NewID)
	if !follows {
		return nil
	}
	_, err = p.cfg.Commands.Execute(ctx, cmd, commands.Meta{
		CommandID: domain.Derive("policy", r.ID), Actor: "policy", At: p.cfg.Now(), Project: r.ProjectID,
		CorrelationID: r.CorrelationID, CausationID: r.ID, Trace: r.Trace,
	}, move)
	refusal, refused := errors.AsType[*domain.Refusal](err)
	if refused {
		p.cfg.Log.WarnContext(ctx, "policy refused", "position", r.Cursor.Position, "err", refusal)
	} else if commands.Unwritable(err) {
		p.cfg.Log.ErrorContext(ctx, "what follows from an event can't be recorded; it is left out", "position", r.Cursor.Position, "type", r.Type, "project", r.ProjectID, "err", err)
		refused = true
	}
	if refused {
		return p.cfg.Commands.Move(ctx, eventstore.CursorMove{Name: CursorName, From: at, To: r.Cursor})
	}
	return err
}
