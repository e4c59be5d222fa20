package testenv

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/internal/local"
)

// Postgres returns the URL of a fresh, empty database on the shared server, dropped when the test ends. The login is
// a superuser; roles that a test makes belong to the whole server and stay, so name them after the database if they
// are the test's own.
func Postgres(tb testing.TB) string {
	tb.Helper()
	ctx, cancel := starting(tb, 2*time.Minute)
	defer cancel()
	server, err := local.StartPostgres(ctx, config(tb))
	need(tb, "PostgreSQL", err)
	sweepOnce.Do(func() { err = sweepDatabases(ctx, server) })
	need(tb, "PostgreSQL", err)
	name := freshName()
	need(tb, "PostgreSQL", execute(ctx, server, "CREATE DATABASE "+name))
	tb.Cleanup(func() {
		ctx, cancel := cleaning()
		defer cancel()
		err := errors.Join(
			execute(ctx, server, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"),
			execute(ctx, server, "DROP ROLE IF EXISTS pipeops_app_"+name), // of the application, made by migrations.Up
		)
		if err != nil {
			tb.Errorf("drop database %s: %v", name, err)
		}
	})
	fresh, err := url.Parse(server)
	need(tb, "PostgreSQL", err)
	fresh.Path = "/" + name
	return fresh.String()
}

var sweepOnce sync.Once

// sweepDatabases drops what test processes that were killed have left: the name tells the process.
func sweepDatabases(ctx context.Context, server string) error {
	connection, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer connection.Close(ctx) //nolint:errcheck // nothing is in flight
	rows, err := connection.Query(ctx, "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", namePrefix)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		if !leftBehind(name) {
			continue
		}
		if _, err := connection.Exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
			return fmt.Errorf("drop database %s of a test that was killed: %w", name, err)
		}
	}
	return nil
}

func execute(ctx context.Context, server, statement string) error {
	connection, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	_, err = connection.Exec(ctx, statement)
	return errors.Join(err, connection.Close(ctx))
}
