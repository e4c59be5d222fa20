package projections

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// versions are all that a table and its history say as of a position ($1), rows that came later left out: so the one in
// use can be compared with a replay while it goes on.
const versions = `(
	SELECT key, project, lookup, place, from_position, to_position, row::text FROM $history WHERE to_position <= $1
	UNION ALL SELECT key, project, lookup, place, from_position, 0, row::text FROM $history WHERE from_position <= $1 AND to_position > $1
	UNION ALL SELECT key, project, lookup, place, from_position, 0, row::text FROM $table WHERE from_position <= $1)`

func (p place) versions(table string) string {
	return strings.NewReplacer("$table", quoted(p.table(table)), "$history", quoted(p.history(table))).Replace(versions)
}

// compare fills in what both places hold as of the replay's position.
func (p *Projector) compare(ctx context.Context, current, shadow place, out *Rebuilt) (err error) {
	position := out.Cursor.Position
	if out.Checksum, out.Rows, err = p.checksum(ctx, shadow, position); err != nil {
		return err
	}
	if out.InUse, _, err = p.checksum(ctx, current, position); err != nil || out.InUse == out.Checksum {
		return err
	}
	for _, t := range current.tables {
		var n int64
		a, b := current.versions(t), shadow.versions(t)
		err := p.config.Pool.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM (
			(%[1]s EXCEPT ALL %[2]s) UNION ALL (%[2]s EXCEPT ALL %[1]s)) d`, a, b), position).Scan(&n)
		if err != nil {
			return fmt.Errorf("compare %s: %w", t, err)
		}
		out.Different += n
	}
	return nil
}

// summed is the sum of the hashes of what a table and its history say as of a position ($1), in whatever order they lie,
// and how much that is; the same as of versions, but each table is read once, and by all cores. Only texts that can't
// hold a line break come before the document.
const summed = `SELECT past.n + now.n, (past.sum + now.sum)::text FROM
	(SELECT count(*) AS n, coalesce(sum($hash), 0) AS sum FROM (SELECT *, CASE WHEN to_position <= $1 THEN to_position ELSE 0 END AS until
		FROM $history WHERE from_position <= $1) h) past,
	(SELECT count(*) AS n, coalesce(sum($hash), 0) AS sum FROM (SELECT *, 0 AS until FROM $table WHERE from_position <= $1) t) now`

const hashed = `('x' || left(encode(sha256(convert_to(
	concat_ws(E'\n', key, project, lookup, place, from_position, until, row), 'UTF8')), 'hex'), 15))::bit(60)::bigint`

// checksum sums up the hashes of all rows and history rows as of a position.
func (p *Projector) checksum(ctx context.Context, at place, position int64) (sum string, rows int64, err error) {
	h := sha256.New()
	for _, t := range at.tables {
		var n int64
		var text string
		query := strings.NewReplacer("$hash", hashed, "$table", quoted(at.table(t)), "$history", quoted(at.history(t))).Replace(summed)
		if err := p.config.Pool.QueryRow(ctx, query, position).Scan(&n, &text); err != nil {
			return "", 0, fmt.Errorf("checksum of %s: %w", at.table(t), err)
		}
		rows += n
		fmt.Fprintln(h, t, n, text)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), rows, nil
}
