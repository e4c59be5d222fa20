package verify

import "golang.org/x/mod/sumdb/tlog"

// TileHeight is that of a tile: it holds 2^TileHeight = TileWidth hashes of one level, 8 KiB.
const (
	TileHeight = 8
	TileWidth  = 1 << TileHeight
)

// Tree is the right edge of an RFC 6962 tree that leaves are added to, one after the other, in memory that grows with
// the logarithm of its size. The zero value is the empty tree. One goroutine at a time may use it.
type Tree struct {
	// OnTile, if set, gets each tile as it becomes complete: hashes are those of level level*TileHeight of the tree from
	// number index*TileWidth on, as tlog.Tile has them. It may not keep hashes.
	OnTile func(level int, index int64, hashes []tlog.Hash)

	size   int64
	levels [][]tlog.Hash // by level of tiles: the hashes of the tile that is not complete yet
}

// Size is the number of leaves.
func (t *Tree) Size() int64 { return t.size }

// Add appends a leaf's hash.
func (t *Tree) Add(leaf tlog.Hash) {
	t.size++
	for level, hash := 0, leaf; ; level++ {
		if level == len(t.levels) {
			t.levels = append(t.levels, make([]tlog.Hash, 0, TileWidth))
		}
		t.levels[level] = append(t.levels[level], hash)
		if len(t.levels[level]) < TileWidth {
			return
		}
		if t.OnTile != nil {
			t.OnTile(level, t.size>>(TileHeight*(level+1))-1, t.levels[level])
		}
		hash = subtree(t.levels[level])
		t.levels[level] = t.levels[level][:0]
	}
}

// AddTile appends a complete tile of leaves at once. The size must be a multiple of TileWidth.
func (t *Tree) AddTile(leaves []tlog.Hash) {
	for _, leaf := range leaves {
		t.Add(leaf)
	}
}

// Root is the tree's hash.
func (t *Tree) Root() tlog.Hash {
	// Each level's hashes are perfect subtrees, the larger ones to the left: RFC 6962 folds them from the right.
	var root tlog.Hash
	empty := true
	for _, hashes := range t.levels {
		for len(hashes) > 0 {
			width := len(hashes) & -len(hashes) // the smallest of them stands last
			h := subtree(hashes[len(hashes)-width:])
			if empty {
				root, empty = h, false
			} else {
				root = tlog.NodeHash(h, root)
			}
			hashes = hashes[:len(hashes)-width]
		}
	}
	if empty {
		root, _ = tlog.TreeHash(0, nil) // that of the empty tree
	}
	return root
}

// subtree is the hash over a power of two of hashes.
func subtree(hashes []tlog.Hash) tlog.Hash {
	var level [TileWidth]tlog.Hash
	n := copy(level[:], hashes)
	for ; n > 1; n /= 2 {
		for i := range n / 2 {
			level[i] = tlog.NodeHash(level[2*i], level[2*i+1])
		}
	}
	return level[0]
}

// OpenTree gives the tree of that size, of which r has the hashes.
func OpenTree(size int64, r tlog.HashReader) (*Tree, error) {
	t := &Tree{size: size}
	for level := 0; size>>(TileHeight*level) > 0; level++ {
		end := size >> (TileHeight * level)
		var indexes []int64
		for n := end &^ (TileWidth - 1); n < end; n++ {
			indexes = append(indexes, tlog.StoredHashIndex(TileHeight*level, n))
		}
		t.levels = append(t.levels, make([]tlog.Hash, 0, TileWidth))
		if len(indexes) == 0 {
			continue
		}
		hashes, err := r.ReadHashes(indexes)
		if err != nil {
			return nil, err
		}
		t.levels[level] = append(t.levels[level], hashes...)
	}
	return t, nil
}
