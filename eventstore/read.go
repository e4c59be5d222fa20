package eventstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
)

const (
	pageEvents = 256     // events fetched at once
	pageBytes  = 4 << 20 // their bodies; a page ends with the event that goes over it
	fewEvents  = 16      // that a page has which isn't full, mostly
)

// denseKinds of streams are those that each push adds to.
var denseKinds = []string{"push/", "ref/", "build/", "slot/", "deployment/"}

// beginsUnindexed is the condition that a stream begins with a text, in a form that no index serves.
const beginsUnindexed = "left(stream, length(?)) = ?"

// Filter picks events. An empty field lets everything through.
type Filter struct {
	Projects    []domain.ProjectID // any of them; events of no project are let through only when it is nil
	Types       []string           // any of them
	Streams     string             // what the stream's name begins with: "build/", or a whole name
	Correlation string
}

// Match says whether the filter lets e through.
func (f Filter) Match(e domain.Recorded) bool {
	return (f.Projects == nil || slices.Contains(f.Projects, e.ProjectID)) &&
		(len(f.Types) == 0 || slices.Contains(f.Types, e.Type)) &&
		strings.HasPrefix(string(e.Stream), f.Streams) &&
		(f.Correlation == "" || e.CorrelationID == f.Correlation)
}

// Query picks events, and says from where to where.
type Query struct {
	After       domain.Cursor    // the zero value: from the beginning
	Until       int64            // last position; 0 = the head
	Project     domain.ProjectID // empty: all, also events of no project
	Types       []string
	Streams     string // what the stream's name begins with
	Correlation string
	Limit       int // 0 = all
}

func (q Query) filter() Filter {
	f := Filter{Types: q.Types, Streams: q.Streams, Correlation: q.Correlation}
	if q.Project != "" {
		f.Projects = []domain.ProjectID{q.Project}
	}
	return f
}

// Read gives what q picks, in order of position, in constant memory: pages are fetched as they are used. It ends at
// the head that it finds when it gets there. An error ends it: *LogForkedError, *CursorAheadError, or the database's.
func (s *Store) Read(ctx context.Context, q Query) iter.Seq2[domain.Recorded, error] {
	return func(yield func(domain.Recorded, error) bool) {
		if err := s.Check(ctx, q.After); err != nil {
			yield(domain.Recorded{}, err)
			return
		}
		after, left := q.After.Position, q.Limit
		for {
			limit := pageEvents
			if q.Limit > 0 {
				limit = min(limit, left)
			}
			events, more, err := s.page(ctx, after, q.Until, q.filter(), limit)
			if err != nil {
				yield(domain.Recorded{}, err)
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
				after = e.Cursor.Position
			}
			if left -= len(events); !more || q.Limit > 0 && left == 0 {
				return
			}
		}
	}
}

// ReadStream gives a stream's events after the version (0: all), in order, in constant memory.
func (s *Store) ReadStream(ctx context.Context, stream domain.Stream, afterVersion int64) iter.Seq2[domain.Recorded, error] {
	return func(yield func(domain.Recorded, error) bool) {
		for more := true; more; {
			var events []domain.Recorded
			var err error
			events, more, err = s.collect(ctx, pageEvents,
				selectEvents+" WHERE stream = $1 AND version > $2 ORDER BY version LIMIT $3", string(stream), afterVersion, pageEvents)
			if err != nil {
				yield(domain.Recorded{}, fmt.Errorf("read stream %s after version %d: %w", stream, afterVersion, err))
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
				afterVersion = e.Version
			}
		}
	}
}

// First gives a stream's first event; ok is false for a stream that doesn't exist.
func (s *Store) First(ctx context.Context, stream domain.Stream) (first domain.Recorded, ok bool, err error) {
	events, _, err := s.collect(ctx, 1, selectEvents+" WHERE stream = $1 AND version = 1", string(stream))
	if err != nil {
		return domain.Recorded{}, false, fmt.Errorf("read the first event of stream %s: %w", stream, err)
	}
	if len(events) == 0 {
		return domain.Recorded{}, false, nil
	}
	return events[0], true, nil
}

// Firsts gives the first events of streams, in order of position. Streams that don't exist are left out.
func (s *Store) Firsts(ctx context.Context, streams ...domain.Stream) ([]domain.Recorded, error) {
	return s.all(ctx, fmt.Sprintf("read the first events of %d streams", len(streams)), "stream = ANY ($1) AND version = 1", streams)
}

// Find gives the events with these ids, in order of position. Ids that are not recorded are left out.
func (s *Store) Find(ctx context.Context, ids ...string) ([]domain.Recorded, error) {
	parsed := make([][16]byte, 0, len(ids))
	for _, text := range ids {
		id, err := uuid.Parse(text)
		if err != nil {
			return nil, &InvalidError{Where: "event " + text, Reason: "its id is no UUID"}
		}
		parsed = append(parsed, id)
	}
	return s.all(ctx, fmt.Sprintf("find %d events by id", len(ids)), "id = ANY ($1)", parsed)
}

// all gives the events that a condition picks, in order of position, at once. An error says what was tried.
func (s *Store) all(ctx context.Context, what, where string, args ...any) ([]domain.Recorded, error) {
	rows, err := s.pool.Query(ctx, selectEvents+" WHERE "+where+" ORDER BY position", args...)
	if err == nil {
		var events []domain.Recorded
		if events, err = pgx.CollectRows(rows, readRow); err == nil {
			return events, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", what, err)
}

// page gives the next events after a position up to another (0: the head), at most limit of them, and whether there
// may be more. It gives none only when there are no more.
func (s *Store) page(ctx context.Context, after, until int64, f Filter, limit int) ([]domain.Recorded, bool, error) {
	if f.Projects != nil && len(f.Projects) == 0 {
		return nil, false, nil
	}
	if f.keys() != nil {
		return s.pageByBlocks(ctx, after, until, f, limit)
	}
	return s.scan(ctx, after, until, f, limit)
}

// scan is page by looking at every event.
func (s *Store) scan(ctx context.Context, after, until int64, f Filter, limit int) ([]domain.Recorded, bool, error) {
	c := f.conditions(after, until)
	events, more, err := s.collect(ctx, limit,
		fmt.Sprintf("%s WHERE %s ORDER BY position LIMIT %s", selectEvents, c.text(), c.arg(limit)), c.args...)
	if err != nil {
		return nil, false, fmt.Errorf("read the log after position %d: %w", after, err)
	}
	return events, more, nil
}

// conditions are a WHERE and its arguments.
type conditions struct {
	where []string
	args  []any
}

// arg adds an argument and gives its name.
func (c *conditions) arg(value any) string {
	c.args = append(c.args, value)
	return fmt.Sprintf("$%d", len(c.args))
}

func (c *conditions) and(condition string, value any) {
	c.where = append(c.where, strings.ReplaceAll(condition, "?", c.arg(value)))
}

func (c *conditions) text() string { return strings.Join(c.where, " AND ") }

func (f Filter) conditions(after, until int64) (c conditions) {
	c.and("position > ?", after)
	if until > 0 {
		c.and("position <= ?", until)
	}
	if f.Projects != nil {
		c.and("project_id = ANY (?)", f.Projects)
	}
	if len(f.Types) > 0 {
		c.and("type = ANY (?)", f.Types)
	}
	switch {
	case f.Streams == "":
	case slices.Contains(denseKinds, f.Streams):
		// Not by the index of streams, which a planner without good statistics likes: it would sort all that is left of the
		// log for each page.
		c.and(beginsUnindexed, f.Streams)
	default: // a range, for the index: U+10FFFF comes after all that is in use
		c.and(`stream >= ? AND stream < ? || U&'\+10FFFF'`, f.Streams)
	}
	if f.Correlation != "" {
		c.and("correlation_id = ?", f.Correlation)
	}
	return c
}

// collect gives at most limit rows, and no more once their bodies have filled a page.
func (s *Store) collect(ctx context.Context, limit int, query string, args ...any) (events []domain.Recorded, more bool, err error) {
	rows, err := s.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, false, err
	}
	defer rows.Close()
	for size := 0; size < pageBytes && rows.Next(); {
		e, err := readRow(rows)
		if err != nil {
			return nil, false, err
		}
		if len(events) == fewEvents { // then mostly the page is full
			events = slices.Grow(events, min(limit, pageEvents)-fewEvents)
		}
		events = append(events, e)
		size += len(e.Body)
	}
	more = len(events) == limit || rows.Next()
	rows.Close()
	return events, more, rows.Err()
}

// Head gives the cursor of the newest event; the log epoch and position 0 when there is none.
func (s *Store) Head(ctx context.Context) (head domain.Cursor, err error) {
	err = s.pool.QueryRow(ctx, `SELECT (SELECT max(epoch) FROM pipeops.log_epochs),
		coalesce((SELECT max(position) FROM pipeops.events), 0)`).Scan(&head.LogEpoch, &head.Position)
	if err != nil {
		return head, fmt.Errorf("look up the head of the log: %w", err)
	}
	return head, nil
}

// Check says whether what the cursor has seen is still what the log begins with: else *LogForkedError or
// *CursorAheadError. The zero cursor is always good.
func (s *Store) Check(ctx context.Context, cursor domain.Cursor) error {
	if cursor.Position == 0 {
		return nil
	}
	var forked *int64
	var head domain.Cursor
	err := s.pool.QueryRow(ctx, `SELECT (SELECT min(first_position) FROM pipeops.log_epochs WHERE epoch > $1),
		(SELECT max(epoch) FROM pipeops.log_epochs), coalesce((SELECT max(position) FROM pipeops.events), 0)`,
		cursor.LogEpoch).Scan(&forked, &head.LogEpoch, &head.Position)
	switch {
	case err != nil:
		return fmt.Errorf("check cursor %s: %w", cursor, err)
	case forked != nil && cursor.Position >= *forked:
		return &LogForkedError{Cursor: cursor, ForkedAt: *forked}
	case cursor.LogEpoch > head.LogEpoch, cursor.Position > head.Position:
		return &CursorAheadError{Cursor: cursor, Head: head}
	}
	return nil
}

// Age gives how long ago the event at a position was recorded, by the database's clock; 0 where that went back behind it.
func (s *Store) Age(ctx context.Context, position int64) (age time.Duration, err error) {
	err = s.pool.QueryRow(ctx, "SELECT greatest(clock_timestamp() - recorded_at, '0') FROM pipeops.events WHERE position = $1", position).Scan(&age)
	if err != nil {
		return 0, fmt.Errorf("read the age of the event at %d: %w", position, err)
	}
	return age, nil
}

// LoadCursor gives where the cursor of that name stands; the zero cursor where it never moved.
func (s *Store) LoadCursor(ctx context.Context, name string) (c domain.Cursor, err error) {
	err = s.pool.QueryRow(ctx, "SELECT epoch, position FROM pipeops.cursors WHERE name = $1", name).Scan(&c.LogEpoch, &c.Position)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return c, fmt.Errorf("load cursor %s: %w", name, err)
	}
	return c, nil
}
