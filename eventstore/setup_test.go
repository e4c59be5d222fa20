package eventstore_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
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
	return setupIn(tb, testenv.Postgres(tb))
}

// setupIn makes a store in a database; one that is there already is taken as it is.
func setupIn(tb testing.TB, url string) *bundle {
	tb.Helper()
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

func TestStore(t *testing.T) {
	t.Parallel()
	conform(t, "")
}

// As behind a pooler that keeps no prepared statements.
func TestStoreWithoutPreparedStatements(t *testing.T) {
	t.Parallel()
	conform(t, "&default_query_exec_mode=cache_describe")
}

func TestAWayOfQueryingThatLosesTypesOrSessionsIsRefused(t *testing.T) {
	t.Parallel()
	s := setup(t)
	for _, mode := range []string{"exec", "simple_protocol", "describe_exec"} {
		_, err := eventstore.Open(t.Context(), eventstore.Config{URL: s.app + "&default_query_exec_mode=" + mode, Log: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), "cache_describe") {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// conform runs the contracts on stores that connect with more parameters.
func conform(t *testing.T, parameters string) {
	t.Helper()
	storetest.Run(t, func(t *testing.T) func() storetest.Store {
		t.Helper()
		s := setup(t)
		s.app += parameters
		return func() storetest.Store {
			store := s.open(t, eventstore.Config{RingEvents: 16}) // a ring that is overrun at once
			run(t, store)
			return store
		}
	})
}

// appendEach appends so many events at once, for each number given.
func (b *bundle) appendEach(tb testing.TB, sizes ...int) {
	tb.Helper()
	for _, n := range sizes {
		storetest.MustAppend(tb, b.Store, storetest.One("build/1", eventstore.AnyVersion, storetest.NewEvents(n, "A")...))
	}
}
