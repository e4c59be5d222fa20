// Package relay receives committed events from the event store and hands them
// to the bus for outsiders, as CloudEvents with their cursor; effects. At
// least once, in order while one process leads.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/internal/bus"
)

// CursorName names the relay's place in the log.
const CursorName = "relay"

// Leader runs a function in one process at a time.
type Leader interface {
	Lead(ctx context.Context, name string, run func(context.Context) error) error
}

// Config of the relay. All fields are required.
type Config struct {
	Store  *eventstore.Store
	Bus    bus.Bus
	Leader Leader
	Log    *slog.Logger
}

// Relay publishes what was committed. Use New.
type Relay struct{ cfg Config }

// New gives a relay.
func New(cfg Config) *Relay { return &Relay{cfg} }

// Run publishes until ctx ends, in one process at a time.
func (r *Relay) Run(ctx context.Context) error {
	return r.cfg.Leader.Lead(ctx, CursorName, r.follow)
}

func (r *Relay) follow(ctx context.Context) error {
	at, err := r.cfg.Store.LoadCursor(ctx, CursorName)
	if err != nil {
		return fmt.Errorf("load cursor %s: %w", CursorName, err)
	}
	for batch, err := range r.cfg.Store.Subscribe(ctx, at, eventstore.Filter{}) {
		if err != nil {
			return fmt.Errorf("follow the log after %s: %w", at, err)
		}
		if at, err = r.RunOnce(ctx, at, batch); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// RunOnce publishes a batch, then moves the cursor behind it.
func (r *Relay) RunOnce(ctx context.Context, at domain.Cursor, batch eventstore.Batch) (domain.Cursor, error) {
	for _, e := range batch.Events {
		err := r.cfg.Bus.PublishCommitted(ctx, bus.NewCommitted(e))
		if _, large := errors.AsType[*bus.TooLargeError](err); large {
			r.cfg.Log.ErrorContext(ctx, "event is too large for the bus; readers of the log have it", "position", e.Cursor.Position)
		} else if err != nil {
			return at, fmt.Errorf("publish %s: %w", e.Cursor, err)
		}
	}
	if batch.Cursor == at {
		return at, nil
	}
	_, err := r.cfg.Store.Append(ctx, eventstore.Append{Move: &eventstore.CursorMove{Name: CursorName, From: at, To: batch.Cursor}})
	if err != nil {
		return at, fmt.Errorf("move cursor %s: %w", CursorName, err)
	}
	return batch.Cursor, nil
}
