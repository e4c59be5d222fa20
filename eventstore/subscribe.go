package eventstore

import (
	"context"
	"iter"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// Batch is what is new to a subscriber.
type Batch struct {
	Events []domain.Recorded // let through by its filter, in order; may be empty
	Cursor domain.Cursor     // all up to here was seen, also what the filter kept back: resume after it
}

// Subscribe gives all events after the cursor that the filter lets through, from the database and then live, for as
// long as ctx lives: no gap, no double, and nothing kept in memory for a subscriber that is slow. Cut it anywhere and
// go on from the last batch's cursor. What the filter keeps back doesn't wake the subscriber: the cursor of that comes
// with the next event for it, or within the PollInterval. It needs Run. The events are shared: don't change their bodies.
//
// *LogForkedError and *CursorAheadError end it; an outage of the database does not.
func (s *Store) Subscribe(ctx context.Context, after domain.Cursor, filter Filter) iter.Seq2[Batch, error] {
	return s.SubscribeBeat(ctx, after, filter, nil)
}

// SubscribeBeat is Subscribe that also gives an empty batch, with a cursor that may be known, at each beat that it waits
// at: whoever has to do something every while needs no goroutine beside it.
func (s *Store) SubscribeBeat(ctx context.Context, after domain.Cursor, filter Filter, beat <-chan time.Time) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		r := reader{store: s, filter: filter, beat: beat, cursor: after, seen: after, checked: -1}
		for {
			batch, err := r.next(ctx)
			if context.Cause(ctx) != nil || !yield(batch, err) || err != nil {
				return
			}
		}
	}
}

// reader is one subscriber's place.
type reader struct {
	store   *Store
	filter  Filter
	beat    <-chan time.Time
	cursor  domain.Cursor // up to here the subscriber knows all
	seen    domain.Cursor // at or after cursor: nothing between them is for it
	checked int           // view.restored for which the cursor is known to be good
}

// next waits for something new. When ctx has ended, what it returns has no meaning.
func (r *reader) next(ctx context.Context) (Batch, error) {
	for {
		now := r.store.hub.view()
		batch, err := r.read(ctx, now)
		switch {
		case err != nil && isOutage(err):
			if pause(ctx, r.store.config.PollInterval); context.Cause(ctx) != nil {
				return Batch{}, context.Cause(ctx)
			}
			continue // nothing may happen any more, but what there is was not read
		case err != nil:
			return Batch{}, err
		case batch.Cursor != r.cursor:
			r.cursor, r.seen = batch.Cursor, batch.Cursor
			return batch, nil
		}
		w, woken := r.store.hub.wait(now, r.cursor, r.filter)
		select {
		case <-ctx.Done():
			r.store.hub.leave(w)
			return Batch{}, context.Cause(ctx)
		case <-r.beat:
			r.store.hub.leave(w)
			return Batch{Cursor: r.cursor}, nil
		case <-woken:
			r.seen = w.seen
		}
	}
}

// pause waits for d, or until ctx has ended.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// read gives what follows the cursor: from the ring if that reaches back so far, else from the database.
func (r *reader) read(ctx context.Context, now view) (Batch, error) {
	batch := Batch{Cursor: r.cursor}
	if !now.following {
		return batch, nil
	}
	if now.restored != r.checked {
		r.seen = r.cursor // what it was told to leave out may be gone
		if err := r.store.Check(ctx, r.cursor); err != nil {
			return Batch{}, err
		}
		r.checked = now.restored
	}
	recent, reached := r.store.hub.after(now, r.seen, r.filter, pageEvents)
	if !reached {
		return r.page(ctx, now)
	}
	return recent, nil
}

func (r *reader) page(ctx context.Context, now view) (Batch, error) {
	events, more, err := r.store.page(ctx, r.cursor.Position, now.head.Position, r.filter, pageEvents)
	if err == nil && len(events) > 0 && events[0].Cursor.LogEpoch != r.cursor.LogEpoch {
		err = r.store.Check(ctx, r.cursor) // the log may have gone back a moment ago
	}
	if err != nil {
		return Batch{}, err
	}
	if more {
		return Batch{Events: events, Cursor: events[len(events)-1].Cursor}, nil
	}
	return Batch{Events: events, Cursor: now.head}, nil
}

// Wait blocks until there is an event after the cursor, and gives the head. It needs Run. When ctx has ended it
// returns the cause; when the cursor's log is gone, *LogForkedError or *CursorAheadError.
func (s *Store) Wait(ctx context.Context, after domain.Cursor) (head domain.Cursor, err error) {
	for {
		now := s.hub.view()
		if now.following && now.head.Position > after.Position {
			return now.head, nil
		}
		if now.following && now.head.Position < after.Position {
			if err := s.Check(ctx, after); isGone(err) {
				return now.head, err
			}
		}
		select {
		case <-ctx.Done():
			return now.head, context.Cause(ctx)
		case <-now.changed:
		}
	}
}
