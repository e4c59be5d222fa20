package migrations_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func TestUpMakesTheLoginAndIsSafeToRepeat(t *testing.T) {
	t.Parallel()
	owner := testenv.Postgres(t)
	app, err := migrations.Up(t.Context(), owner, quiet())
	if err != nil {
		t.Fatal(err)
	}
	again, err := migrations.Up(t.Context(), owner, quiet())
	if err != nil || again != app {
		t.Fatalf("second Up: same address %v, %v", again == app, err)
	}
	var user, database string
	if err := connect(t, app).QueryRow(t.Context(), "SELECT current_user, current_database()").Scan(&user, &database); err != nil {
		t.Fatal(err)
	}
	if user != migrations.AppLogin(database) {
		t.Errorf("logged in as %s, want %s", user, migrations.AppLogin(database))
	}
}
