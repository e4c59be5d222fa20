package local

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// testHome is a home of the test's own, which PostgreSQL's user can enter and whose parts end with the test.
func testHome(t *testing.T) Config {
	t.Helper()
	home, err := os.MkdirTemp("", "pipeops") //nolint:usetesting // t.TempDir is too long for sockets, and closed to others
	if err == nil {
		err = os.Chmod(home, 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := Config{Home: home}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context has ended here.
		ctx, cancel := context.WithTimeoutCause(context.Background(), time.Minute, errors.New("down took longer than a minute"))
		defer cancel()
		if err := Down(ctx, c); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	return c
}

func pid(t *testing.T, c Config, part string) identity {
	t.Helper()
	started, err := readStarted(startedFile(c.Home, part))
	if err != nil {
		t.Fatal(err)
	}
	return started.identity
}

func execute(t *testing.T, url, statement string) {
	t.Helper()
	connection, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close(t.Context()) //nolint:errcheck // nothing is in flight
	if _, err := connection.Exec(t.Context(), statement); err != nil {
		t.Error(err)
	}
}

func TestPostgresIsAdoptedAndKeepsPortAndRowsOverStopAndKill(t *testing.T) {
	t.Parallel()
	c := testHome(t)
	start := func() string {
		t.Helper()
		url, err := StartPostgres(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return url
	}
	url := start()
	execute(t, url, "CREATE TABLE kept ()")
	first := pid(t, c, "postgres")

	if again := start(); again != url || pid(t, c, "postgres") != first {
		t.Errorf("second start: a new process, or another address")
	}
	if err := os.Remove(startedFile(c.Home, "postgres")); err != nil {
		t.Fatal(err)
	}
	if again := start(); again != url || pid(t, c, "postgres") != first {
		t.Errorf("start after a starter that was killed before it wrote the identity: not adopted")
	}
	if err := StopPostgres(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if first.alive() || len(marked(mark(c.Home, "postgres"))) > 0 {
		t.Errorf("something runs after stop")
	}
	if again := start(); again != url {
		t.Errorf("address after restart: %s, was %s", again, url)
	}
	if err := pid(t, c, "postgres").signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if again := start(); again != url {
		t.Errorf("address after kill: %s, was %s", again, url)
	}
	execute(t, url, "SELECT FROM kept")
}

func TestPostgresRefusesAWrongPassword(t *testing.T) {
	t.Parallel()
	c := testHome(t)
	url, err := StartPostgres(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.Password = "wrong"
	if _, err := pgx.ConnectConfig(t.Context(), config); err == nil {
		t.Error("connected")
	}
}
