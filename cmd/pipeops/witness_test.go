package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
	"github.com/pipeops/pipeops/eventstore/verify"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/local"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

// home is one installation whose serve is started again and again, in this process.
type home struct {
	t         *testing.T
	cfg       config.Config
	elsewhere string // another home with the same master key: it has seen nothing
	owner     *pgx.Conn
}

func newHome(t *testing.T) *home {
	t.Helper()
	h := &home{t: t, cfg: config.Config{Home: t.TempDir()}, elsewhere: t.TempDir()}
	_, err := seal.LoadMaster(filepath.Join(h.cfg.Home, "master.key"))
	h.must(err)
	h.must(os.Link(filepath.Join(h.cfg.Home, "master.key"), filepath.Join(h.elsewhere, "master.key")))
	h.use(testenv.Postgres(t))
	return h
}

// use takes a database.
func (h *home) use(url string) {
	h.t.Helper()
	h.cfg.DatabaseURL, h.cfg.MigrateURL = url, url
	owner, err := pgx.Connect(h.t.Context(), url)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = owner.Close(context.Background()) })
	h.owner = owner
}

func (h *home) exec(statement string) {
	h.t.Helper()
	if _, err := h.owner.Exec(h.t.Context(), statement); err != nil {
		h.t.Fatal(err)
	}
}

// restore loses everything that the database has of the log after a position, as a backup from then would.
func (h *home) restore(position int64) {
	h.t.Helper()
	h.exec(fmt.Sprintf(`ALTER TABLE pipeops.events DISABLE TRIGGER USER; ALTER TABLE pipeops.tree_heads DISABLE TRIGGER USER;
		DELETE FROM pipeops.events WHERE position > %d; DELETE FROM pipeops.tree_heads WHERE size > %d;
		ALTER TABLE pipeops.events ENABLE ALWAYS TRIGGER never_changes; ALTER TABLE pipeops.tree_heads ENABLE TRIGGER USER`, position, position))
}

// appends adds so many events, and signs nothing.
func (h *home) appends(n int) {
	h.t.Helper()
	c := h.open(h.elsewhere)
	defer c.store.Close()
	storetest.MustAppend(h.t, c.store, storetest.One("operation/x", eventstore.AnyVersion, storetest.NewEvents(n, "Filler")...))
}

// number asks the database for one.
func (h *home) number(query string) (n int) {
	h.t.Helper()
	if err := h.owner.QueryRow(h.t.Context(), query).Scan(&n); err != nil {
		h.t.Fatal(err)
	}
	return n
}

// grow appends so many events and signs what is there.
func (h *home) grow(n int) eventstore.Head {
	h.t.Helper()
	h.appends(n)
	c := h.open(h.elsewhere)
	defer c.store.Close()
	head, err := c.signer.Sign(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return head
}

func (h *home) open(home string) *core {
	h.t.Helper()
	cfg := h.cfg
	cfg.Home = home
	c, err := openCore(h.t.Context(), cfg, slog.New(slog.DiscardHandler))
	h.must(err)
	return c
}

// serves starts serve, waits until its home has the newest checkpoint, does what is to be done meanwhile, and stops it. An
// error is serve's own.
func (h *home) serves(meanwhile ...func(*client)) error {
	h.t.Helper()
	log := slog.New(slog.DiscardHandler)
	c, err := openCore(h.t.Context(), h.cfg, log)
	if err != nil {
		return err
	}
	defer c.store.Close()
	l, err := (&net.ListenConfig{}).Listen(h.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	b := bus.NewInProcess(bus.Config{Log: log})
	defer b.Close() //nolint:errcheck // nothing is left in it
	cfg := h.cfg
	cfg.URL = "http://" + l.Addr().String()
	ctx, stop := context.WithCancelCause(h.t.Context())
	defer stop(nil)
	done := make(chan error, 1)
	go func() { done <- serve(ctx, cfg, c, b, l, log) }()
	deadline, again := time.After(30*time.Second), time.NewTicker(10*time.Millisecond)
	defer again.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-deadline:
			h.t.Fatal("no checkpoint comes into the home")
		case <-again.C:
		}
		head, err := c.store.NewestHead(h.t.Context())
		kept, _ := os.ReadFile(h.file())
		if err == nil && head.Size > 0 && string(kept) == head.Checkpoint {
			for _, do := range meanwhile {
				token, _, err := c.tokens.Create(h.t.Context(), "laptop")
				h.must(err)
				do(&client{url: cfg.URL, token: token})
			}
			stop(nil)
			return <-done
		}
	}
}

func (h *home) file() string { return filepath.Join(h.cfg.Home, "checkpoint") }

func (h *home) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) refuses(says string) {
	h.t.Helper()
	err := h.serves()
	if err == nil || exitCode(err) != exitRefused || !strings.Contains(err.Error(), says) {
		h.t.Errorf("serve: %v, want it to refuse with %q", err, says)
	}
}

func TestALogThatLostWhatTheHomeHasSeenIsNotServedUntilThatIsSaid(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.grow(10)
	h.must(h.serves())
	before := h.grow(10)
	h.must(h.serves())

	h.restore(before.Size - 5)
	h.refuses("pipeops audit fork")
	h.appends(20) // it has as many events again, but others
	heads := h.number("SELECT count(*) FROM pipeops.tree_heads")
	h.refuses("they are not those that stand in the log now")
	if n := h.number("SELECT count(*) FROM pipeops.tree_heads"); n != heads {
		t.Errorf("what is suspect was signed: %d heads, there were %d", n, heads)
	}
	h.grow(1)
	h.refuses("they are not those that stand in the log now")
	_, _, err := migrations.Fork(t.Context(), h.cfg.MigrateURL, 0)
	h.must(err)
	h.grow(1)
	h.must(h.serves())

	// A backup from before that restore.
	forked := h.open(h.elsewhere)
	head, err := forked.store.Head(t.Context())
	h.must(err)
	forked.store.Close()
	h.restore(before.Size - 5)
	h.exec(`ALTER TABLE pipeops.log_epochs DISABLE TRIGGER USER; DELETE FROM pipeops.log_epochs WHERE epoch > 1;
		ALTER TABLE pipeops.log_epochs ENABLE ALWAYS TRIGGER never_changes`)
	h.refuses(fmt.Sprintf("pipeops audit fork --yes --at-least %d", head.LogEpoch+1))
}

func TestWhatARefusalSaysToDoNamesWhereTheLogDiffers(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.grow(5)
	h.must(h.serves())
	h.grow(5)
	h.must(h.serves())
	h.restore(5)
	h.appends(20)
	seen, out := h.file()+".seen", filepath.Join(t.TempDir(), "export")
	h.refuses(fmt.Sprintf("mv %s %s, start pipeops again, then type pipeops audit export --out export and pipeops audit verify export --checkpoint %s", h.file(), seen, seen))
	h.must(os.Rename(h.file(), seen))
	h.must(h.serves(func(c *client) { h.must((&export{client: c, told: io.Discard}).write(t.Context(), out)) }))
	cmd := root()
	cmd.SetArgs([]string{"audit", "verify", out, "--checkpoint", seen})
	cmd.SetOut(io.Discard)
	cmd.SetErr(io.Discard)
	if err := cmd.ExecuteContext(t.Context()); err == nil || exitCode(err) != exitVerdict || !strings.Contains(err.Error(), "the given checkpoint 1") {
		t.Errorf("audit verify: %v, want it to tell that this is not what was signed", err)
	}
}

// Nobody appends: the event would take the position of one that is lost, as if nothing had been.
func TestNothingIsAppendedToALogThatLostWhatTheHomeHasSeen(t *testing.T) {
	h := newHome(t)
	h.grow(10)
	h.must(h.serves())
	before := h.grow(10)
	h.must(h.serves())
	h.restore(before.Size - 5)
	for name, value := range map[string]string{
		"DATABASE_URL": h.cfg.DatabaseURL, "PIPEOPS_MIGRATE_URL": "", "PIPEOPS_HOME": h.cfg.Home, "AMQP_URL": "", "HOME": t.TempDir(),
		"BUILDKIT_HOST": "tcp://127.0.0.1:1", "REGISTRY": "127.0.0.1:1/x", "KUBECONFIG": "", "PIPEOPS_LISTEN": "127.0.0.1:0",
	} {
		t.Setenv(name, value)
	}
	run := func(args ...string) error {
		cmd := root()
		cmd.SetArgs(args)
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, errSlow) // it serves, instead of refusing
		defer cancel()
		return cmd.ExecuteContext(ctx)
	}
	for _, command := range []string{
		"up", "token create laptop", "token revoke laptop", "audit key rotate --yes", "worker enroll --class build",
	} {
		if err := run(strings.Fields(command)...); err == nil || exitCode(err) != exitRefused || !strings.Contains(err.Error(), "pipeops audit fork") {
			t.Errorf("%s: %v, want it to refuse until a fork is declared", command, err)
		}
		if n := h.number("SELECT max(position) FROM pipeops.events"); int64(n) != before.Size-5 {
			t.Fatalf("%s: the log goes to position %d, it went to %d", command, n, before.Size-5)
		}
	}
	for _, command := range []string{"migrate", "audit fork --yes", "token create laptop"} {
		h.must(run(strings.Fields(command)...))
	}
}

func TestAHomeThatMovesToAnotherLogServesItAndKeepsWhatItHasSeenOfTheFirst(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.grow(5)
	lost := h.grow(5)
	h.must(h.serves())
	first, owner := h.cfg.DatabaseURL, h.owner
	var id string
	h.must(owner.QueryRow(t.Context(), "SELECT id::text FROM pipeops.log_identity").Scan(&id))

	h.use(testenv.Postgres(t))
	h.grow(1)
	var told bytes.Buffer
	c, err := openCore(t.Context(), h.cfg, slog.New(slog.NewTextHandler(&told, nil)))
	h.must(err)
	defer c.store.Close()
	copied := h.open(h.cfg.Home) // two copies of serve with one home
	defer copied.store.Close()
	h.must(c.witness.keep(t.Context()))
	h.must(copied.witness.keep(t.Context()))
	h.must(h.serves())
	aside := h.file() + "." + id
	if kept, err := os.ReadFile(aside); err != nil || string(kept) != lost.Checkpoint {
		t.Errorf("%s has %s, %v, want %s", aside, kept, err, lost.Checkpoint)
	}
	if !strings.Contains(told.String(), aside) {
		t.Errorf("the log says %s, and nothing of %s", &told, aside)
	}

	// It comes back to the first one, which was restored meanwhile.
	h.cfg.DatabaseURL, h.cfg.MigrateURL, h.owner = first, first, owner
	h.restore(5)
	h.appends(20)
	h.refuses("the log is not what " + aside + " has seen")
	h.must(os.Remove(h.file()))
	h.refuses("the log is not what " + aside + " has seen")
	_, _, err = migrations.Fork(t.Context(), first, 0)
	h.must(err)
	h.grow(1)
	h.must(h.serves())
}

func TestWhatAnotherCopyOfServeHasSeenIsNotForgotten(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.grow(10)
	behind := h.open(h.cfg.Home)
	defer behind.store.Close()
	h.must(behind.witness.keep(t.Context()))
	lost := h.grow(10)
	ahead := h.open(h.cfg.Home)
	defer ahead.store.Close()
	h.must(ahead.witness.keep(t.Context()))
	h.restore(15)
	h.grow(1)
	if err := behind.witness.keep(t.Context()); exitCode(err) != exitRefused || !isConflict(err) {
		t.Errorf("got %v, want it to refuse", err)
	}
	if kept, err := os.ReadFile(h.file()); err != nil || string(kept) != lost.Checkpoint {
		t.Errorf("the file has %s, %v, want what is lost: %s", kept, err, lost.Checkpoint)
	}
}

func TestTheHomesOwnPostgresIsUsedWithoutItsAddress(t *testing.T) {
	dir, err := os.MkdirTemp("", "pipeops-fork-") //nolint:usetesting // t.TempDir is closed to PostgreSQL's user
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // as up does
		t.Fatal(err)
	}
	for name, value := range map[string]string{"PIPEOPS_HOME": dir, "DATABASE_URL": "", "PIPEOPS_MIGRATE_URL": ""} {
		t.Setenv(name, value)
	}
	pipeops := func(args ...string) (said string, err error) {
		var out bytes.Buffer
		cmd := root()
		cmd.SetArgs(args)
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard)
		err = cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	runs := func() bool {
		_, err := local.RunningPostgres(t.Context(), local.Config{Home: dir})
		return err == nil
	}
	fork := func() (string, error) { return pipeops("audit", "fork", "--yes") }
	tokens := func() (string, error) { return pipeops("token", "list") }
	for _, command := range []func() (string, error){fork, tokens} {
		if _, err := command(); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "DATABASE_URL") {
			t.Errorf("no database at all: %v", err)
		}
	}
	lc := local.Config{Home: dir}
	t.Cleanup(func() {
		if err := errors.Join(local.Down(context.Background(), lc), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	url, err := local.StartPostgres(t.Context(), lc)
	if err == nil {
		_, err = migrations.Up(t.Context(), url, slog.New(slog.DiscardHandler))
	}
	if err = errors.Join(err, local.Down(t.Context(), lc)); err != nil {
		t.Fatal(err)
	}
	for epoch := 2; epoch <= 3; epoch++ { // it is started, and stopped again
		if said, err := fork(); err != nil || said != fmt.Sprintf("log epoch %d begins at position 1\n", epoch) {
			t.Errorf("got %s, %v", said, err)
		}
		if runs() {
			t.Error("PostgreSQL was left running")
		}
	}
	kept := func(own bool) {
		if err := writePrivate(reachedFile(dir), reached{OwnPostgres: own}); err != nil {
			t.Fatal(err)
		}
	}
	kept(true)
	if _, err := tokens(); err == nil || !strings.Contains(err.Error(), "pipeops up first") {
		t.Errorf("while no up runs: %v", err)
	}
	release, err := exclusive(filepath.Join(dir, "up.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := fork(); err == nil || !strings.Contains(err.Error(), "pipeops down") {
		t.Errorf("while up runs: %v", err)
	}
	if _, err := local.StartPostgres(t.Context(), lc); err != nil {
		t.Fatal(err)
	}
	kept(false)
	if _, err := tokens(); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "DATABASE_URL is not set") {
		t.Errorf("while up runs with another database: %v", err)
	}
	kept(true)
	if said, err := pipeops("token", "create", "ci"); err != nil || !records.IsToken(strings.TrimSpace(said)) {
		t.Errorf("got %s, %v", said, err)
	}
	if said, err := tokens(); err != nil || !strings.Contains(said, "ci") {
		t.Errorf("while up runs: %s, %v", said, err)
	}
	if !runs() {
		t.Error("PostgreSQL was taken from the up that runs")
	}
}

func TestAFileThatIsNoCheckpointIsRefused(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	for _, text := range []string{"garbage", (verify.Checkpoint{LogID: "..", Epoch: 1, Size: 1}).Text()} {
		h.must(os.WriteFile(h.file(), []byte(text), 0o600))
		h.refuses("delete the file")
	}
}

func TestADatabaseThatGoesBackUnderServeEndsIt(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.grow(10)
	c := h.open(h.cfg.Home)
	defer c.store.Close()
	w := c.witness
	w.interval = 10 * time.Millisecond
	done := make(chan error, 1)
	go func() { done <- w.run(t.Context()) }()
	eventually(t, 30*time.Second, "the checkpoint is kept", func() error { _, err := os.Stat(h.file()); return err })
	h.restore(5)
	if err := <-done; exitCode(err) != exitRefused || !isConflict(err) {
		t.Errorf("got %v, want it to refuse", err)
	}
}

func isConflict(err error) bool {
	_, ok := errors.AsType[*eventstore.HeadConflictError](err)
	return ok
}

func TestALogThatWentBackUnderServeAndHasGrownAgainIsNotKept(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.grow(5)
	lost := h.grow(5)
	c := h.open(h.cfg.Home)
	defer c.store.Close()
	h.must(c.witness.keep(t.Context()))
	h.restore(5)
	if signed := h.grow(20); signed.Epoch != lost.Epoch || signed.Size <= lost.Size {
		t.Fatalf("signed %+v, the test does not test it", signed)
	}
	if err := c.witness.keep(t.Context()); exitCode(err) != exitRefused || !isConflict(err) {
		t.Errorf("got %v, want it to refuse", err)
	}
	if kept, err := os.ReadFile(h.file()); err != nil || string(kept) != lost.Checkpoint {
		t.Errorf("the file has %s, %v, want what is lost: %s", kept, err, lost.Checkpoint)
	}
}

// The standby's head can be older than what was kept, though it has the events.
func TestALogThatLacksOnlyItsNewestHeadGoesOn(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.grow(5)
	newest := h.grow(5)
	c := h.open(h.cfg.Home)
	defer c.store.Close()
	h.must(c.witness.keep(t.Context()))
	h.exec(fmt.Sprintf("ALTER TABLE pipeops.tree_heads DISABLE TRIGGER USER; DELETE FROM pipeops.tree_heads WHERE size = %d", newest.Size))
	h.must(c.witness.keep(t.Context()))
	if kept, err := os.ReadFile(h.file()); err != nil || string(kept) != newest.Checkpoint {
		t.Errorf("the file has %s, %v, want %s", kept, err, newest.Checkpoint)
	}
}

func TestOnlyALogThatIsAnotherIsSaidToBe(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.grow(5)
	h.must(h.serves())
	c := h.open(h.cfg.Home)
	defer c.store.Close()
	tell := func(ctx context.Context, why string) {
		t.Helper()
		err := c.witness.check(ctx)
		if err == nil || exitCode(err) != exitFailure || !strings.HasPrefix(err.Error(), "compare the log with "+h.file()) {
			t.Errorf("%s: %v", why, err)
		}
	}
	ctx, stop := context.WithCancelCause(t.Context())
	stop(nil)
	tell(ctx, "ended by Ctrl-C")
	c.store.Close()
	tell(t.Context(), "without a database")
	h.must(os.Remove(h.file()))
	h.must(os.Mkdir(h.file(), 0o700))
	tell(t.Context(), "the file can't be read")
}
