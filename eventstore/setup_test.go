package eventstore_test

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bundle is a database with the schema, and a store on it.
type bundle struct {
	*eventstore.Store
	app   string        // address of the application's login
	owner *pgxpool.Pool // login that owns the schema, here a superuser
}

func setup(tb testing.TB) *bundle {
	tb.Helper()
	url := testenv.Postgres(tb)
	log := slog.New(slog.NewTextHandler(tb.Output(), nil))
	app, err := migrations.Up(tb.Context(), url, log)
	if err != nil {
		tb.Fatal(err)
	}
	owner, err := pgxpool.New(tb.Context(), url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(owner.Close)
	b := &bundle{app: app, owner: owner}
	b.Store = b.open(tb, eventstore.Config{})
	return b
}

// open gives one more store on the same database, as another process would have.
func (b *bundle) open(tb testing.TB, config eventstore.Config) *eventstore.Store {
	tb.Helper()
	config.URL, config.Log = b.app, slog.New(slog.NewTextHandler(tb.Output(), nil))
	s, err := eventstore.Open(tb.Context(), config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// run follows the log until the test ends.
func run(tb testing.TB, s *eventstore.Store) {
	tb.Helper()
	ctx, cancel := context.WithCancelCause(tb.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	tb.Cleanup(func() {
		cancel(nil)
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
}

func newEvent(kind string) eventstore.NewEvent {
	return eventstore.NewEvent{
		ID: uuid.NewString(), Type: kind, SchemaVersion: 1, Body: []byte(`{"n":1}`), ProjectID: "prj_1",
		OccurredAt: time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC), Actor: "act_1", CorrelationID: "psh_1",
	}
}

func newEvents(n int, kind string) (events []eventstore.NewEvent) {
	for range n {
		events = append(events, newEvent(kind))
	}
	return events
}

// one is an append to one stream.
func one(stream domain.Stream, expected int64, events ...eventstore.NewEvent) eventstore.Append {
	return eventstore.Append{Writes: []eventstore.Write{{Stream: stream, Expected: expected, Events: events}}}
}

func mustAppend(tb testing.TB, s *eventstore.Store, a eventstore.Append) eventstore.Appended {
	tb.Helper()
	got, err := s.Append(tb.Context(), a)
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

func collect(tb testing.TB, events iter.Seq2[domain.Recorded, error]) (all []domain.Recorded) {
	tb.Helper()
	for e, err := range events {
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// positions names events as position:version.
func positions(events []domain.Recorded) string {
	var names []string
	for _, e := range events {
		names = append(names, fmt.Sprintf("%d:%d", e.Cursor.Position, e.Version))
	}
	return strings.Join(names, " ")
}

func count(tb testing.TB, s *eventstore.Store) int64 {
	tb.Helper()
	head, err := s.Head(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return head.Position
}
