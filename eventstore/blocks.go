package eventstore

import (
	"context"
	"fmt"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// Blocks of 256 positions, and which of them hold what: the index of filtered reading, kept behind the log.
const (
	blockEvents = 256
	blockWindow = 4096 // blocks looked through at once for what a filter wants, at most
	blockPage   = 64   // of those, how many are read at once, at most
	indexAtOnce = 256  // blocks of one transaction
	indexPause  = 100 * time.Millisecond
)

// keepIndex takes full blocks into the index, whichever process is first.
func (s *Store) keepIndex(ctx context.Context) {
	for done := int64(-1); ; {
		now := s.hub.view()
		if full := now.head.Position / blockEvents; now.following && full != done {
			if err := s.index(ctx); err == nil {
				done = full
			} else if context.Cause(ctx) == nil {
				s.config.Log.WarnContext(ctx, "the index of blocks stands still, and filtered reading gets slower", "err", err)
			}
		}
		pause(ctx, indexPause)
		select {
		case <-ctx.Done():
			return
		case <-now.changed:
		}
	}
}

func (s *Store) index(ctx context.Context) error {
	for blocks := int64(indexAtOnce); blocks == indexAtOnce; {
		if err := s.pool.QueryRow(ctx, "SELECT pipeops.index_blocks($1)", indexAtOnce).Scan(&blocks); err != nil {
			return err
		}
	}
	return nil
}

// keys are what a block must hold to be worth reading: one of each list.
func (f Filter) keys() (all [][]string) {
	add := func(kind string, names []string) {
		var keys []string
		for _, name := range names {
			keys = append(keys, kind+name)
		}
		if keys != nil {
			all = append(all, keys)
		}
	}
	if f.Correlation != "" {
		add("c", []string{f.Correlation})
	}
	projects := make([]string, len(f.Projects))
	for i, p := range f.Projects {
		projects[i] = string(p)
	}
	add("p", projects)
	add("t", f.Types)
	return all
}

// blocks looks through a window of blocks after a position, and gives those that hold what is wanted, at most so many, and
// the position up to which there are no others. Where the index doesn't reach, indexed is false.
func (s *Store) blocks(ctx context.Context, after, window int64, keys [][]string, atMost int) (found []int64, scanned int64, indexed bool, err error) {
	c := conditions{}
	first := after / blockEvents
	c.and("b.key = ANY (?)", keys[0])
	c.and("b.block >= ?", first)
	c.and("b.block < ?", first+window)
	for _, more := range keys[1:] {
		c.and("EXISTS (SELECT FROM pipeops.event_blocks o WHERE o.key = ANY (?) AND o.block = b.block)", more)
	}
	query := fmt.Sprintf(`SELECT h.next, ARRAY(SELECT DISTINCT b.block FROM pipeops.event_blocks b WHERE %s ORDER BY 1 LIMIT %s)
		FROM pipeops.event_blocks_head h`, c.text(), c.arg(atMost))
	var next int64
	if err := s.pool.QueryRow(ctx, query, c.args...).Scan(&next, &found); err != nil {
		return nil, 0, false, err
	}
	if first >= next {
		return nil, 0, false, nil
	}
	scanned = min(next, first+window) * blockEvents
	if len(found) == atMost {
		scanned = (found[atMost-1] + 1) * blockEvents
	}
	return found, scanned, true, nil
}

// pageByBlocks is page for a filter that the index knows. The fewer events blocks turn out to hold, the more of them
// it looks for and reads at once.
func (s *Store) pageByBlocks(ctx context.Context, after, until int64, f Filter, limit int) (events []domain.Recorded, more bool, err error) {
	keys := f.keys()
	atOnce, window := 2, int64(64)
	for ; until == 0 || after < until; atOnce, window = min(2*atOnce, blockPage), min(2*window, blockWindow) {
		blocks, scanned, indexed, err := s.blocks(ctx, after, window, keys, atOnce)
		if err != nil {
			return nil, false, fmt.Errorf("read the index of blocks after position %d: %w", after, err)
		}
		left := limit - len(events)
		var found []domain.Recorded
		if !indexed {
			found, more, err = s.scan(ctx, after, until, f, left)
			return append(events, found...), more, err
		}
		if found, more, err = s.readBlocks(ctx, blocks, after, until, f, left); err != nil {
			return nil, false, fmt.Errorf("read the log after position %d: %w", after, err)
		}
		if events = append(events, found...); more {
			return events, true, nil
		}
		after = scanned
	}
	return events, false, nil
}

// readBlocks reads each block by itself, by position: a planner that may choose can take all events to the end of the log
// for the shorter way.
func (s *Store) readBlocks(ctx context.Context, blocks []int64, after, until int64, f Filter, limit int) ([]domain.Recorded, bool, error) {
	if len(blocks) == 0 {
		return nil, false, nil
	}
	streams := f.Streams
	f.Streams = ""
	c := f.conditions(after, until)
	if streams != "" {
		c.and(beginsUnindexed, streams)
	}
	return s.collect(ctx, limit, fmt.Sprintf(`SELECT e.* FROM unnest(%s::bigint[]) AS b (block), LATERAL (
			%s WHERE position > b.block * %d AND position <= b.block * %d + %d AND %s ORDER BY position LIMIT %d
		) AS e ORDER BY e.position LIMIT %s`,
		c.arg(blocks), selectEvents, blockEvents, blockEvents, blockEvents, c.text(), blockEvents, c.arg(limit)), c.args...)
}
