package commands

import (
	"context"
	"fmt"

	"github.com/pipeops/pipeops/domain"
)

// LoadBefore folds the streams that a command reads as they were before a position of the log.
func (h *Handler) LoadBefore(ctx context.Context, cmd domain.Command, position int64) (domain.State, error) {
	state, done := domain.State{}, map[domain.Stream]bool{}
	for again := true; again; {
		again = false
		for _, stream := range cmd.Reads(state) {
			if done[stream] {
				continue
			}
			if err := h.foldBefore(ctx, state, stream, position); err != nil {
				return nil, err
			}
			done[stream], again = true, true
		}
	}
	return state, nil
}

func (h *Handler) foldBefore(ctx context.Context, state domain.State, stream domain.Stream, position int64) error {
	for r, err := range h.cfg.Store.ReadStream(ctx, stream, 0) {
		if err != nil {
			return fmt.Errorf("read stream %s: %w", stream, err)
		}
		if r.Cursor.Position >= position {
			return nil
		}
		if err := foldEvent(state, r); err != nil {
			return err
		}
	}
	return nil
}
