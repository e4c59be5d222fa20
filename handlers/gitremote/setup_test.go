package gitremote_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/handlers/gitremote"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

// TestMain is also the hook that git runs, as `pipeops hook <name>` is.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "hook" {
		for _, variable := range os.Environ() {
			if strings.Contains(strings.ToLower(variable), "authorization") {
				_, _ = os.Stdout.WriteString("a hook was told who authorised its push\n")
				os.Exit(1)
			}
		}
		os.Exit(gitremote.RunHook(os.Args[2], os.Stdin, os.Stdout, os.Getenv))
	}
	goleak.VerifyTestMain(m)
}

const project = domain.ProjectID("prj_hello")

// bundle is a control plane as far as the git remote needs it, with a project
// hello whose branch main is built, and a token.
type bundle struct {
	store      *eventstore.Store
	commands   *commands.Handler
	keys       *seal.Keyring
	subjects   *seal.Subjects
	deliveries *records.Deliveries
	receiver   *breakable
	config     gitremote.Config
	token      string
	actor      string
	url        string // "http://127.0.0.1:1234"
	remote     *gitremote.Remote
	stop       func()
}

func newID(prefix string) string { return prefix + "_" + uuid.Must(uuid.NewV7()).String() }

func setup(t *testing.T, change ...func(*gitremote.Config)) *bundle {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	app, err := migrations.Up(t.Context(), testenv.Postgres(t), slog.New(slog.DiscardHandler))
	must(t, err)
	b := &bundle{}
	b.store, err = eventstore.Open(t.Context(), eventstore.Config{URL: app, Log: log})
	must(t, err)
	t.Cleanup(b.store.Close)
	pool := b.store.Pool()
	master, err := seal.LoadMaster(filepath.Join(t.TempDir(), "master.key"))
	must(t, err)
	b.keys, err = seal.Open(t.Context(), master, records.NewKeys(pool))
	must(t, err)
	b.subjects = seal.NewSubjects(b.keys, records.NewSubjects(pool))
	b.deliveries = records.NewDeliveries(pool, b.keys)
	b.commands, err = commands.New(commands.Config{Store: b.store, Sealer: b.subjects, Log: log})
	must(t, err)
	tokens := records.NewTokens(pool, b.keys)
	secret, token, err := tokens.Create(t.Context(), "laptop")
	must(t, err)
	b.token, b.actor = secret, "tok_"+token.ID
	b.receiver = &breakable{Handler: b.commands}
	b.config = gitremote.Config{
		Root: filepath.Join(t.TempDir(), "git"), Store: b.store, Receiver: b.receiver, Projects: projects{b.commands}, Access: access{tokens},
		Leader: records.NewLeaders(pool, log), Seal: b.deliveries.Seal, Fingerprint: b.keys.Fingerprint, Subject: b.keys.Actor, NewID: newID, Log: log,
		HookProgram: os.Args[0], Every: time.Hour, // the tests reconcile when they want to
	}
	for _, f := range change {
		f(&b.config)
	}
	b.create(t, domain.CreateProject{
		ID: project, Name: "hello", Settings: domain.ProjectSettings{Branch: "main", Registry: "registry.test/acme"},
		Services:     []domain.NewService{{ID: "svc_hello", Name: "hello", Spec: domain.DefaultSpec()}},
		Environments: []domain.NewEnvironment{{ID: "env_production", Name: "production"}},
	})
	b.start(t)
	return b
}

func (b *bundle) create(t *testing.T, c domain.CreateProject) {
	t.Helper()
	_, err := b.commands.Execute(t.Context(), c, commands.Meta{CommandID: "create-" + string(c.ID), Actor: "act_test", At: time.Now(), Project: c.ID})
	must(t, err)
}

// start serves the repositories, as a process that was started again does, until the test or stop ends it.
func (b *bundle) start(t *testing.T) {
	t.Helper()
	remote, err := gitremote.New(b.config)
	must(t, err)
	server := httptest.NewServer(remote)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- remote.Run(ctx) }()
	stopped := false
	b.remote, b.url = remote, server.URL
	b.stop = func() {
		if !stopped {
			stopped = true
			cancel(nil)
			if err := <-ended; err != nil {
				t.Error(err)
			}
			server.Close()
		}
	}
	t.Cleanup(b.stop)
	waitFor(t, "the remote to lead", func() bool {
		res, err := http.Get(b.url + "/git/hello/info/refs?service=git-upload-pack")
		must(t, err)
		must(t, res.Body.Close())
		return res.StatusCode == http.StatusUnauthorized
	})
	http.DefaultClient.CloseIdleConnections()
}

// waitFor looks again and again until it is so.
func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !so(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// breakable is the real receiver behind a connection that can be cut.
type breakable struct {
	*commands.Handler
	down atomic.Bool
}

func (b *breakable) Receive(ctx context.Context, cmd domain.ReceivePush, m commands.Meta, opts ...commands.Option) (commands.Received, error) {
	if b.down.Load() {
		return commands.Received{}, errors.New("the connection to the database is cut")
	}
	return b.Handler.Receive(ctx, cmd, m, opts...)
}

// projects finds projects as serve does.
type projects struct{ commands *commands.Handler }

func (p projects) GitProject(ctx context.Context, nameOrID string) (gitremote.Project, error) {
	state, _, err := p.commands.Load(ctx, domain.CreateProject{Name: nameOrID, ID: domain.ProjectID(nameOrID)})
	if err != nil {
		return gitremote.Project{}, err
	}
	id := domain.ProjectID(nameOrID)
	if named := domain.Of[domain.ProjectName](state, domain.ProjectNameStream(nameOrID)); named.Project != "" {
		id = named.Project
	}
	if state, _, err = p.commands.Load(ctx, domain.ConfigureProject{ID: id}); err != nil {
		return gitremote.Project{}, err
	}
	found := domain.Of[domain.Project](state, domain.ProjectStream(id))
	return gitremote.Project{ID: found.ID, Name: found.Name, Branch: found.Settings.Branch}, nil
}

// access lets every good token do everything.
type access struct{ tokens *records.Tokens }

func (a access) MayPush(ctx context.Context, token string, _ domain.ProjectID) (string, error) {
	found, err := a.tokens.Verify(ctx, token)
	if errors.Is(err, records.ErrBadToken) {
		return "", nil
	}
	return "tok_" + found.ID, err
}

func (a access) MayFetch(ctx context.Context, token string, p domain.ProjectID) (string, error) {
	return a.MayPush(ctx, token, p)
}

// address is the remote's, with a token in it.
func (b *bundle) address(name, token string) string {
	return strings.Replace(b.url, "http://", "http://x:"+token+"@", 1) + "/git/" + name
}

// work is somebody's clone.
type work struct {
	t   *testing.T
	dir string
}

func newWork(t *testing.T) *work {
	t.Helper()
	w := &work{t, filepath.Join(t.TempDir(), "work")}
	must(t, os.MkdirAll(w.dir, 0o700))
	w.git("init", "--quiet", "--initial-branch=main")
	return w
}

// try runs git and gives all that it says.
func (w *work) try(args ...string) (string, error) {
	cmd := exec.CommandContext(w.t.Context(), "git", args...)
	cmd.Dir = w.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=Ada@Example.org", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=Ada@Example.org",
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (w *work) git(args ...string) string {
	w.t.Helper()
	out, err := w.try(args...)
	if err != nil {
		w.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// commit makes one and gives its hash.
func (w *work) commit(message string) string {
	w.t.Helper()
	w.git("commit", "--quiet", "--allow-empty", "-m", message)
	return w.git("rev-parse", "HEAD")
}

// recorded gives the events of pushes in order, with their personal fields opened.
func (b *bundle) recorded(t *testing.T) (events []domain.Event, envelopes []domain.Recorded) {
	t.Helper()
	for r, err := range b.store.Read(t.Context(), eventstore.Query{}) {
		must(t, err)
		if kind := r.Stream.Kind(); kind != "push" && kind != "ref" {
			continue
		}
		e, err := r.Decode()
		must(t, err)
		e, err = domain.Open(e, r.ID, func(subject, eventID, field, text string) (string, bool, error) {
			return b.subjects.OpenField(t.Context(), subject, eventID, field, text)
		})
		must(t, err)
		events, envelopes = append(events, e), append(envelopes, r)
	}
	return events, envelopes
}

// story words what was recorded: "received main abc", "ignored tag".
func (b *bundle) story(t *testing.T, names map[string]string) (lines []string) {
	t.Helper()
	events, _ := b.recorded(t)
	for _, e := range events {
		switch e := e.(type) {
		case domain.PushReceived:
			forced := ""
			if e.Forced {
				forced = ", forced"
			}
			lines = append(lines, "received "+e.Ref+" "+names[e.Before]+"→"+names[e.Commit]+forced)
		case domain.PushIgnored:
			lines = append(lines, "ignored "+e.Ref+" "+names[e.Commit]+": "+e.Reason)
		}
	}
	return lines
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
