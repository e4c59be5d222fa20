package testenv

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/pipeops/pipeops/internal/local"
)

// Server is a PostgreSQL server of the test's own, with an empty database pipeops of the login pipeops, a superuser.
// For tests of what concerns a whole server: backups, failovers. It ends with the test.
type Server struct {
	URL    string // of the database
	config local.Config
}

// NewServer makes an empty server.
func NewServer(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{config: serverConfig(tb)}
	s.start(tb)
	return s
}

// serverConfig is that of a home which PostgreSQL's user can enter and whose server ends with the test.
func serverConfig(tb testing.TB) local.Config {
	tb.Helper()
	home, err := os.MkdirTemp("", "pipeops") //nolint:usetesting // t.TempDir is closed to others
	if err == nil {
		err = os.Chmod(home, 0o711) //nolint:gosec // PostgreSQL's user passes through
	}
	need(tb, "PostgreSQL", err)
	c := config(tb)
	c.Home = home
	tb.Cleanup(func() {
		ctx, cancel := cleaning()
		defer cancel()
		if err := errors.Join(local.StopPostgres(ctx, c), os.RemoveAll(home)); err != nil {
			tb.Errorf("end a server of the test's own: %v", err)
		}
	})
	return c
}

// start starts the server.
func (s *Server) start(tb testing.TB) {
	tb.Helper()
	ctx, cancel := starting(tb, 2*time.Minute)
	defer cancel()
	var err error
	s.URL, err = local.StartPostgres(ctx, s.config)
	need(tb, "PostgreSQL", err)
}

// Kill ends the server as a crash of its machine does.
func (s *Server) Kill(tb testing.TB) {
	tb.Helper()
	parts, err := local.Running(s.config)
	for _, part := range parts {
		err = errors.Join(err, syscall.Kill(part.Pid, syscall.SIGKILL))
	}
	if err != nil || len(parts) != 1 {
		tb.Fatalf("kill a server of the test's own: %d processes, %v", len(parts), err)
	}
}

// Copy makes a base backup, as docs/operations.md says, and starts it as a server of its own: a standby with -R.
func (s *Server) Copy(tb testing.TB, options ...string) *Server {
	tb.Helper()
	c := &Server{config: serverConfig(tb)}
	from, to := filepath.Join(s.config.Home, "postgres"), filepath.Join(c.config.Home, "postgres")
	Tool(tb, "pg_basebackup", append([]string{"--dbname=" + s.URL, "--pgdata=" + filepath.Join(to, "data"), "--checkpoint=fast"}, options...)...)
	password, err := os.ReadFile(filepath.Join(from, "password")) //nolint:gosec // the path is ours
	if err == nil {
		err = os.WriteFile(filepath.Join(to, "password"), password, 0o600)
	}
	if err == nil {
		err = errors.Join(os.Chmod(to, 0o711), giveTo(filepath.Join(from, "data"), filepath.Join(to, "data"))) //nolint:gosec // PostgreSQL's user passes through
	}
	need(tb, "PostgreSQL", err)
	c.start(tb)
	return c
}

// giveTo makes the owner of one folder that of all in another.
func giveTo(like, folder string) error {
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	return filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, int(owner.Uid), int(owner.Gid))) //nolint:gosec // a folder of the test's own
	})
}

// Tool runs one of PostgreSQL's own programs to its end.
func Tool(tb testing.TB, name string, args ...string) {
	tb.Helper()
	folders, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(folders) > 0 {
		name = filepath.Join(folders[len(folders)-1], name)
	}
	ctx, cancel := context.WithTimeoutCause(tb.Context(), time.Minute, errors.New("a minute"))
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil { //nolint:gosec // the test's own
		tb.Fatalf("%s: %v\n%s", name, err, out)
	}
}
