package eventstore

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore/verify"
)

// HeadKeys gives the keys that sign tree heads: all public ones, the newest last, and what signs with that one.
type HeadKeys interface {
	HeadSigner(ctx context.Context) (public []ed25519.PublicKey, sign func(text []byte) ([]byte, error), err error)
}

// Leader runs a function in one process at a time.
type Leader interface {
	Lead(ctx context.Context, name string, run func(context.Context) error) error
}

// SignerConfig is that of a Signer.
type SignerConfig struct {
	Store  *Store       // required
	Keys   HeadKeys     // required
	Leader Leader       // required by Run
	Log    *slog.Logger // required

	Interval time.Duration // between two heads while there is something new; default 10 s
	Events   int64         // so many new events are signed at once; default 1,000
}

// Validate says all that is wrong.
func (c SignerConfig) Validate() error {
	var problems []error
	if c.Store == nil || c.Keys == nil || c.Log == nil {
		problems = append(problems, errors.New("Store, Keys or Log is missing"))
	}
	if c.Interval < 0 || c.Events < 0 {
		problems = append(problems, errors.New("a bound is negative: 0 means its default"))
	}
	return errors.Join(problems...)
}

// Signer makes the tree over the log and signs its heads. It keeps: a signed head is never ahead of what is committed,
// nor of the tiles; it never contradicts an earlier one of its log epoch; where nothing is new, nothing is signed.
type Signer struct {
	config SignerConfig

	mu   sync.Mutex
	tree *verify.Tree // of the newest head that this process has seen; nil: to be read
	in   int64        // log epoch of tree
}

// NewSigner gives a signer.
func NewSigner(config SignerConfig) (*Signer, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("signer of tree heads: %w", err)
	}
	config.Interval = cmp.Or(config.Interval, 10*time.Second)
	config.Events = cmp.Or(config.Events, 1000)
	return &Signer{config: config}, nil
}

// Run signs until ctx ends, in one process at a time. It needs Store.Run. What goes wrong is logged, and tried again:
// that the log contradicts a signed head (*HeadConflictError), until a restore is declared.
func (s *Signer) Run(ctx context.Context) error {
	return s.config.Leader.Lead(ctx, "tree heads", func(ctx context.Context) error {
		tick := time.NewTicker(s.config.Interval)
		defer tick.Stop()
		for {
			early := int64(math.MaxInt64) // nothing is tried again before the next tick
			if head, err := s.Sign(ctx); err == nil {
				early = head.Size + s.config.Events
			} else if context.Cause(ctx) == nil {
				s.config.Log.ErrorContext(ctx, "the log's tree head is not signed", "err", err)
			}
			if !s.wait(ctx, tick.C, early) {
				return nil
			}
		}
	})
}

// wait returns at the next tick, or when the log has come to position early; false when ctx has ended.
func (s *Signer) wait(ctx context.Context, tick <-chan time.Time, early int64) bool {
	for {
		now := s.config.Store.hub.view()
		if now.head.Position >= early {
			return context.Cause(ctx) == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick:
			return true
		case <-now.changed:
		}
	}
}

// Sign makes the tree up to the newest event and signs its head, in this process, whoever leads. Where nothing is new
// it gives the newest head again, the zero one where nothing was ever recorded. Errors: *HeadConflictError, or the
// database's.
func (s *Signer) Sign(ctx context.Context) (Head, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.goesOn(ctx); err != nil { // the tree stays: it is what tells
		return Head{}, fmt.Errorf("sign the log's tree head: %w", err)
	}
	head, err := s.sign(ctx)
	if err != nil {
		s.tree = nil
		return Head{}, fmt.Errorf("sign the log's tree head: %w", err)
	}
	return head, nil
}

// goesOn says whether the log still begins with what was signed here, also where the database has lost the head of that.
func (s *Signer) goesOn(ctx context.Context) error {
	if s.tree == nil || s.tree.Size() == 0 {
		return nil
	}
	size := s.tree.Size()
	newest, err := s.config.Store.NewestHead(ctx)
	if err != nil || newest.Epoch > s.in || newest.Epoch == s.in && newest.Size >= size {
		return err // what it is compared with anyway
	}
	now, err := s.config.Store.Head(ctx)
	if err != nil || now.LogEpoch > s.in {
		return err
	}
	if now.LogEpoch < s.in || now.Position < size {
		return &HeadConflictError{Epoch: s.in, Size: size, Position: now.Position + 1}
	}
	root, err := s.config.Store.RootAt(ctx, size)
	if err == nil && root != s.tree.Root() {
		err = &HeadConflictError{Epoch: s.in, Size: size}
	}
	return err
}

func (s *Signer) sign(ctx context.Context) (Head, error) {
	newest, err := s.config.Store.NewestHead(ctx)
	if err != nil {
		return Head{}, err
	}
	base, err := s.config.Store.newestHolding(ctx)
	if err != nil {
		return Head{}, err
	}
	now, err := s.config.Store.Head(ctx) // after the heads: another process may be signing what has just come
	if err != nil {
		return Head{}, err
	}
	switch {
	case newest.Epoch > now.LogEpoch, newest.Epoch == now.LogEpoch && newest.Size > now.Position:
		return Head{}, &HeadConflictError{Epoch: newest.Epoch, Size: newest.Size, Position: now.Position + 1}
	case newest.Epoch == now.LogEpoch && newest.Size == now.Position && s.tree != nil, now.Position == 0:
		return newest, nil
	}
	if err := s.open(ctx, base); err != nil {
		return Head{}, err
	}
	if newest.Epoch == now.LogEpoch && newest.Size == now.Position {
		s.in = now.LogEpoch
		return newest, nil // it was only to be looked at
	}
	if err := s.grow(ctx, now, base); err != nil {
		return Head{}, err
	}
	return s.put(ctx, now)
}

// open takes the tree up where base has left it, and sees to it that base is what stands in the log.
func (s *Signer) open(ctx context.Context, base Head) error {
	if s.tree != nil && s.tree.Size() == base.Size && s.in == base.Epoch && s.tree.Root() == base.Root {
		return nil
	}
	tree, err := verify.OpenTree(base.Size, s.config.Store.Tree(ctx, base.Size))
	if _, missing := errors.AsType[*missingTileError](err); missing {
		s.config.Log.WarnContext(ctx, "the log's tree is made anew", "err", err)
		tree, err = &verify.Tree{}, nil
	}
	if err != nil {
		return err
	}
	if tree.Size() == base.Size && base.Size > 0 && tree.Root() != base.Root {
		return &HeadConflictError{Epoch: base.Epoch, Size: base.Size}
	}
	s.tree = tree
	return nil
}

// tilesAtOnce bounds what is kept before it is written, 8 KiB each.
const tilesAtOnce = 64

// grow adds what was recorded since, and stores the tiles that become complete.
func (s *Signer) grow(ctx context.Context, to domain.Cursor, base Head) error {
	batch := tileBatch{epoch: to.LogEpoch}
	s.tree.OnTile = batch.add
	defer func() { s.tree.OnTile = nil }()
	for s.tree.Size() < to.Position {
		end := min(to.Position, s.tree.Size()+tilesAtOnce*verify.TileWidth)
		if s.tree.Size() < base.Size { // made anew: it must pass through base
			end = min(end, base.Size)
		}
		if err := s.config.Store.eachBetween(ctx, s.tree.Size(), end, func(e domain.Recorded) { s.tree.Add(verify.LeafHash(e)) }); err != nil {
			return err
		}
		if end == base.Size && s.tree.Root() != base.Root {
			return &HeadConflictError{Epoch: base.Epoch, Size: base.Size}
		}
		if err := batch.store(ctx, s.config.Store); err != nil {
			return err
		}
	}
	return nil
}

// tileBatch gathers complete tiles.
type tileBatch struct {
	epoch   int64
	levels  []int16
	indexes []int64
	hashes  [][]byte
}

func (b *tileBatch) add(level int, index int64, hashes []tlog.Hash) {
	b.levels, b.indexes, b.hashes = append(b.levels, int16(level)), append(b.indexes, index), append(b.hashes, pack(hashes)) //nolint:gosec // 7 at most
}

func (b *tileBatch) store(ctx context.Context, s *Store) error {
	if len(b.levels) == 0 {
		return nil
	}
	_, err := s.pool.Exec(ctx, "SELECT pipeops.add_tiles($1, $2, $3, $4)", b.epoch, b.levels, b.indexes, b.hashes)
	if err != nil {
		return fmt.Errorf("store %d tiles of the log's tree: %w", len(b.levels), err)
	}
	*b = tileBatch{epoch: b.epoch}
	return nil
}

// put signs the tree as it is and keeps the head.
func (s *Signer) put(ctx context.Context, now domain.Cursor) (Head, error) {
	id, err := s.config.Store.LogID(ctx)
	if err != nil {
		return Head{}, err
	}
	public, sign, err := s.config.Keys.HeadSigner(ctx)
	if err != nil {
		return Head{}, err
	}
	root := s.tree.Root()
	signed, err := verify.Keys{LogID: id, Public: public}.Sign(
		verify.Checkpoint{LogID: id, Epoch: now.LogEpoch, Size: now.Position, Root: root}, sign)
	if err != nil {
		return Head{}, err
	}
	var added bool
	err = s.config.Store.pool.QueryRow(ctx, "SELECT pipeops.add_head($1, $2, $3, $4)", now.LogEpoch, now.Position, root[:], string(signed)).Scan(&added)
	if err != nil {
		return Head{}, fmt.Errorf("keep a head of %d events: %w", now.Position, err)
	}
	s.in = now.LogEpoch
	if !added { // another process was faster: its head counts
		s.tree = nil
	}
	return s.config.Store.NewestHead(ctx)
}
