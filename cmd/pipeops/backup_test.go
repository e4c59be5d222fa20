package main

import (
	"context"
	"crypto/sha1" //nolint:gosec // as git names commits
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/local"
	"github.com/pipeops/pipeops/internal/local/registry"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/testenv"
)

// site is an installation's database and home, with a `serve` of the built binary, and without workers.
type site struct {
	*system

	server *testenv.Server
	home   string
	serve  *process
	core   *core // beside serve, as another process of the same installation has it
}

// newSite opens one; a database and a home that are restored are taken as they are.
// What env says counts more than what it would have else.
func newSite(t *testing.T, server *testenv.Server, home, token string, env ...string) *site {
	t.Helper()
	s := &site{system: &system{t: t, dir: t.TempDir()}, server: server, home: home}
	address := freeAddress(t)
	s.env = append(os.Environ(), "DATABASE_URL="+server.URL, "PIPEOPS_MIGRATE_URL=", "AMQP_URL="+testenv.AMQP(t), "REGISTRY=reg.example/x",
		"PIPEOPS_HOME="+home, "PIPEOPS_LISTEN="+address)
	s.env = append(s.env, env...)
	s.run("migrate")
	if token == "" {
		token = strings.TrimSpace(s.run("token", "create", "laptop"))
	}
	s.clients = []*client{{url: "http://" + address, token: token}}
	s.serve = s.start("serve", home, []string{"serve"})
	s.ready()
	var err error
	s.core, err = openCore(t.Context(), config.Config{DatabaseURL: server.URL, MigrateURL: server.URL, Home: home}, slog.New(slog.DiscardHandler))
	s.must(err)
	t.Cleanup(s.core.store.Close)
	return s
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// stop ends serve, and waits for it.
func (s *site) stop() {
	s.serve.signal(os.Interrupt)
	<-s.serve.done
}

func (s *site) head() domain.Cursor {
	s.t.Helper()
	head, err := s.core.store.Head(s.t.Context())
	s.must(err)
	return head
}

// webhook records a push that came with a raw delivery and tells of a person, and gives the id of its delivery.
func (s *site) webhook(project domain.ProjectID, delivery string) {
	s.t.Helper()
	subject := s.core.keys.Actor("github", "ada")
	text := domain.Personal{Text: person, Subject: subject}
	keyID, sealed, err := s.core.deliveries.Seal(delivery, []byte(person))
	s.must(err)
	_, err = s.core.commands.Receive(s.t.Context(), domain.ReceivePush{
		Push: domain.PushID(newID("psh")), Project: project, Source: "github", Delivery: delivery, Kind: "push", Ref: "refs/heads/main",
		Commit: fmt.Sprintf("%x", sha1.Sum([]byte(delivery))), Body: delivery, Pusher: text, Author: text, Message: text,
	}, commands.Meta{CommandID: delivery, Actor: subject, At: time.Now(), Project: project},
		commands.WithAttachment(eventstore.Attachment{ID: delivery, ProjectID: project, ContentType: "application/json", KeyID: keyID, Sealed: sealed}))
	s.must(err)
}

// followed waits until the policies have answered so many pushes, each with one build.
func (s *site) followed(pushes int) {
	s.t.Helper()
	builds := func() int {
		return len(storetest.Collect(s.t, s.core.store.Read(s.t.Context(), eventstore.Query{Types: []string{"BuildRequested"}})))
	}
	eventually(s.t, 30*time.Second, "the policies follow", func() error {
		if n := builds(); n != pushes {
			return fmt.Errorf("%d builds for %d pushes", n, pushes)
		}
		return nil
	})
}

// estate is what a site has that a backup must bring back.
type estate struct {
	project domain.ProjectID // pushed to the built-in git remote
	hosted  domain.ProjectID // of a git host that sends webhooks
	work    string           // work tree of the first
	commit  string
	image   string // reference by digest, in the embedded registry
	pushes  int
}

const (
	keptSecret = "hunter2"
	keptOutput = "step 1: hello\n"
	keptPush   = "delivery-1"
)

// fill makes one of everything that invariant 1 names.
func (s *site) fill() (e estate) {
	s.t.Helper()
	ctx := s.t.Context()
	create := func(name string) domain.ProjectID {
		var p project
		s.must(json.Unmarshal([]byte(s.run("project", "create", name, "--json")), &p))
		return domain.ProjectID(p.ID)
	}
	e.project, e.hosted, e.work = create("shop"), create("blog"), filepath.Join(s.dir, "work")
	s.webhook(e.hosted, keptPush)
	e.commit = s.gitPush(e.work, "shop")
	e.pushes = 2
	s.followed(e.pushes)
	s.must(s.core.secrets.Put(ctx, e.project, "git-credential", 1, []byte(keptSecret)))
	s.must(s.core.logs.Append(ctx, "bld_1.1", "build", 0, []byte(keptOutput)))
	_, err := s.core.claims.Beat(ctx, records.Beat{Worker: "wrk_1", Incarnation: "inc_1", Class: "build", Slots: 2})
	s.must(err)
	s.must(s.core.claims.Grant(ctx, "bld_1.1", "wrk_1", "inc_1"))
	// Enough for tiles of hashes and blocks of the index.
	_, err = s.core.store.Append(ctx, storetest.One("operation/backup", eventstore.AnyVersion, storetest.NewEvents(600, "Filler")...))
	s.must(err)
	s.run("audit", "checkpoint", "--now")
	withRegistry(s.t, s.home, func(address string) { e.image = pushImage(s.t, address+"/shop") })
	return e
}

// gitPush commits, pushes to the built-in remote, and gives the commit.
func (s *site) gitPush(work, project string) (commit string) {
	s.t.Helper()
	run := func(args ...string) string {
		s.t.Helper()
		out, err := git(s.t.Context(), work, nil, args...)
		s.must(err)
		return out
	}
	if _, err := os.Stat(work); err != nil {
		s.must(os.Mkdir(work, 0o755)) //nolint:gosec // git's processes enter
		run("init", "--quiet", "--initial-branch=main")
	}
	run("commit", "--quiet", "--allow-empty", "--message", "a change")
	eventually(s.t, 30*time.Second, "the git remote is led", func() error { return s.clients[0].gitPush(s.t.Context(), work, project) })
	return run("rev-parse", "HEAD")
}

// withRegistry runs the embedded registry of a home while f uses it.
func withRegistry(t testing.TB, home string, f func(address string)) {
	t.Helper()
	r, err := registry.New(t.Context(), local.Config{Home: home})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		stop(nil)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	f(r.Address)
}

func pushImage(t testing.TB, repository string) (byDigest string) {
	t.Helper()
	image, err := random.Image(1024, 2)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(repository+"@"+digest.String(), name.Insecure)
	if err == nil {
		err = remote.Write(ref, image, remote.WithContext(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// tables gives what each table holds, as a hash.
func (s *site) tables(server *testenv.Server) map[string]string {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), server.URL)
	s.must(err)
	defer conn.Close(context.Background()) //nolint:errcheck // nothing is in flight
	rows, err := conn.Query(s.t.Context(), `SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables
		WHERE schemaname IN ('pipeops', 'projections')`)
	s.must(err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	s.must(err)
	all := map[string]string{}
	for _, table := range names {
		var hash *string
		s.must(conn.QueryRow(s.t.Context(), fmt.Sprintf("SELECT md5(string_agg(r::text, ' ' ORDER BY r::text)) FROM %s AS r", table)).Scan(&hash)) //nolint:gosec // names of tables
		if hash != nil {
			all[table] = *hash
		}
	}
	return all
}

// keptTables hold what a backup must cover besides what can be made again from the log.
var keptTables = []string{
	"pipeops.build_log_chunks", "pipeops.claim_attempts", "pipeops.claims", "pipeops.cursors", "pipeops.deliveries", "pipeops.events",
	"pipeops.keys", "pipeops.log_epochs", "pipeops.log_identity", "pipeops.secrets", "pipeops.subject_keys", "pipeops.tokens",
	"pipeops.tree_heads", "pipeops.tree_tiles", "projections.checkpoints",
}

// saveHome and restoreHome are the commands of docs/operations.md.
func saveHome(t testing.TB, home, file string) {
	t.Helper()
	shell(t, `tar -C "$1" --exclude=./postgres --exclude=./rabbitmq --exclude=./buildkitd --exclude=./cluster --exclude=./workspaces -czf "$2" .`, home, file)
}

func restoreHome(t testing.TB, file string) (home string) {
	t.Helper()
	home = t.TempDir()
	shell(t, `tar -C "$1" -xzpf "$2"`, home, file)
	return home
}

func shell(t testing.TB, script string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", append([]string{"-euc", script, "sh"}, args...)...).CombinedOutput() //nolint:gosec // the test's own
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// restoreDump makes a new cluster of a dump, by the commands of docs/operations.md.
func restoreDump(t *testing.T, file string) *testenv.Server {
	t.Helper()
	fresh := testenv.NewServer(t)
	testenv.Tool(t, "psql", "--dbname="+fresh.URL, "--command=CREATE ROLE pipeops_app LOGIN")
	testenv.Tool(t, "pg_restore", "--no-owner", "--exit-on-error", "--dbname="+fresh.URL, file)
	return fresh
}

// holds checks everything of the estate, and that the site goes on from there.
func (s *site) holds(e estate) {
	s.t.Helper()
	ctx := s.t.Context()
	delivery, err := s.core.deliveries.Get(ctx, keptPush)
	if err != nil || string(delivery.Raw) != person {
		s.t.Errorf("the raw delivery: %q, %v", delivery.Raw, err)
	}
	secret, _, err := s.core.secrets.Get(ctx, e.project, "git-credential", 1)
	if err != nil || string(secret) != keptSecret {
		s.t.Errorf("the secret: %q, %v", secret, err)
	}
	var output strings.Builder
	for chunk, err := range s.core.logs.Read(ctx, "bld_1.1", "build", 0) {
		s.must(err)
		output.Write(chunk.Bytes)
	}
	if output.String() != keptOutput {
		s.t.Errorf("the build's output: %q", output.String())
	}
	if told := s.run("why", "blog", "production", "--json"); !strings.Contains(told, person) {
		s.t.Errorf("the person's fields don't open: %s", told)
	}
	silent, err := s.core.claims.Silent(ctx, []domain.AttemptID{"bld_1.1"}, 0)
	if err != nil || len(silent) != 1 {
		s.t.Errorf("the lease: %v, %v", silent, err)
	}
	clone := filepath.Join(s.t.TempDir(), "clone")
	_, err = git(ctx, filepath.Dir(clone), nil, "clone", "--quiet", filepath.Join(s.home, "git", string(e.project)+".git"), clone)
	if err == nil {
		_, err = git(ctx, clone, nil, "cat-file", "-e", e.commit)
	}
	s.must(err)
	withRegistry(s.t, s.home, func(string) {
		ref, err := name.NewDigest(e.image, name.Insecure)
		s.must(err)
		image, err := remote.Image(ref, remote.WithContext(ctx))
		if err == nil {
			_, err = image.Layers()
		}
		s.must(err)
	})
}

// goesOn has the site do more of everything: pushes are followed once, read models are those of a replay.
func (s *site) goesOn(e estate) {
	s.t.Helper()
	s.followed(e.pushes)
	s.webhook(e.hosted, "delivery-after-the-restore")
	s.gitPush(e.work, "shop")
	s.followed(e.pushes + 2)
	s.run("replay", "projections", "--verify") // else exit code 4
}

// after gives the positions that a subscriber with this cursor is given up to the head.
func (s *site) after(cursor domain.Cursor) (positions []int64, err error) {
	s.t.Helper()
	for e, err := range s.core.store.Read(s.t.Context(), eventstore.Query{After: cursor}) {
		if err != nil {
			return nil, err
		}
		positions = append(positions, e.Cursor.Position)
	}
	return positions, nil
}

// exactlyTheRest checks what a cursor from before the backup is given.
func (s *site) exactlyTheRest(cursor domain.Cursor) {
	s.t.Helper()
	positions, err := s.after(cursor)
	s.must(err)
	for i, p := range positions {
		if p != cursor.Position+int64(i)+1 {
			s.t.Fatalf("after %s, event %d is at position %d", cursor, i+1, p)
		}
	}
	if head := s.head(); int64(len(positions)) < head.Position-cursor.Position {
		s.t.Errorf("after %s: %d events, the head is %s", cursor, len(positions), head)
	}
}

// proven exports the log and verifies it against checkpoints that were kept elsewhere.
func (s *site) proven(checkpoints ...string) string {
	s.t.Helper()
	s.run("audit", "checkpoint", "--now")
	export := filepath.Join(s.t.TempDir(), "export")
	s.run("audit", "export", "--out", export)
	args := []string{"audit", "verify", export}
	for _, c := range checkpoints {
		args = append(args, "--checkpoint", c)
	}
	return s.run(args...)
}

// One origin is backed up twice: while it runs, after which it goes on (that tail is lost), and after it was stopped.
func TestAcceptance10_WhatABackupRestoresInANewClusterGoesOn(t *testing.T) {
	origin := newSite(t, testenv.NewServer(t), t.TempDir(), "")
	e := origin.fill()
	token := origin.clients[0].token
	seen := domain.Cursor{LogEpoch: 1, Position: 5} // a subscriber's
	kept := filepath.Join(origin.dir, "kept")
	origin.run("audit", "checkpoint", "--now", "--file", kept)

	copied := origin.server.Copy(t, "--wal-method=stream")
	hot := filepath.Join(origin.dir, "hot.tar.gz")
	saveHome(t, origin.home, hot)
	early := e

	origin.webhook(e.hosted, "delivery-in-the-tail")
	e.pushes++
	origin.followed(e.pushes)
	tail := filepath.Join(origin.dir, "tail")
	origin.run("audit", "checkpoint", "--now", "--file", tail)
	lost := origin.head()
	origin.stop()
	dump, cold := filepath.Join(origin.dir, "pipeops.dump"), filepath.Join(origin.dir, "cold.tar.gz")
	testenv.Tool(t, "pg_dump", "--format=custom", "--file="+dump, origin.server.URL)
	saveHome(t, origin.home, cold)
	tables := origin.tables(origin.server)
	for _, table := range keptTables {
		if tables[table] == "" {
			t.Errorf("%s is empty: the test does not test it", table)
		}
	}
	if unnamed := slices.DeleteFunc(slices.Sorted(maps.Keys(tables)), known); len(unnamed) > 0 {
		t.Errorf("tables %v: say in the test whether a backup must cover them, and in docs/operations.md", unnamed)
	}

	t.Run("a dump of one that was stopped loses nothing", func(t *testing.T) {
		fresh := restoreDump(t, dump)
		if diff := cmp.Diff(tables, origin.tables(fresh)); diff != "" {
			t.Errorf("rows of the origin - of the restored one +\n%s", diff)
		}
		s := newSite(t, fresh, restoreHome(t, cold), token)
		s.holds(e)
		s.goesOn(e)
		s.exactlyTheRest(seen)
		s.exactlyTheRest(lost)
		if said := s.proven(kept, tail); strings.Contains(said, "fork") {
			t.Errorf("a fork is told where none was: %s", said)
		}
	})
	t.Run("a base backup of one that went on says what is lost", func(t *testing.T) {
		home := restoreHome(t, hot)
		bare := &site{system: &system{t: t, env: append(os.Environ(), "DATABASE_URL="+copied.URL, "PIPEOPS_MIGRATE_URL=", "PIPEOPS_HOME="+home)}}
		if said := bare.run("audit", "fork", "--yes"); !strings.HasPrefix(said, "log epoch 2 ") {
			t.Errorf("fork says %s", said)
		}
		s := newSite(t, copied, home, token)
		s.holds(early)
		s.goesOn(early)
		s.exactlyTheRest(seen)
		var forked *eventstore.LogForkedError
		if _, err := s.after(lost); !errors.As(err, &forked) {
			t.Errorf("a subscriber that saw what is lost: got %v, want *LogForkedError", err)
		}
		if said := s.proven(kept, tail); !strings.Contains(said, "had seen") {
			t.Errorf("the verdict does not say that the checkpoint of the tail had seen more: %s", said)
		}
	})
}

// known says whether a table is one that a backup must cover, or one that can be made again: read models, the index of
// the log, and hints of running processes. A dump and a base backup hold those as well.
func known(table string) bool {
	again := []string{"pipeops.event_blocks", "pipeops.event_blocks_head", "pipeops.leaders", "pipeops.projection_uses", "pipeops.schema_versions"}
	return slices.Contains(keptTables, table) || slices.Contains(again, table) || strings.HasPrefix(table, "projections.")
}
