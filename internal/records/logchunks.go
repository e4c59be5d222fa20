package records

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pipeops/pipeops/domain"
)

const (
	maxChunk  = 1 << 20 // bytes of output in one chunk: a message's limit
	pageBytes = 1 << 20 // output that a read holds in memory, and at least one chunk
)

// LogChunks keeps what builds print, compressed, addressed by where it starts. It is append-only but for its retention.
type LogChunks struct{ pool *pgxpool.Pool }

// NewLogChunks gives the table of log chunks.
func NewLogChunks(pool *pgxpool.Pool) *LogChunks { return &LogChunks{pool} }

// LogChunk is a piece of an attempt's output.
type LogChunk struct {
	Offset int64 // bytes before it
	Bytes  []byte
}

// Append keeps a chunk; one that is there already under its offset is left alone. One without bytes says where the
// output ends.
func (l *LogChunks) Append(ctx context.Context, attempt domain.AttemptID, stream string, offset int64, b []byte) error {
	tried := fmt.Sprintf("keep output of %s %s at %d", attempt, stream, offset)
	if len(b) > maxChunk || offset < 0 {
		return fmt.Errorf("%s: %d bytes, want at most %d at an offset from 0", tried, len(b), maxChunk)
	}
	packed, err := pack(b)
	if err != nil {
		return fmt.Errorf("%s: %w", tried, err)
	}
	return exec(ctx, l.pool, tried, `INSERT INTO pipeops.build_log_chunks (attempt, stream, start, length, packed)
		VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`, attempt, stream, offset, len(b), packed)
}

// Read gives an attempt's output from an offset on, in order, in constant memory. Where chunks overlap, because a
// worker cut a repeat differently, each byte comes once; a hole shows as a jump in the offsets.
func (l *LogChunks) Read(ctx context.Context, attempt domain.AttemptID, stream string, from int64) iter.Seq2[LogChunk, error] {
	return func(yield func(LogChunk, error) bool) {
		for {
			page, err := l.page(ctx, attempt, stream, from)
			if err != nil {
				yield(LogChunk{}, err)
				return
			}
			if len(page) == 0 {
				return
			}
			for _, c := range page {
				if skip := from - c.Offset; skip > 0 {
					c.Offset, c.Bytes = from, c.Bytes[min(skip, int64(len(c.Bytes))):]
				}
				if len(c.Bytes) > 0 && !yield(c, nil) {
					return
				}
				from = max(from, c.Offset+int64(len(c.Bytes)))
			}
		}
	}
}

// End tells how many bytes an attempt's output has in all; ended is false while its worker hasn't said so.
func (l *LogChunks) End(ctx context.Context, attempt domain.AttemptID, stream string) (size int64, ended bool, err error) {
	err = l.pool.QueryRow(ctx, "SELECT start FROM pipeops.build_log_chunks WHERE attempt = $1 AND stream = $2 AND length = 0",
		attempt, stream).Scan(&size)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for the end of the output of %s %s: %w", attempt, stream, err)
	}
	return size, true, nil
}

// page gives the next chunks that end after from, those that start before it too.
func (l *LogChunks) page(ctx context.Context, attempt domain.AttemptID, stream string, from int64) ([]LogChunk, error) {
	tried := fmt.Sprintf("read output of %s %s from %d", attempt, stream, from)
	rows, err := l.pool.Query(ctx, `SELECT start, packed FROM pipeops.build_log_chunks
		WHERE attempt = $1 AND stream = $2 AND start > $3::bigint - $4::bigint AND start + length > $3 AND length > 0 ORDER BY start LIMIT 64`,
		attempt, stream, from, maxChunk)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tried, err)
	}
	defer rows.Close()
	var page []LogChunk
	for size := 0; size < pageBytes && rows.Next(); {
		c, err := unpack(rows)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tried, err)
		}
		page = append(page, c)
		size += len(c.Bytes)
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", tried, err)
	}
	return page, nil
}

// DropBefore forgets output received before t, oldest first, and says how many chunks went, also when it didn't get to
// the end.
func (l *LogChunks) DropBefore(ctx context.Context, t time.Time) (dropped int64, err error) {
	const atOnce = 1000 // a transaction that is short leaves nobody waiting, and an error costs little
	for {
		done, err := l.pool.Exec(ctx, `DELETE FROM pipeops.build_log_chunks WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM pipeops.build_log_chunks WHERE received_at < $1 ORDER BY received_at LIMIT $2))`, t, atOnce)
		if err != nil {
			return dropped, fmt.Errorf("drop output from before %s: %w", t.Format(time.RFC3339), err)
		}
		if dropped += done.RowsAffected(); done.RowsAffected() < atOnce {
			return dropped, nil
		}
	}
}

func pack(b []byte) ([]byte, error) {
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	err = w.Close()
	return packed.Bytes(), err
}

func unpack(row pgx.Rows) (c LogChunk, err error) {
	var packed []byte
	if err := row.Scan(&c.Offset, &packed); err != nil {
		return c, err
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return c, err
	}
	c.Bytes, err = io.ReadAll(io.LimitReader(r, maxChunk+1))
	return c, err
}
