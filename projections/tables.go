package projections

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// tableLock is held while tables are made or replaced, so that processes that start together don't collide.
const tableLock = 7021798406534587748 // any number; the log's own lock is the one before it

// place is where an instance of a projection keeps its rows: the one that is read, or one that is being rebuilt
// beside it.
type place struct {
	*projection
	suffix string // "" or rebuildSuffix
}

func (p place) checkpoint() string         { return p.versioned(p.name) + p.suffix }
func (p place) table(name string) string   { return p.versioned(name) + p.suffix }
func (p place) history(name string) string { return p.versioned(name) + "_history" + p.suffix }

func quoted(table string) string { return pgx.Identifier{"projections", table}.Sanitize() }

const createCheckpoints = `
CREATE TABLE IF NOT EXISTS projections.checkpoints (
    name             text COLLATE "C" PRIMARY KEY,
    epoch            bigint NOT NULL DEFAULT 0,
    position         bigint NOT NULL DEFAULT 0,
    moved_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    stopped_position bigint NOT NULL DEFAULT 0, -- of the event that it can't get over; 0: it runs
    stopped_event    text NOT NULL DEFAULT '',
    stopped_error    text NOT NULL DEFAULT '',
    stopped_at       timestamptz
)`

// A row is json, not jsonb, which refuses a NUL within a text, and tools do print NULs. History rows are found by the
// rows that they once were: see list.
const createTable = `
CREATE TABLE IF NOT EXISTS $table (
    key           text COLLATE "C" PRIMARY KEY,
    project       text COLLATE "C" NOT NULL,
    lookup        text COLLATE "C" NOT NULL,
    place         bigint NOT NULL,
    from_position bigint NOT NULL,
    row           json NOT NULL
);
CREATE INDEX ON $table (project, place);
CREATE INDEX ON $table (lookup, place);
CREATE TABLE IF NOT EXISTS $history (
    key           text COLLATE "C" NOT NULL,
    project       text COLLATE "C" NOT NULL,
    lookup        text COLLATE "C" NOT NULL,
    place         bigint NOT NULL,
    from_position bigint NOT NULL,
    to_position   bigint NOT NULL CHECK (to_position > from_position),
    row           json NOT NULL,
    PRIMARY KEY (key, from_position)
);`

// create makes the checkpoint and the tables of places that aren't there yet.
func create(ctx context.Context, pool *pgxpool.Pool, places ...place) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(tableLock)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, createCheckpoints); err != nil {
			return err
		}
		for _, p := range places {
			tag, err := tx.Exec(ctx, "INSERT INTO projections.checkpoints (name) VALUES ($1) ON CONFLICT DO NOTHING", p.checkpoint())
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 0 {
				continue // the tables come and go with their checkpoint
			}
			for _, t := range p.tables {
				statement := strings.NewReplacer("$table", quoted(p.table(t)), "$history", quoted(p.history(t))).Replace(createTable)
				if _, err := tx.Exec(ctx, statement); err != nil {
					return fmt.Errorf("create table %s: %w", p.table(t), err)
				}
			}
		}
		return nil
	})
}

// drop forgets a place.
func drop(ctx context.Context, tx pgx.Tx, p place) error {
	for _, t := range p.tables {
		if _, err := tx.Exec(ctx, "DROP TABLE IF EXISTS "+quoted(p.table(t))+", "+quoted(p.history(t))); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, "DELETE FROM projections.checkpoints WHERE name = $1", p.checkpoint())
	return err
}

// load brings the missing rows into memory; a row that isn't there is known not to be afterwards.
func load(ctx context.Context, tx pgx.Tx, p place, r *rows) error {
	keys := map[string][]string{}
	for of := range r.missing {
		keys[of.table] = append(keys[of.table], of.key)
		r.states[of] = &rowState{}
	}
	clear(r.missing)
	for table, wanted := range keys {
		found, err := tx.Query(ctx, //nolint:rowserrcheck // ForEachRow does
			"SELECT key, project, lookup, place, from_position, row FROM "+quoted(p.table(table))+
				" WHERE key = ANY ($1)", wanted)
		if err != nil {
			return fmt.Errorf("load %d rows of %s: %w", len(wanted), table, err)
		}
		var key string
		var v version
		_, err = pgx.ForEachRow(found, []any{&key, &v.project, &v.lookup, &v.place, &v.from, &v.doc}, func() error {
			loaded := v
			loaded.doc = slices.Clone(v.doc)
			r.states[ref{table, key}].now = loaded
			return nil
		})
		if err != nil {
			return fmt.Errorf("load %d rows of %s: %w", len(wanted), table, err)
		}
	}
	return nil
}

// columns are the values of many rows of a table, one slice each, for unnest.
type columns struct {
	keys, projects, lookups, docs []string
	places, froms, tos            []int64
}

func (c *columns) add(key string, v version, to int64) {
	c.keys = append(c.keys, key)
	c.projects = append(c.projects, string(v.project))
	c.lookups = append(c.lookups, v.lookup)
	c.docs = append(c.docs, string(v.doc))
	c.places = append(c.places, v.place)
	c.froms = append(c.froms, v.from)
	c.tos = append(c.tos, to)
}

// flush writes what has changed: one statement per table and one per history.
func flush(ctx context.Context, tx pgx.Tx, p place, r *rows) error {
	now, past := map[string]*columns{}, map[string]*columns{}
	for _, t := range p.tables {
		now[t], past[t] = &columns{}, &columns{}
	}
	for of, s := range r.states {
		if !s.changed {
			continue
		}
		now[of.table].add(of.key, s.now, 0)
		for _, v := range s.past {
			past[of.table].add(of.key, v.version, v.to)
		}
	}
	batch := &pgx.Batch{}
	for _, t := range p.tables {
		if c := now[t]; len(c.keys) > 0 {
			batch.Queue(`INSERT INTO `+quoted(p.table(t))+` (key, project, lookup, place, from_position, row)
				SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::json[])
				ON CONFLICT (key) DO UPDATE SET project = excluded.project, lookup = excluded.lookup,
					place = excluded.place, from_position = excluded.from_position, row = excluded.row`,
				c.keys, c.projects, c.lookups, c.places, c.froms, c.docs)
		}
		if c := past[t]; len(c.keys) > 0 {
			batch.Queue(`INSERT INTO `+quoted(p.history(t))+` (key, project, lookup, place, from_position, to_position, row)
				SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::json[])`,
				c.keys, c.projects, c.lookups, c.places, c.froms, c.tos, c.docs)
		}
	}
	if batch.Len() == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("write rows: %w", err)
	}
	return nil
}
