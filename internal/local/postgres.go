package local

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// StartPostgres runs a private PostgreSQL cluster in <home>/postgres from the installed binaries and returns the URL
// of its database pipeops, whose login pipeops owns everything. It listens on loopback only, on a kept port, with
// fsync on. As root it runs as the user postgres, because PostgreSQL refuses root.
func StartPostgres(ctx context.Context, c Config) (string, error) {
	c, err := c.withDefaults()
	if err != nil {
		return "", err
	}
	unlock, err := c.lockPart(ctx, "postgres")
	if err != nil {
		return "", err
	}
	defer unlock()
	bin, err := postgresBin()
	if err != nil {
		return "", err
	}
	p := postgres{Config: c, bin: bin, folder: filepath.Join(c.Home, "postgres")}
	if os.Getuid() == 0 {
		if p.user, err = findAccount("postgres"); err != nil {
			return "", &MissingError{What: "the user postgres, which PostgreSQL runs as when you are root,", Fix: "apt-get install postgresql"}
		}
	}
	return p.start(ctx)
}

// HasPostgres says whether StartPostgres has made a cluster in a home.
func HasPostgres(home string) bool {
	_, err := os.Stat(filepath.Join(postgres{folder: filepath.Join(home, "postgres")}.data(), "PG_VERSION"))
	return err == nil
}

// RunningPostgres gives the URL that StartPostgres gives for a home that HasPostgres, and starts nothing: an error when
// that PostgreSQL doesn't answer.
func RunningPostgres(ctx context.Context, c Config) (string, error) {
	c, err := c.withDefaults()
	if err != nil {
		return "", err
	}
	port, err := c.port(ctx, "postgres")
	if err != nil {
		return "", err
	}
	url, err := postgres{folder: filepath.Join(c.Home, "postgres")}.url(port, "pipeops")
	if err != nil {
		return "", err
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	return url, conn.Close(ctx)
}

type postgres struct {
	Config
	bin, folder string
	user        *account
}

func (p postgres) start(ctx context.Context) (string, error) {
	if err := p.initialise(ctx); err != nil {
		return "", err
	}
	port, err := p.port(ctx, "postgres")
	if err != nil {
		return "", err
	}
	maintenance, err := p.url(port, "postgres")
	if err != nil {
		return "", err
	}
	own, err := p.url(port, "pipeops")
	if err != nil {
		return "", err
	}
	part := daemon{
		part: "postgres", path: filepath.Join(p.bin, "postgres"), args: p.arguments(port), user: p.user,
		before: p.awaitOrphans,
		within: time.Minute, // recovery of a large tail after a crash
		ready:  func(ctx context.Context) error { return ensureDatabase(ctx, maintenance, "pipeops") },
	}
	return own, part.start(ctx, p.Config)
}

// url gives the address of a database, for the login that owns everything.
func (p postgres) url(port int, database string) (string, error) {
	password, err := secret(filepath.Join(p.folder, "password"))
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword("pipeops", password), Host: loopback(port), Path: database,
		RawQuery: "sslmode=disable",
	}).String(), err
}

func (p postgres) data() string { return filepath.Join(p.folder, "data") }

func (p postgres) arguments(port int) []string {
	args := []string{"-D", p.data(), "-p", strconv.Itoa(port)}
	for _, setting := range append([]string{
		"listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200", "shared_buffers=64MB",
		"max_wal_size=1GB", "jit=off", "timezone=UTC", "log_timezone=UTC", "logging_collector=off", "log_destination=stderr",
	}, p.Postgres...) {
		args = append(args, "-c", setting)
	}
	return args
}

// initialise makes the cluster beside its place and moves it there whole, so that a crash leaves none or all of it.
func (p postgres) initialise(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(p.data(), "PG_VERSION")); err == nil {
		return nil
	}
	if err := os.MkdirAll(p.folder, 0o711); err != nil { //nolint:gosec // its user passes through
		return err
	}
	if p.user != nil {
		if err := p.user.canReach(filepath.Join(p.folder, "data")); err != nil {
			return err
		}
	}
	password, err := secret(filepath.Join(p.folder, "password"))
	if err != nil {
		return err
	}
	work := filepath.Join(p.folder, "new")
	if err := errors.Join(os.RemoveAll(work), os.Mkdir(work, 0o700)); err != nil {
		return err
	}
	passwordFile := filepath.Join(work, "password")
	if err := os.WriteFile(passwordFile, []byte(password), 0o600); err != nil {
		return err
	}
	initdb := exec.CommandContext(ctx, filepath.Join(p.bin, "initdb"), "-D", filepath.Join(work, "data"), //nolint:gosec // found by us
		"-U", "pipeops", "--pwfile", passwordFile, "--auth=scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8")
	initdb.Dir, initdb.Env = work, environment()
	if p.user != nil {
		initdb.SysProcAttr = &syscall.SysProcAttr{Credential: p.user.credential()}
		if err := errors.Join(os.Chown(work, p.user.uid, p.user.gid), os.Chown(passwordFile, p.user.uid, p.user.gid)); err != nil {
			return err
		}
	}
	p.Progress("making a private PostgreSQL cluster")
	if output, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("make a PostgreSQL cluster in %s: %w\n%s", work, err, output)
	}
	return errors.Join(os.Rename(filepath.Join(work, "data"), p.data()), os.RemoveAll(work))
}

// awaitOrphans waits until the children of a killed postmaster have gone: until then a new one refuses to start.
// They work in the data folder, and end by themselves as soon as they notice.
func (p postgres) awaitOrphans(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("still there after 20 s"))
	defer cancel()
	for _, orphan := range workingIn(p.data()) {
		if err := orphan.await(ctx); err != nil {
			return fmt.Errorf("wait for process %d, left in %s by a PostgreSQL that was killed: %w", orphan.Pid, p.data(), err)
		}
	}
	return nil
}

// ensureDatabase connects to the cluster and makes the database if it isn't there.
func ensureDatabase(ctx context.Context, url, name string) error {
	connection, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer connection.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is in flight
	var exists bool
	if err := connection.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil || exists {
		return err
	}
	_, err = connection.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	return err
}

// postgresBin finds the folder of the newest installed server: Debian keeps them off PATH.
func postgresBin() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	newest, version := "", -1.0
	for _, path := range found {
		v, err := strconv.ParseFloat(filepath.Base(filepath.Dir(filepath.Dir(path))), 64)
		if err == nil && v > version {
			newest, version = filepath.Dir(path), v
		}
	}
	if newest != "" {
		return newest, nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	return "", &MissingError{What: "PostgreSQL", Fix: "apt-get install postgresql"}
}
