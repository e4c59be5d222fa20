package projections

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// tableLock is held while tables are made or dropped, so that processes that start together don't collide.
const tableLock = 7021798406534587748 // any number; the log's own lock is the one before it

// place is where an instance of a projection keeps its rows: the one that is read, or one that is built beside it.
type place struct {
	*projection
	suffix string // "" or shadowSuffix
}

// shadowSuffix is that of a place where a projection is replayed beside the one in use.
const shadowSuffix = "_shadow"

func (p place) checkpoint() string         { return p.versioned(p.name) + p.suffix }
func (p place) table(name string) string   { return p.versioned(name) + p.suffix }
func (p place) history(name string) string { return p.versioned(name) + "_history" + p.suffix }

// everything names the tables, so that a binary that doesn't know this version can drop them.
func (p place) everything() (names []string) {
	for _, t := range p.tables {
		names = append(names, p.table(t), p.history(t))
	}
	return names
}

func quoted(table string) string { return pgx.Identifier{"projections", table}.Sanitize() }

const createCheckpoints = `
CREATE TABLE IF NOT EXISTS projections.checkpoints (
    name             text COLLATE "C" PRIMARY KEY,
    epoch            bigint NOT NULL DEFAULT 0,
    position         bigint NOT NULL DEFAULT 0,
    moved_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    generation       bigint NOT NULL DEFAULT 0, -- counts how often the tables were replaced or emptied
    tables           text[] NOT NULL,
    skipped          bigint[] NOT NULL DEFAULT '{}', -- positions of events that were left out, because the log says so
    caught_up_at     timestamptz,               -- when it first was at the head; the indexes come with it
    stopped_position bigint NOT NULL DEFAULT 0, -- of the event that it can't get over; 0: it runs
    stopped_event    text NOT NULL DEFAULT '',
    stopped_type     text NOT NULL DEFAULT '',
    stopped_error    text NOT NULL DEFAULT '',
    stopped_at       timestamptz
)`

// A row is json, not jsonb, which refuses a NUL within a text, and tools do print NULs. History rows are found by the
// rows that they once were: see list.
const createTable = `
CREATE TABLE $table (
    key           text COLLATE "C" PRIMARY KEY,
    project       text COLLATE "C" NOT NULL,
    lookup        text COLLATE "C" NOT NULL,
    place         bigint NOT NULL,
    from_position bigint NOT NULL,
    row           json NOT NULL
);
CREATE TABLE $history (
    key           text COLLATE "C" NOT NULL,
    project       text COLLATE "C" NOT NULL,
    lookup        text COLLATE "C" NOT NULL,
    place         bigint NOT NULL,
    from_position bigint NOT NULL,
    to_position   bigint NOT NULL CHECK (to_position > from_position),
    row           json NOT NULL
);`

// Indexes are made once, when the tables are full: that takes a third of the time that filling them bit by bit does.
const createIndexes = `
CREATE INDEX ON $table (project, place);
CREATE INDEX ON $table (lookup, place);
ALTER TABLE $history ADD PRIMARY KEY (key, from_position);`

// each runs a statement for each of the tables of a place.
func (p place) each(ctx context.Context, tx pgx.Tx, statement string) error {
	for _, t := range p.tables {
		text := strings.NewReplacer("$table", quoted(p.table(t)), "$history", quoted(p.history(t))).Replace(statement)
		if _, err := tx.Exec(ctx, text); err != nil {
			return fmt.Errorf("table %s: %w", p.table(t), err)
		}
	}
	return nil
}

// create makes the checkpoint and the tables of places that aren't there yet, and says that process uses them.
func create(ctx context.Context, pool *pgxpool.Pool, process string, places ...place) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(tableLock)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, createCheckpoints); err != nil {
			return err
		}
		for _, p := range places {
			if err := use(ctx, tx, process, p); err != nil {
				return err
			}
			tag, err := tx.Exec(ctx, "INSERT INTO projections.checkpoints (name, tables) VALUES ($1, $2) ON CONFLICT DO NOTHING",
				p.checkpoint(), p.everything())
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 0 {
				continue // the tables come and go with their checkpoint
			}
			if err := p.each(ctx, tx, createTable); err != nil {
				return err
			}
		}
		return nil
	})
}

// drop forgets a place: its checkpoint and the tables that were made with it.
func drop(ctx context.Context, tx pgx.Tx, checkpoint string) error {
	var tables []string
	err := tx.QueryRow(ctx, `WITH gone AS (DELETE FROM projections.checkpoints WHERE name = $1 RETURNING tables)
		SELECT coalesce((SELECT tables FROM gone), '{}')`, checkpoint).Scan(&tables)
	if err != nil {
		return fmt.Errorf("forget checkpoint %s: %w", checkpoint, err)
	}
	for _, t := range tables {
		if _, err := tx.Exec(ctx, "DROP TABLE IF EXISTS "+quoted(t)); err != nil {
			return fmt.Errorf("drop table %s: %w", t, err)
		}
	}
	return nil
}

// load brings the missing rows into memory; a row that isn't there is known not to be afterwards.
func load(ctx context.Context, pool *pgxpool.Pool, p place, r *rows) error {
	keys := map[string][]string{}
	for of := range r.missing {
		keys[of.table] = append(keys[of.table], of.key)
		r.states[of] = &rowState{batch: r.batch, fresh: true}
	}
	clear(r.missing)
	for table, wanted := range keys {
		found, err := pool.Query(ctx, //nolint:rowserrcheck // ForEachRow does
			"SELECT "+rowColumns+" FROM "+quoted(p.table(table))+
				" WHERE key = ANY ($1)", wanted)
		if err != nil {
			return fmt.Errorf("load %d rows of %s: %w", len(wanted), table, err)
		}
		var key string
		var v version
		_, err = pgx.ForEachRow(found, []any{&key, &v.project, &v.lookup, &v.place, &v.from, &v.doc}, func() error {
			loaded := v
			loaded.doc = slices.Clone(v.doc)
			s := r.states[ref{table, key}]
			s.now, s.fresh = loaded, false
			r.bytes += len(loaded.doc)
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
	places, froms                 []int64
}

func (c *columns) add(key string, v version) {
	c.keys = append(c.keys, key)
	c.projects = append(c.projects, string(v.project))
	c.lookups = append(c.lookups, v.lookup)
	c.docs = append(c.docs, string(v.doc))
	c.places = append(c.places, v.place)
	c.froms = append(c.froms, v.from)
}

// manyRows are so many that they go by COPY: of a few, that takes longer than an INSERT that is sent with others.
const manyRows = 64

// tableChanges are rows of a table to be written.
type tableChanges struct {
	changed *columns // rows as they stand
	added   *copier  // those of them that the table doesn't have, when they are many
	past    *copier  // history rows
}

// flush writes what has changed: one statement per table for the rows, and a COPY for the history.
func flush(ctx context.Context, tx pgx.Tx, p place, tables map[string]*tableChanges) error {
	if err := upsert(ctx, tx, p, tables); err != nil {
		return err
	}
	for _, t := range p.tables {
		if err := tables[t].added.send(ctx, tx, p.table(t), rowColumns); err != nil {
			return err
		}
		if err := tables[t].past.send(ctx, tx, p.history(t), historyColumns); err != nil {
			return err
		}
	}
	return nil
}

func upsert(ctx context.Context, tx pgx.Tx, p place, tables map[string]*tableChanges) error {
	batch := &pgx.Batch{}
	for _, t := range p.tables {
		if c := tables[t].changed; len(c.keys) > 0 {
			batch.Queue(`INSERT INTO `+quoted(p.table(t))+` (`+rowColumns+`)
				SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::json[])
				ON CONFLICT (key) DO UPDATE SET project = excluded.project, lookup = excluded.lookup,
					place = excluded.place, from_position = excluded.from_position, row = excluded.row`,
				c.keys, c.projects, c.lookups, c.places, c.froms, c.docs)
		}
	}
	if batch.Len() == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("write rows of %s: %w", p.checkpoint(), err)
	}
	return nil
}
