package eventstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/sumdb/tlog"
)

// Head is a signed tree head: what the log began with when it was signed.
type Head struct {
	Epoch      int64 // log epoch in which it was signed
	Size       int64 // number of events
	Root       tlog.Hash
	Checkpoint string // the signed note, a C2SP checkpoint
	SignedAt   time.Time
	Holds      bool // the log still begins with its events; false: a restore has lost some of them
}

// HeadConflictError says that the log is not what a signed head has seen of it, though no restore was declared. Nothing
// is signed until it is: two heads that contradict each other would be proof of a forged log.
type HeadConflictError struct {
	Epoch    int64 // of the head; 0: see Size and Position
	Size     int64 // events that the head has seen
	Position int64 // first one that is missing; 0: none is, but they are others
}

func (e *HeadConflictError) Error() string {
	what := fmt.Sprintf("they are not those that stand in the log now, from position %d down", e.Size)
	if e.Position > 0 {
		what = fmt.Sprintf("the log has none at position %d", e.Position)
	}
	return fmt.Sprintf("a tree head of %d events was signed, and %s. If the database was restored from a backup, or a standby "+
		"took over that had not seen all, say so: pipeops audit fork. Else somebody has changed the log", e.Size, what)
}

// A head holds where no later log epoch began at or below its size.
const selectHeads = `SELECT h.log_epoch, h.size, h.root, h.checkpoint, h.signed_at, h.size < coalesce(
	(SELECT min(l.first_position) FROM pipeops.log_epochs l WHERE l.epoch > h.log_epoch), 9223372036854775807) FROM pipeops.tree_heads h`

func scanHead(row pgx.CollectableRow) (h Head, err error) {
	var root []byte
	err = row.Scan(&h.Epoch, &h.Size, &root, &h.Checkpoint, &h.SignedAt, &h.Holds)
	copy(h.Root[:], root)
	return h, err
}

// NewestHead gives the newest signed head; the zero one when there is none.
func (s *Store) NewestHead(ctx context.Context) (Head, error) {
	return s.head(ctx, selectHeads+" ORDER BY h.log_epoch DESC, h.size DESC LIMIT 1")
}

// newestHolding gives the newest head that holds.
func (s *Store) newestHolding(ctx context.Context) (Head, error) {
	return s.head(ctx, "SELECT * FROM ("+selectHeads+") AS h (log_epoch, size, root, checkpoint, signed_at, holds) WHERE holds ORDER BY size DESC, log_epoch DESC LIMIT 1")
}

func (s *Store) head(ctx context.Context, query string, args ...any) (Head, error) {
	rows, err := s.pool.Query(ctx, query, args...)
	if err == nil {
		var h Head
		if h, err = pgx.CollectExactlyOneRow(rows, scanHead); err == nil || errors.Is(err, pgx.ErrNoRows) {
			return h, nil
		}
	}
	return Head{}, fmt.Errorf("look up the newest signed head: %w", err)
}

// Heads gives the signed heads of at most size events, by epoch and size: no more than about limit of them, evenly
// spread, and always the first and the last one of each epoch.
func (s *Store) Heads(ctx context.Context, size int64, limit int) iter.Seq2[Head, error] {
	return func(yield func(Head, error) bool) {
		rows, err := s.pool.Query(ctx, `SELECT log_epoch, size, root, checkpoint, signed_at, holds FROM (
			SELECT n.*, row_number() OVER (PARTITION BY log_epoch ORDER BY size) AS number,
			       count(*) OVER (PARTITION BY log_epoch) AS in_epoch, count(*) OVER () AS all_of_them
			FROM (`+selectHeads+`) AS n (log_epoch, size, root, checkpoint, signed_at, holds) WHERE size <= $1 OR NOT holds
		) n WHERE number = 1 OR number = in_epoch OR number % greatest(1, all_of_them / $2) = 0
		ORDER BY log_epoch, size`, size, limit)
		if err == nil {
			defer rows.Close()
			for rows.Next() {
				h, err := scanHead(rows)
				if !yield(h, err) || err != nil {
					return
				}
			}
			err = rows.Err()
		}
		if err != nil {
			yield(Head{}, fmt.Errorf("list the signed heads: %w", err))
		}
	}
}

// HeadOf gives the newest head of exactly size events that holds; the zero one when there is none.
func (s *Store) HeadOf(ctx context.Context, size int64) (Head, error) {
	return s.head(ctx, "SELECT * FROM ("+selectHeads+" WHERE h.size = $1) AS h (log_epoch, size, root, checkpoint, signed_at, holds) WHERE holds ORDER BY log_epoch DESC LIMIT 1", size)
}

// Epochs lists the log epochs, ascending.
func (s *Store) Epochs(ctx context.Context) ([]int64, error) {
	rows, err := s.pool.Query(ctx, "SELECT epoch FROM pipeops.log_epochs ORDER BY epoch")
	if err == nil {
		var epochs []int64
		if epochs, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err == nil {
			return epochs, nil
		}
	}
	return nil, fmt.Errorf("list the log epochs: %w", err)
}
