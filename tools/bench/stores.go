package main

import (
	"context"
	stdsql "database/sql"
	"log/slog"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // of watermill-sql

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// stores are what a Go driver can append to.
var stores = map[string]func(ctx context.Context, url string) (appender, func(), error){
	"pipeops": openPipeOps, "pipeops that follows": openFollowing, "insert": openInsert, "insert in order": openInOrder, "watermill": openWatermill, "message-db": openMessageDB,
}

// connections that a peer has, one a writer up to here: more slow all of them, and the server takes 200.
const connections = 40

func newEvent() eventstore.NewEvent {
	return eventstore.NewEvent{
		ID: uuid.NewString(), Type: "LayerCached", SchemaVersion: 1, Body: body, ProjectID: "prj_1",
		OccurredAt: time.Now(), Actor: "act_1", CorrelationID: "psh_1",
	}
}

func openPipeOps(ctx context.Context, url string) (appender, func(), error) {
	store, err := eventstore.Open(ctx, eventstore.Config{URL: url, Log: slog.Default()})
	if err != nil {
		return nil, nil, err
	}
	return appendTo(store), store.Close, nil
}

// openFollowing also follows the log and indexes it, as a store does in serve.
func openFollowing(ctx context.Context, url string) (appender, func(), error) {
	store, err := eventstore.Open(ctx, eventstore.Config{URL: url, Log: slog.Default()})
	if err != nil {
		return nil, nil, err
	}
	running, end := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	go func() { done <- store.Run(running) }()
	return appendTo(store), func() {
		end(nil)
		_ = <-done // it returns nil
		store.Close()
	}, nil
}

func appendTo(store *eventstore.Store) appender {
	return func(ctx context.Context, _ int, stream string, version int64, batch int) error {
		events := make([]eventstore.NewEvent, batch)
		for i := range events {
			events[i] = newEvent()
		}
		_, err := store.Append(ctx, eventstore.Append{Writes: []eventstore.Write{
			{Stream: domain.Stream("build/" + stream), Expected: version, Events: events},
		}})
		return err
	}
}

func openPool(ctx context.Context, url, schema string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = connections
	config.ConnConfig.RuntimeParams["search_path"] = schema
	return pgxpool.NewWithConfig(ctx, config)
}

// openInsert is the limit: the same row with the same indexes, by a prepared INSERT in a transaction of its own,
// without order, check or lock.
func openInsert(ctx context.Context, url string) (appender, func(), error) {
	pool, err := openPool(ctx, url, "bare")
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, _ int, stream string, version int64, batch int) error {
		if batch > 1 {
			return insertMany(ctx, pool, stream, version, batch)
		}
		e := newEvent()
		_, err := pool.Exec(ctx, `INSERT INTO bare.events (position, log_epoch, stream, version, id, project_id, type,
			schema_version, body, occurred_at, recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
			VALUES (nextval('bare.position'), 1, $1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp(), $9, $10, $11, $12, $13, $14)`,
			"build/"+stream, version+1, [16]byte(uuid.MustParse(e.ID)), string(e.ProjectID), e.Type, e.SchemaVersion, e.Body,
			e.OccurredAt, e.Actor, e.CorrelationID, e.CausationID, string(e.Attempt), e.AttemptSeq, e.Trace)
		return err
	}, pool.Close, nil
}

// openInOrder inserts many rows at once, one process after the other.
func openInOrder(ctx context.Context, url string) (appender, func(), error) {
	pool, err := openPool(ctx, url, "bare")
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, _ int, stream string, version int64, batch int) error {
		text, arguments := manyRows(stream, version, batch)
		both := &pgx.Batch{} // one round trip, and one transaction
		both.Queue("SELECT pg_advisory_xact_lock(1)")
		both.Queue(text, arguments...)
		return pool.SendBatch(ctx, both).Close()
	}, pool.Close, nil
}

// insertMany inserts rows of several streams at once, as a group commit of appends of one event or of ten would.
func insertMany(ctx context.Context, pool *pgxpool.Pool, stream string, version int64, rows int) error {
	text, arguments := manyRows(stream, version, rows)
	_, err := pool.Exec(ctx, text, arguments...)
	return err
}

func manyRows(stream string, version int64, rows int) (text string, arguments []any) {
	each := int64(1)
	if rows%10 == 0 {
		each = 10
	}
	var streams, projects, types, actors, correlations, empty []string
	var versions, zero []int64
	var ids [][16]byte
	var schemas []int32
	var bodies [][]byte
	var times []time.Time
	for i := range int64(rows) {
		e := newEvent()
		streams = append(streams, "build/"+stream+"-"+strconv.FormatInt(i/each, 10))
		versions = append(versions, version/int64(rows)*each+i%each+1)
		ids, projects, types, schemas = append(ids, uuid.MustParse(e.ID)), append(projects, string(e.ProjectID)), append(types, e.Type), append(schemas, int32(e.SchemaVersion)) //nolint:gosec // 1
		bodies, times, actors, correlations = append(bodies, e.Body), append(times, e.OccurredAt), append(actors, e.Actor), append(correlations, e.CorrelationID)
		empty, zero = append(empty, ""), append(zero, 0)
	}
	return `INSERT INTO bare.events (position, log_epoch, stream, version, id, project_id, type,
		schema_version, body, occurred_at, recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
		SELECT nextval('bare.position'), 1, stream, version, id, project, type, schema, body, occurred, clock_timestamp(), actor, correlation, none, none, zero, none
		FROM unnest($1::text[], $2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::integer[], $7::bytea[], $8::timestamptz[], $9::text[], $10::text[], $11::text[], $12::bigint[])
			AS e (stream, version, id, project, type, schema, body, occurred, actor, correlation, none, zero)`,
		[]any{streams, versions, ids, projects, types, schemas, bodies, times, actors, correlations, empty, zero}
}

// openWatermill publishes to one topic. It checks neither version nor id.
func openWatermill(ctx context.Context, url string) (appender, func(), error) {
	db, err := stdsql.Open("pgx", url)
	if err != nil {
		return nil, nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	publisher, err := sql.NewPublisher(sql.BeginnerFromStdSQL(db), sql.PublisherConfig{
		SchemaAdapter: sql.DefaultPostgreSQLSchema{}, AutoInitializeSchema: true,
	}, watermill.NopLogger{})
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, _ int, stream string, _ int64, batch int) error {
		messages := make([]*message.Message, batch)
		for i := range messages {
			messages[i] = message.NewMessage(uuid.NewString(), body)
			messages[i].Metadata.Set("stream", stream)
			messages[i].SetContext(ctx)
		}
		return publisher.Publish("events", messages...)
	}, func() { _ = db.Close() }, nil
}

// openMessageDB writes to streams of one category, with the expected version. A batch is a transaction.
func openMessageDB(ctx context.Context, url string) (appender, func(), error) {
	pool, err := openPool(ctx, url, "message_store,public")
	if err != nil {
		return nil, nil, err
	}
	const text = "SELECT write_message($1, $2, $3, $4::jsonb, NULL, $5)"
	arguments := func(stream string, expected int64) []any {
		return []any{uuid.NewString(), "build-" + stream, "LayerCached", string(body), expected}
	}
	return func(ctx context.Context, _ int, stream string, version int64, batch int) error {
		if batch == 1 {
			_, err := pool.Exec(ctx, text, arguments(stream, version-1)...)
			return err
		}
		all := &pgx.Batch{} // one round trip, and one transaction
		for i := range int64(batch) {
			all.Queue(text, arguments(stream, version-1+i)...)
		}
		return pool.SendBatch(ctx, all).Close()
	}, pool.Close, nil
}
