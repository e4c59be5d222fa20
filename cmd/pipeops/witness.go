package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

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

	kept   verify.Checkpoint // the newest that was seen of this log, by check or keep; zero: none
	keptIn string            // its file
}

func newWitness(store *eventstore.Store, home string, log *slog.Logger) *witness {
	file := filepath.Join(home, "checkpoint")
	return &witness{store: store, file: file, keptIn: file, interval: 10 * time.Second, log: log} // as often as heads are signed
}

// check says whether the log still begins with what the file has seen. What compare refuses, and a file that can't be
// understood, have exitRefused; the rest says nothing of the log.
func (w *witness) check(ctx context.Context) error {
	err := w.look(ctx)
	if err != nil {
		return fmt.Errorf("compare the log with %s: %w", w.keptIn, err)
	}
	return w.compare(ctx)
}

// look reads what the home has seen of this log.
func (w *witness) look(ctx context.Context) error {
	c, err := readCheckpoint(w.file)
	if err != nil {
		return err
	}
	id, err := w.store.LogID(ctx)
	if err != nil {
		return err
	}
	if c.LogID != id { // or there is no file
		w.keptIn = w.of(id)
		c, err = readCheckpoint(w.keptIn) // there is one where the home comes back to this log
	}
	w.kept = c
	return err
}

// lookAgain takes over what another process of this home has kept meanwhile.
func (w *witness) lookAgain() {
	c, err := readCheckpoint(w.file)
	if err == nil && c.LogID == w.kept.LogID && (c.Epoch > w.kept.Epoch || c.Epoch == w.kept.Epoch && c.Size > w.kept.Size) {
		w.kept = c
	}
}

// of is where the checkpoint of a log stays that the home has left.
func (w *witness) of(logID string) string { return w.file + "." + logID }

// readCheckpoint reads a file; the zero one where there is none.
func readCheckpoint(file string) (c verify.Checkpoint, err error) {
	text, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return c, nil
	case err != nil:
		return c, err
	}
	if c, err = verify.Parse(text); err == nil { // whoever could change it could delete it: its signature says no more
		err = uuid.Validate(c.LogID) // it becomes part of a file's name
	}
	if err != nil {
		return c, &coded{exitRefused, fmt.Errorf("%w; if you know that the database wasn't restored, delete the file", err)}
	}
	return c, nil
}

// compare refuses a log that doesn't begin with what was kept of it: it lost that, or has grown otherwise since. Where the
// log's epoch was raised since, whoever did that knows.
func (w *witness) compare(ctx context.Context) error {
	difference, err := w.differs(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("compare the log with %s: %w", w.keptIn, err)
	case difference == nil:
		return nil
	}
	refused := fmt.Errorf("the log is not what %s has seen of it: %w", w.keptIn, difference)
	if _, conflict := errors.AsType[*eventstore.HeadConflictError](difference); conflict { // only a server exports, and none starts
		refused = fmt.Errorf("%w; to see where, type mv %[2]s %[2]s.seen, start pipeops again, then type pipeops audit export --out export "+
			"and pipeops audit verify export --checkpoint %[2]s.seen", refused, w.keptIn)
	}
	return &coded{exitRefused, refused}
}

// differs says in what the log differs from what was kept of it: nil for nothing.
func (w *witness) differs(ctx context.Context) (difference, err error) {
	kept := w.kept
	now, err := w.store.Head(ctx)
	switch {
	case err != nil || kept.Size == 0 || kept.Epoch < now.LogEpoch:
		return nil, err
	case kept.Epoch > now.LogEpoch:
		return fmt.Errorf("checkpoint %s was signed in log epoch %d, and the database is in %d: it was restored to before an earlier restore "+
			"was declared; say so: pipeops audit fork --yes --at-least %d", kept.Name(), kept.Epoch, now.LogEpoch, kept.Epoch+1), nil
	case kept.Size > now.Position:
		return &eventstore.HeadConflictError{Epoch: kept.Epoch, Size: kept.Size, Position: now.Position + 1}, nil
	}
	root, err := w.store.RootAt(ctx, kept.Size) // what is suspect isn't signed
	if conflict, ok := errors.AsType[*eventstore.HeadConflictError](err); ok {
		return conflict, nil
	}
	if err == nil && root != kept.Root {
		difference = &eventstore.HeadConflictError{Epoch: kept.Epoch, Size: kept.Size}
	}
	return difference, err
}

// run keeps each newer checkpoint until ctx ends. It ends with an error when the log isn't what was kept of it any more:
// the database went back while serve ran.
func (w *witness) run(ctx context.Context) error {
	tick := time.NewTicker(w.interval)
	defer tick.Stop()
	for {
		if err := w.keep(ctx); exitCode(err) == exitRefused {
			return err
		} else if err != nil && context.Cause(ctx) == nil {
			w.log.WarnContext(ctx, "the newest checkpoint is not kept in the home", "file", w.file, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// keep puts the newest checkpoint into the file, where the log still begins with what the one before it saw: its size
// alone doesn't tell a log that went back and has grown again.
func (w *witness) keep(ctx context.Context) error {
	head, err := w.store.NewestHead(ctx) // before the log is compared: if that goes back in between, the next time tells
	if err != nil || head.Epoch == w.kept.Epoch && head.Size == w.kept.Size && head.Root == w.kept.Root {
		return err
	}
	w.lookAgain()
	if err := w.compare(ctx); err != nil {
		return err
	}
	if head.Epoch < w.kept.Epoch || head.Epoch == w.kept.Epoch && head.Size <= w.kept.Size {
		return nil // a standby that took over has all events, and not yet the head of them
	}
	newest, err := verify.Parse([]byte(head.Checkpoint))
	if err == nil {
		err = w.leaveOther(ctx, newest.LogID)
	}
	if err == nil {
		err = replaceFile(w.file, []byte(head.Checkpoint))
	}
	if err != nil {
		return err
	}
	w.kept, w.keptIn = newest, w.file
	return nil
}

// leaveOther puts aside what the home has seen of another log than id, once there is something to see of this one.
func (w *witness) leaveOther(ctx context.Context, id string) error {
	c, err := readCheckpoint(w.file) // again: another process of this home may have put it aside
	if err != nil || c.Size == 0 || c.LogID == id {
		return nil //nolint:nilerr // it was good at the start, and whatever it is now tells less than what was kept
	}
	aside := w.of(c.LogID)
	if err := os.Rename(w.file, aside); err != nil {
		return err
	}
	w.log.WarnContext(ctx, "this home has served another log until now; what it has seen of that is kept", "was", c.LogID, "file", aside)
	return nil
}
