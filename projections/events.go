package projections

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// EventFilter picks events; an empty field lets everything through.
type EventFilter struct {
	Until       int64              // last position, for Events; 0 = the head
	Projects    []domain.ProjectID // any of them; events of no project only when it is nil
	Types       []string           // any of them
	Stream      string             // what its name begins with: "build/", or a whole name
	Correlation string
}

func (f EventFilter) store() eventstore.Filter {
	return eventstore.Filter{Projects: f.Projects, Types: f.Types, Streams: f.Stream, Correlation: f.Correlation}
}

// EventBatch is part of the log.
type EventBatch struct {
	Events []domain.Recorded
	Cursor domain.Cursor // all up to here was seen, also what the filter kept back
}

// CursorError says that a cursor can't be used with this log any more.
type CursorError struct {
	Cursor domain.Cursor
	Forked bool  // the log was restored since, and goes on differently; else it never came this far
	Since  int64 // the first position that may differ, or the head
}

func (e *CursorError) Error() string {
	if e.Forked {
		return fmt.Sprintf("the log was restored since cursor %s: from position %d on it is another one", e.Cursor, e.Since)
	}
	return fmt.Sprintf("cursor %s is ahead of the log, which ends at position %d", e.Cursor, e.Since)
}

// readable gives the error that readers branch on for the store's.
func readable(err error) error {
	var forked *eventstore.LogForkedError
	var ahead *eventstore.CursorAheadError
	switch {
	case errors.As(err, &forked):
		return &CursorError{Cursor: forked.Cursor, Forked: true, Since: forked.ForkedAt}
	case errors.As(err, &ahead):
		return &CursorError{Cursor: ahead.Cursor, Since: ahead.Head.Position}
	}
	return err
}

// Head gives the newest event's cursor.
func (q *Queries) Head(ctx context.Context) (domain.Cursor, error) { return q.p.config.Store.Head(ctx) }

// Events gives up to limit events after a cursor, and whether there are more. *CursorError for a cursor of another log.
func (q *Queries) Events(ctx context.Context, after domain.Cursor, f EventFilter, limit int) (batch EventBatch, more bool, err error) {
	// The head comes first: what is found then is all there is up to it.
	head, err := q.p.config.Store.Head(ctx)
	if err != nil {
		return batch, false, err
	}
	if f.Until > 0 && f.Until < head.Position {
		head.Position = f.Until
	}
	query := eventstore.Query{After: after, Until: f.Until, Types: f.Types, Streams: f.Stream, Correlation: f.Correlation, Limit: limit + 1}
	if len(f.Projects) > 0 {
		query.Project = f.Projects[0]
	}
	for e, err := range q.p.config.Store.Read(ctx, query) {
		if err != nil {
			return batch, false, readable(err)
		}
		if len(batch.Events) == limit {
			return batch, true, nil
		}
		batch.Events, batch.Cursor = append(batch.Events, e), e.Cursor
	}
	if head.Position > batch.Cursor.Position {
		batch.Cursor = head
	}
	return batch, false, nil
}

// Follow gives all events after a cursor, from the database and then live, for as long as ctx lives; batches without
// events tell that others were seen. Cut it anywhere, and go on from the last batch's cursor. *CursorError ends it.
//
// At each beat it gives an empty batch as well.
func (q *Queries) Follow(ctx context.Context, after domain.Cursor, f EventFilter, beat <-chan time.Time) iter.Seq2[EventBatch, error] {
	return func(yield func(EventBatch, error) bool) {
		for b, err := range q.p.config.Store.SubscribeBeat(ctx, after, f.store(), beat) {
			if !yield(EventBatch{b.Events, b.Cursor}, readable(err)) {
				return
			}
		}
	}
}

// The read models that Changes knows.
const (
	OfProjects     = "projects"
	OfBuilds       = "builds"
	OfDeployments  = "deployments"
	OfEnvironments = "environments"
	OfTimeline     = "timeline"
)

// Changes waits until one of these read models has moved, or ctx ends. It gives a count to hand back as since; the
// first time, with 0, it gives it at once when they have moved at all.
func (q *Queries) Changes(ctx context.Context, since uint64, readModels ...string) (uint64, error) {
	for {
		moves, changed := q.p.marks.count(readModels)
		if moves != since {
			return moves, nil
		}
		select {
		case <-ctx.Done():
			return since, context.Cause(ctx)
		case <-changed:
		}
	}
}

// LiveHead gives the newest event's cursor as far as this process has heard, without asking the database. It waits for
// the first event there ever is.
func (q *Queries) LiveHead(ctx context.Context) (domain.Cursor, error) {
	return q.p.config.Store.Wait(ctx, domain.Cursor{})
}

// Check says whether a cursor can be used with this log; a *CursorError when not.
func (q *Queries) Check(ctx context.Context, cursor domain.Cursor) error {
	return readable(q.p.config.Store.Check(ctx, cursor))
}
