package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// TimeError says that a time is no moment of the log.
type TimeError struct {
	Time  time.Time
	Ahead bool      // it lies ahead; else nothing was recorded yet
	Since time.Time // what time it is, or when the first event was recorded: zero in an empty log
}

func (e *TimeError) Error() string {
	text := e.Time.UTC().Format(time.RFC3339Nano)
	switch {
	case e.Ahead:
		return fmt.Sprintf("%s lies ahead: it is %s", text, e.Since.UTC().Format(time.RFC3339))
	case e.Since.IsZero():
		return "nothing is recorded yet"
	}
	return fmt.Sprintf("nothing was recorded yet at %s: the log begins at %s", text, e.Since.UTC().Format(time.RFC3339Nano))
}

// Moment gives the last place in the log that was recorded at or before a time; the same one whenever it is asked for.
// *TimeError when there is none.
func (q *Queries) Moment(ctx context.Context, t time.Time) (domain.Cursor, error) {
	c, err := q.p.config.Store.At(ctx, t)
	var ahead *eventstore.NotYetError
	var early *eventstore.BeforeLogError
	switch {
	case errors.As(err, &ahead):
		return c, &TimeError{Time: ahead.Time, Ahead: true, Since: ahead.Now}
	case errors.As(err, &early):
		return c, &TimeError{Time: early.Time, Since: early.First}
	}
	return c, err
}

// together is how long Pin waits for the slower read models to see what the fastest has seen.
const together = 500 * time.Millisecond

// Pin gives one moment for queries of several read models: at.AsOf, or else the newest that any of them has seen, once
// all have; where one stands still or takes long, the newest that all have seen. The same queries with the same moment
// give the same answers for ever, but for personal fields that were erased since. It waits like a query; errors:
// *CursorError, *BehindError.
func (q *Queries) Pin(ctx context.Context, at At, readModels ...string) (At, error) {
	if at.AsOf != nil && !slices.ContainsFunc(readModels, func(name string) bool { return !slices.Contains(at.seen, name) }) {
		return at, nil
	}
	wanted, err := q.wanted(ctx, at)
	if err != nil {
		return at, err
	}
	patience, cancel := context.WithTimeoutCause(ctx, q.p.config.Patience, errImpatient)
	defer cancel()
	var hurry <-chan time.Time
	var newest int64 // that any of them had seen at first
	for {
		_, changed := q.p.marks.count(readModels)
		known, err := q.p.checkpoints(ctx)
		if err != nil {
			return at, err
		}
		last, foremost, all := q.spread(known, readModels)
		if hurry == nil && at.AsOf == nil && all {
			hurry, newest = time.After(together), foremost
		}
		if last.StoppedPosition > 0 {
			newest = 0
		}
		if all && last.Cursor.Position >= max(wanted, newest) && q.current(ctx, known, readModels) {
			if at.AsOf == nil {
				at.AsOf = &last.Cursor
			}
			at.seen = slices.Concat(at.seen, readModels)
			return at, nil
		}
		select {
		case <-patience.Done():
			if errors.Is(context.Cause(patience), errImpatient) {
				return at, &BehindError{last.Name, last.Cursor.Position, wanted, last.StoppedError}
			}
			return at, context.Cause(patience)
		case <-hurry:
			newest = 0
		case <-changed:
		case <-time.After(time.Second): // another process may be ahead of this one
		}
	}
}

// current says whether all of these read models have seen the log that there is, not one that a restore took back.
func (q *Queries) current(ctx context.Context, known map[string]ProjectionStatus, readModels []string) bool {
	furthest := map[int64]domain.Cursor{} // of each log epoch: those before it are good when it is
	for _, name := range readModels {
		c := known[q.checkpointOf(name)].Cursor
		if c.Position >= furthest[c.LogEpoch].Position {
			furthest[c.LogEpoch] = c
		}
	}
	for _, c := range furthest {
		if q.p.config.Store.Check(ctx, c) != nil {
			return false
		}
	}
	return true
}

// checkpointOf names the checkpoint of a read model; empty for one that there isn't.
func (q *Queries) checkpointOf(readModel string) string {
	at, err := q.p.place(readModel)
	if err != nil {
		return ""
	}
	return at.checkpoint()
}

// spread gives the read model that has seen least, and what that is that any has seen; false when one has no tables yet.
func (q *Queries) spread(known map[string]ProjectionStatus, readModels []string) (last ProjectionStatus, newest int64, all bool) {
	for i, name := range readModels {
		status, there := known[q.checkpointOf(name)]
		status.Name = name
		if !there {
			return status, 0, false
		}
		if i == 0 || status.Cursor.Position < last.Cursor.Position {
			last = status
		}
		newest = max(newest, status.Cursor.Position)
	}
	return last, newest, len(readModels) > 0
}
