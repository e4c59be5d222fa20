package commands

import (
	"context"
	"fmt"
	"sync"

	"github.com/pipeops/pipeops/domain"
)

// maxFollowed bounds the streams of attempts that are kept folded; more than run at once.
const maxFollowed = 10_000

// followed is a stream of attempts as far as it was folded, so that a heartbeat
// reads only what is new.
type followed struct {
	mu      sync.Mutex
	state   domain.State
	version int64
	last    string // id of the event at version: after a restore another one may stand there
}

// Progress tells the last stored item of an attempt, and why its worker shall
// stop, "" when it may go on or has ended it itself.
func (h *Handler) Progress(ctx context.Context, a domain.AttemptID) (sequence int64, over string, err error) {
	f := h.follow(a.Stream())
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := h.catchUp(ctx, f, a.Stream()); err != nil {
		f.state, f.version = nil, 0
		return 0, "", err
	}
	p := progressOf(f.state, a.Stream())
	switch {
	case p.attempt != a:
		return 0, "another attempt is the current one", nil
	case p.lost:
		return p.sequence, "the attempt was given up: its worker had not been heard of", nil
	}
	return p.sequence, "", nil
}

func (h *Handler) follow(stream domain.Stream) *followed {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.followed[stream]
	if f == nil {
		if len(h.followed) >= maxFollowed {
			clear(h.followed)
		}
		f = &followed{}
		h.followed[stream] = f
	}
	return f
}

// catchUp folds what is new, from the event that was last on: when that one
// isn't there any more, the log went back, and all is folded again.
func (h *Handler) catchUp(ctx context.Context, f *followed, stream domain.Stream) error {
	if f.version == 0 {
		f.state = domain.State{}
	}
	same := f.version == 0
	for r, err := range h.cfg.Store.ReadStream(ctx, stream, max(f.version-1, 0)) {
		if err != nil {
			return fmt.Errorf("read stream %s: %w", stream, err)
		}
		if !same {
			if r.ID != f.last {
				break
			}
			same = true
			continue
		}
		if err := foldEvent(f.state, r); err != nil {
			return err
		}
		f.version, f.last = r.Version, r.ID
	}
	if !same {
		f.version = 0
		return h.catchUp(ctx, f, stream)
	}
	return nil
}

// progress is where a stream's attempts stand.
type progress struct {
	attempt  domain.AttemptID // the current one
	sequence int64            // its last stored item
	lost     bool
}

func progressOf(state domain.State, stream domain.Stream) progress {
	switch s := state[stream].(type) {
	case *domain.Build:
		return progress{s.Attempt(), s.Sequence, s.Lost}
	case *domain.Deployment:
		return progress{s.Attempt(), s.Sequence, s.Lost}
	}
	return progress{}
}
