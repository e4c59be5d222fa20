package projections

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
)

// copier collects rows in PostgreSQL's binary form of COPY, by hand: a rebuild spends its time here.
type copier struct{ buf []byte }

// copiers are rooms of a few MiB for the next batch.
var copiers = sync.Pool{New: func() any { return &copier{} }}

func newCopier() *copier {
	c, _ := copiers.Get().(*copier)
	return c
}

func (c *copier) free() {
	if c != nil {
		c.buf = c.buf[:0]
		copiers.Put(c)
	}
}

// "PGCOPY\n\377\r\n\0", no flags, no extension.
const copyHeader = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func (c *copier) row(fields int) {
	if len(c.buf) == 0 {
		c.buf = append(c.buf, copyHeader...)
	}
	c.buf = binary.BigEndian.AppendUint16(c.buf, uint16(fields)) //nolint:gosec // a handful
}

func (c *copier) text(s string) {
	c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(len(s))) //nolint:gosec // PostgreSQL takes no gigabytes
	c.buf = append(c.buf, s...)
}

func (c *copier) bytes(b []byte) {
	c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(len(b))) //nolint:gosec // PostgreSQL takes no gigabytes
	c.buf = append(c.buf, b...)
}

func (c *copier) bigint(n int64) {
	c.buf = binary.BigEndian.AppendUint32(c.buf, 8)
	c.buf = binary.BigEndian.AppendUint64(c.buf, uint64(n)) //nolint:gosec // two's complement is what it wants
}

const historyColumns = "key, project, lookup, place, from_position, to_position, row"

func (c *copier) past(key string, v version, to int64) {
	c.row(7)
	c.found(key, v)
	c.bigint(to)
	c.bytes(v.doc)
}

const rowColumns = "key, project, lookup, place, from_position, row"

func (c *copier) now(key string, v version) {
	c.row(6)
	c.found(key, v)
	c.bytes(v.doc)
}

// found is what history rows and rows begin with.
func (c *copier) found(key string, v version) {
	c.text(key)
	c.text(string(v.project))
	c.text(v.lookup)
	c.bigint(v.place)
	c.bigint(v.from)
}

// send writes the rows to a table, if there are any.
func (c *copier) send(ctx context.Context, tx pgx.Tx, table, columns string) error {
	if c == nil || len(c.buf) == 0 {
		return nil
	}
	c.buf = binary.BigEndian.AppendUint16(c.buf, 0xffff) // the trailer
	_, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(c.buf), "COPY "+quoted(table)+" ("+columns+") FROM STDIN (FORMAT binary)")
	if err != nil {
		return fmt.Errorf("write rows of %s: %w", table, err)
	}
	return nil
}
