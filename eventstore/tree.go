package eventstore

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore/verify"
)

// LogID is the log's own name, a UUID. A backup has the same.
func (s *Store) LogID(ctx context.Context) (id string, err error) {
	if err := s.pool.QueryRow(ctx, "SELECT id::text FROM pipeops.log_identity").Scan(&id); err != nil {
		return "", fmt.Errorf("look up the log's id: %w", err)
	}
	return id, nil
}

// tileID names a tile: level in tiles, and number in that level.
type tileID struct {
	level int
	index int64
}

// missingTileError is a tile that should be there. It can be made anew from the log.
type missingTileError struct{ tileID }

func (e *missingTileError) Error() string {
	return fmt.Sprintf("tile %d/%d of the log's tree is missing", e.level, e.index)
}

const cachedTiles = 1024 // of one tree, 8 KiB each

// tree reads hashes of the tree over the log's first size events: complete tiles from their table, what stands at the
// right edge from the tiles below it and the newest events.
type tree struct {
	store *Store
	size  int64
	cache map[tileID][]tlog.Hash
}

// Tree gives the hashes of the tree over the log's first size events, which tiles must have been made of: size is that
// of a head (Head.Size). One goroutine at a time may use it. ctx is that of all reading.
func (s *Store) Tree(ctx context.Context, size int64) tlog.HashReader {
	t := &tree{store: s, size: size, cache: map[tileID][]tlog.Hash{}}
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, 0, len(indexes))
		for _, stored := range indexes {
			h, err := t.hash(ctx, stored)
			if err != nil {
				return nil, fmt.Errorf("read the log's tree of %d events: %w", size, err)
			}
			hashes = append(hashes, h)
		}
		return hashes, nil
	})
}

// RootAt gives the root of the tree over the log's first size events, whether a head of them was signed or not. It stores
// nothing. It reads complete tiles rather than their events, so it tells a log that was cut or has grown otherwise; an event
// that was changed by force below the last 256 is found by an export. Errors: *HeadConflictError where the log has fewer, or
// the database's.
func (s *Store) RootAt(ctx context.Context, size int64) (tlog.Hash, error) {
	base, err := s.newestHolding(ctx) // there are tiles as far as that one goes
	if err != nil {
		return tlog.Hash{}, err
	}
	made, err := verify.OpenTree(min(size, base.Size), s.Tree(ctx, base.Size))
	if _, missing := errors.AsType[*missingTileError](err); missing {
		made, err = &verify.Tree{}, nil
	}
	if err == nil {
		err = s.eachBetween(ctx, made.Size(), size, func(e domain.Recorded) { made.Add(verify.LeafHash(e)) })
	}
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("make the root of the log's first %d events: %w", size, err)
	}
	return made.Root(), nil
}

func (t *tree) hash(ctx context.Context, stored int64) (h tlog.Hash, err error) {
	tile := tlog.TileForIndex(verify.TileHeight, stored)
	hashes, err := t.tile(ctx, tileID{tile.L, tile.N})
	if err != nil {
		return h, err
	}
	data := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, hash := range hashes[:tile.W] {
		data = append(data, hash[:]...)
	}
	return tlog.HashFromTile(tile, data, stored)
}

// tile gives the hashes of a tile, as many as there are.
func (t *tree) tile(ctx context.Context, id tileID) ([]tlog.Hash, error) {
	if hashes, ok := t.cache[id]; ok {
		return hashes, nil
	}
	var hashes []tlog.Hash
	var err error
	first := id.index << verify.TileHeight
	end := t.size >> (verify.TileHeight * id.level) // number of complete hashes of that level
	switch {
	case end-first >= verify.TileWidth:
		hashes, err = t.store.tile(ctx, id)
	case id.level == 0:
		hashes, err = t.store.leaves(ctx, first, end)
	default:
		for n := first; n < end && err == nil; n++ {
			var below []tlog.Hash
			if below, err = t.store.tile(ctx, tileID{id.level - 1, n}); err == nil {
				hashes = append(hashes, subtree(below))
			}
		}
	}
	if err != nil {
		return nil, err
	}
	if len(t.cache) >= cachedTiles {
		clear(t.cache)
	}
	t.cache[id] = hashes
	return hashes, nil
}

// subtree is the hash over a complete tile.
func subtree(hashes []tlog.Hash) tlog.Hash {
	tree := verify.Tree{}
	tree.AddTile(hashes)
	return tree.Root()
}

// tile reads a complete one.
func (s *Store) tile(ctx context.Context, id tileID) ([]tlog.Hash, error) {
	var data []byte
	err := s.pool.QueryRow(ctx, `SELECT hashes FROM pipeops.valid_tiles WHERE level = $1 AND index = $2
		ORDER BY log_epoch DESC LIMIT 1`, id.level, id.index).Scan(&data)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, &missingTileError{id}
	case err != nil:
		return nil, fmt.Errorf("read tile %d/%d: %w", id.level, id.index, err)
	}
	return unpack(data), nil
}

func unpack(data []byte) []tlog.Hash {
	hashes := make([]tlog.Hash, len(data)/tlog.HashSize)
	for i := range hashes {
		copy(hashes[i][:], data[i*tlog.HashSize:])
	}
	return hashes
}

func pack(hashes []tlog.Hash) []byte {
	data := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		data = append(data, h[:]...)
	}
	return data
}

// leaves hashes the events at positions first+1 to end.
func (s *Store) leaves(ctx context.Context, first, end int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, 0, end-first)
	err := s.eachBetween(ctx, first, end, func(e domain.Recorded) { hashes = append(hashes, verify.LeafHash(e)) })
	return hashes, err
}

// eachBetween gives the events at positions first+1 to end; that one is missing is an error.
func (s *Store) eachBetween(ctx context.Context, first, end int64, each func(domain.Recorded)) error {
	for after := first; after < end; {
		events, _, err := s.page(ctx, after, end, Filter{}, pageEvents)
		if err != nil {
			return err
		}
		for _, e := range events {
			if after++; e.Cursor.Position != after {
				return &HeadConflictError{Size: end, Position: after}
			}
			each(e)
		}
		if len(events) == 0 {
			return &HeadConflictError{Size: end, Position: after + 1}
		}
	}
	return nil
}

// Leaves gives the leaf hashes of the log's first size events as the tree has them, 256 at a time (the last time what
// is left). They are those of what was recorded then: an event that was changed since by force has another.
func (s *Store) Leaves(ctx context.Context, size int64) iter.Seq2[[]tlog.Hash, error] {
	return func(yield func([]tlog.Hash, error) bool) {
		t := &tree{store: s, size: size, cache: map[tileID][]tlog.Hash{}}
		for first := int64(0); first < size; first += verify.TileWidth {
			hashes, err := t.tile(ctx, tileID{0, first >> verify.TileHeight})
			if err != nil {
				err = fmt.Errorf("read the leaves after position %d: %w", first, err)
			}
			if !yield(hashes, err) || err != nil {
				return
			}
		}
	}
}
