// Package testenv receives tests from every package, and hands them addresses of real parts: a database, a broker,
// a registry, BuildKit, a cluster; effects.
//
// The parts run through internal/local in one home per machine, are started by the first test that asks and adopted
// by the next test process, so that the tests of all packages share them. Each test gets something of its own inside
// (a database, a virtual host, a namespace is the test's to choose) which goes with the test. A part that is missing
// fails the test with what to type. `go run ./internal/testenv/testenvctl down` ends them all.
//
//	url := testenv.Postgres(tb)
package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pipeops/pipeops/internal/local"
)

// Config returns where the shared parts live: PIPEOPS_TEST_HOME, or for root /var/lib/pipeops-testenv, where the
// unprivileged PostgreSQL can enter, or else testenv in the cache folder.
func Config() local.Config {
	cache := local.DefaultCache()
	home := os.Getenv("PIPEOPS_TEST_HOME")
	if home == "" && os.Getuid() == 0 {
		home = "/var/lib/pipeops-testenv"
	}
	if home == "" {
		home = filepath.Join(cache, "testenv")
	}
	return local.Config{Home: home, Cache: cache}
}

// config is Config with the part's progress in the test's log.
func config(tb testing.TB) local.Config {
	tb.Helper()
	c := Config()
	c.Progress = func(text string) { tb.Log(text) }
	return c
}

// starting bounds the start of a part that takes seconds.
func starting(tb testing.TB, within time.Duration) (context.Context, context.CancelFunc) {
	tb.Helper()
	return context.WithTimeoutCause(tb.Context(), within, errors.New("the part took longer than "+within.String()))
}

// cleaning bounds what a test leaves behind: tb.Context has ended by then.
func cleaning() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), 30*time.Second, errors.New("cleaning up took longer than 30 s"))
}

// need fails the test with what to type.
func need(tb testing.TB, part string, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatalf("%s for tests: %v\nIf a program is missing type: tools/install test", part, err)
	}
}

const namePrefix = "test_"

// freshName names what a test owns inside a shared part; the name tells the test process.
func freshName() string {
	return fmt.Sprintf("%s%d_%s", namePrefix, os.Getpid(), strings.ToLower(rand.Text()[:10]))
}

// leftBehind says whether the test process that made a fresh name was killed before it could clean up.
func leftBehind(name string) bool {
	rest, ours := strings.CutPrefix(name, namePrefix)
	pid, _, _ := strings.Cut(rest, "_")
	if !ours || pid == "" {
		return false
	}
	_, err := os.Stat("/proc/" + pid)
	return errors.Is(err, os.ErrNotExist)
}
