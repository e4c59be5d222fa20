package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/verify"
)

// witness keeps the newest signed checkpoint in a file of the home, apart from the database. A database that was restored
// without its newest events says nothing of them; the file does, and nobody goes on as if nothing had been.
type witness struct {
	store    *eventstore.Store
	file     string
	interval time.Duration
	log      *slog.Logger
}

func newWitness(store *eventstore.Store, home string, log *slog.Logger) *witness {
	return &witness{store: store, file: filepath.Join(home, "checkpoint"), interval: 10 * time.Second, log: log} // as often as heads are signed
}

// check says whether the log still begins with what the file has seen: *eventstore.HeadConflictError if not. Where the
// log's epoch was raised since, whoever did that knows.
func (w *witness) check(ctx context.Context) error {
	if err := w.compare(ctx); err != nil {
		return &coded{exitRefused, fmt.Errorf("the log is not what %s has seen of it: %w", w.file, err)}
	}
	return nil
}

func (w *witness) compare(ctx context.Context) error {
	saw, err := w.saw(ctx)
	if err != nil || saw.Size == 0 {
		return err
	}
	now, err := w.store.Head(ctx)
	if err != nil {
		return err
	}
	switch {
	case saw.Epoch < now.LogEpoch:
		return nil
	case saw.Epoch > now.LogEpoch:
		return fmt.Errorf("checkpoint %s was signed in log epoch %d, and the database is in %d: it was restored to before an earlier restore "+
			"was declared; say so: pipeops audit fork --yes --at-least %d", saw.Name(), saw.Epoch, now.LogEpoch, saw.Epoch+1)
	case saw.Size > now.Position:
		return &eventstore.HeadConflictError{Epoch: saw.Epoch, Size: saw.Size, Position: now.Position + 1}
	}
	root, err := w.store.RootAt(ctx, saw.Size) // what is suspect isn't signed
	if err == nil && root != saw.Root {
		err = &eventstore.HeadConflictError{Epoch: saw.Epoch, Size: saw.Size}
	}
	return err
}

// saw gives what the file has seen of this log; the zero one for nothing.
func (w *witness) saw(ctx context.Context) (c verify.Checkpoint, err error) {
	text, err := os.ReadFile(w.file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return c, nil
	case err != nil:
		return c, err
	}
	if c, err = verify.Parse(text); err != nil { // whoever could change it could delete it: its signature says no more
		return c, fmt.Errorf("%s: %w; if you know that the database wasn't restored, delete the file", w.file, err)
	}
	id, err := w.store.LogID(ctx)
	if err == nil && c.LogID != id {
		w.log.WarnContext(ctx, "this home has served another log until now", "was", c.LogID, "is", id)
		return verify.Checkpoint{}, nil
	}
	return c, err
}

// run keeps each newer checkpoint until ctx ends. It ends with an error when the database's newest one is older than what
// was kept: the database went back while serve ran.
func (w *witness) run(ctx context.Context) error {
	var kept eventstore.Head
	tick := time.NewTicker(w.interval)
	defer tick.Stop()
	for {
		switch head, err := w.store.NewestHead(ctx); {
		case err != nil:
			w.log.DebugContext(ctx, "the newest checkpoint could not be read", "err", err)
		case head.Epoch < kept.Epoch, head.Epoch == kept.Epoch && head.Size < kept.Size:
			return &eventstore.HeadConflictError{Epoch: kept.Epoch, Size: kept.Size, Position: head.Size + 1}
		case head != kept:
			if err := replaceFile(w.file, []byte(head.Checkpoint)); err != nil {
				w.log.WarnContext(ctx, "the newest checkpoint is not kept in the home", "file", w.file, "err", err)
				break
			}
			kept = head
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
