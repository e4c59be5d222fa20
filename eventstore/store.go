// Package eventstore receives decided events from handlers/commands and hands what is recorded to projections,
// policies, the relay and subscriptions, from any cursor on and then live; effects (PostgreSQL).
//
// It keeps: positions are 1, 2, 3, … in commit order without a gap, and a reader that has seen N never meets a new
// event at or below N; of two writers who expect the same version of a stream one wins; an event id appended twice is
// one event; nothing recorded ever changes. See docs/architecture.md.
//
//	store, err := eventstore.Open(ctx, eventstore.Config{URL: url, Log: log})
//	defer store.Close()
//	go store.Run(ctx) // follows the log for Subscribe and Wait
//	_, err = store.Append(ctx, eventstore.Append{Writes: []eventstore.Write{{Stream: s, Expected: 4, Events: events}}})
//	for event, err := range store.ReadStream(ctx, s, 0) { … }
package eventstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Config says which database, and within what bounds.
type Config struct {
	URL string       // of the login that the application uses (migrations.Up returns it); required
	Log *slog.Logger // required

	PoolSize     int           // connections for reading, besides one for appending and one for listening; default 10
	PollInterval time.Duration // how long an event of another process can stay unseen when its notification was lost; default 1 s
	BatchEvents  int           // events in one group commit; default 512
	BatchBytes   int           // bytes in one group commit; default 4 MiB
	RingEvents   int           // newest events kept in memory for subscribers; default 4096
	RingBytes    int           // their bytes; default 8 MiB
}

// Validate says all that is wrong.
func (c Config) Validate() error {
	var problems []error
	if c.URL == "" {
		problems = append(problems, errors.New(`URL is empty: give the database, for example "postgres://pipeops_app:…@localhost/pipeops"`))
	}
	if c.Log == nil {
		problems = append(problems, errors.New("no Log is given"))
	}
	if c.PoolSize < 0 || c.PollInterval < 0 || c.BatchEvents < 0 || c.BatchBytes < 0 || c.RingEvents < 0 || c.RingBytes < 0 {
		problems = append(problems, errors.New("a bound is negative: 0 means its default"))
	}
	return errors.Join(problems...)
}

func (c Config) withDefaults() Config {
	c.PoolSize = orDefault(c.PoolSize, 10)
	c.PollInterval = orDefault(c.PollInterval, time.Second)
	c.BatchEvents = orDefault(c.BatchEvents, 512)
	c.BatchBytes = orDefault(c.BatchBytes, 4<<20)
	c.RingEvents = orDefault(c.RingEvents, 4096)
	c.RingBytes = orDefault(c.RingBytes, 8<<20)
	return c
}

func orDefault[T int | time.Duration](value, standard T) T {
	if value == 0 {
		return standard
	}
	return value
}

// Store is the log. Its methods may be called at the same time.
type Store struct {
	config    Config
	pool      *pgxpool.Pool
	committer *committer
	hub       *hub
	hints     *hints
	close     func()
}

// Open connects and starts to take appends. The schema must be there (migrations.Up). Close ends it.
func Open(ctx context.Context, config Config) (*Store, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("event store: %w", err)
	}
	config = config.withDefaults()
	settings, err := pgxpool.ParseConfig(config.URL)
	if err != nil {
		return nil, fmt.Errorf("event store: address of the database: %w", err)
	}
	switch mode := settings.ConnConfig.DefaultQueryExecMode; mode {
	case pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe:
	default: // rows would come as text, or a statement would be torn apart between two sessions
		return nil, fmt.Errorf("event store: address of the database: default_query_exec_mode is %q; leave it out, or behind a pooler that "+
			"keeps no prepared statements write cache_describe (sessions it must keep: leaders hold locks)", mode)
	}
	settings.MaxConns = int32(config.PoolSize)                        //nolint:gosec // a handful
	settings.ConnConfig.RuntimeParams["application_name"] = "pipeops" // poolers refuse, or forget, most others: they are set below
	settings.AfterConnect = setUp
	pool, err := pgxpool.NewWithConfig(ctx, settings)
	if err != nil {
		return nil, fmt.Errorf("event store: %w", err)
	}
	s := &Store{config: config, pool: pool, hub: newHub(config.RingEvents, config.RingBytes), hints: newHints()}
	if _, err := s.Head(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("event store in database %s (its schema comes from `pipeops migrate`): %w", settings.ConnConfig.Database, err)
	}
	s.committer = newCommitter(config, settings.ConnConfig, s.hints, s.hub.poke)
	life, end := context.WithCancelCause(context.WithoutCancel(ctx)) // until Close, not until ctx ends
	var background sync.WaitGroup
	background.Go(func() { s.committer.run(life) })
	background.Go(func() { s.hintOthers(life) })
	s.close = sync.OnceFunc(func() {
		s.committer.close()
		end(ErrClosed)
		background.Wait()
		s.pool.Close()
	})
	return s, nil
}

// setUp makes a connection ours. A snapshot from before the append lock would miss the newest events, and our queries are
// too short for compiling.
func setUp(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, "SET default_transaction_isolation = 'read committed'; SET jit = off")
	return err
}

// Close finishes the append in flight, refuses the ones that wait with ErrClosed, and closes all connections. Stop
// Run and all readers before.
func (s *Store) Close() { s.close() }

// Pool lends the connections to projections and records, whose tables live in the same database.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }
