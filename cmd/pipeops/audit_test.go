package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/testenv"
)

// office is a control plane in this process, for the commands of auditors.
type office struct {
	t     *testing.T
	core  *core
	owner *pgx.Conn
	dir   string
}

// newOffice sets the environment that commands find it by, so that its tests run one after the other.
func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{t: t, dir: t.TempDir()}
	url, log := testenv.Postgres(t), slog.New(slog.DiscardHandler)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	o.must(err)
	cfg := config.Config{DatabaseURL: url, MigrateURL: url, Home: filepath.Join(o.dir, "home"), URL: "http://" + l.Addr().String()}
	o.core, err = openCore(t.Context(), cfg, log)
	o.must(err)
	t.Cleanup(o.core.store.Close)
	o.owner, err = pgx.Connect(t.Context(), url)
	o.must(err)
	t.Cleanup(func() { _ = o.owner.Close(context.Background()) })
	token, _, err := o.core.tokens.Create(t.Context(), "laptop")
	o.must(err)
	ctx, stop := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	b := bus.NewInProcess(bus.Config{Log: log})
	go func() { done <- serve(ctx, cfg, o.core, b, l, log) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		stop(nil)
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		b.Close()
	})
	t.Setenv("PIPEOPS_URL", cfg.URL)
	t.Setenv("PIPEOPS_TOKEN", token)
	t.Setenv("PIPEOPS_HOME", cfg.Home)
	t.Setenv("DATABASE_URL", url)
	t.Setenv("PIPEOPS_MIGRATE_URL", "")
	return o
}

func (o *office) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

// try runs a command and gives what it printed, its error and its exit code.
func (o *office) try(args ...string) (stdout string, code int, err error) {
	o.t.Helper()
	var out bytes.Buffer
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	if err = cmd.ExecuteContext(o.t.Context()); err != nil {
		code = exitCode(err)
	}
	return out.String(), code, err
}

func (o *office) run(args ...string) string {
	o.t.Helper()
	out, code, err := o.try(args...)
	if err != nil {
		o.t.Fatalf("pipeops %s: exit code %d, %v", strings.Join(args, " "), code, err)
	}
	return out
}

// fails wants an exit code, and a message that says so.
func (o *office) fails(code int, says string, args ...string) {
	o.t.Helper()
	if out, got, err := o.try(args...); got != code || !strings.Contains(fmt.Sprint(err), says) {
		o.t.Errorf("pipeops %s: exit code %d, %v, want %d, %q\n%s", strings.Join(args, " "), got, err, code, says, out)
	}
}

func (o *office) exec(statement string) {
	o.t.Helper()
	_, err := o.owner.Exec(o.t.Context(), statement)
	o.must(err)
}

const person = "Ada Lovelace"

// push records one by Ada, with its raw delivery.
func (o *office) push(project domain.ProjectID, n int) {
	o.t.Helper()
	id := fmt.Sprint("delivery-", n)
	subject := o.core.keys.Actor("github", "ada")
	text := domain.Personal{Text: person, Subject: subject}
	keyID, sealed, err := o.core.deliveries.Seal(id, []byte(person))
	o.must(err)
	_, err = o.core.commands.Receive(o.t.Context(), domain.ReceivePush{
		Push: domain.PushID(newID("psh")), Project: project, Source: "github", Delivery: id, Kind: "push", Ref: "refs/heads/main",
		Commit: fmt.Sprintf("%040x", n), Body: id, Pusher: text, Author: text, Message: text,
	}, commands.Meta{CommandID: id, Actor: subject, At: time.Now(), Project: project},
		commands.WithAttachment(eventstore.Attachment{ID: id, ProjectID: project, ContentType: "application/json", KeyID: keyID, Sealed: sealed}))
	o.must(err)
}

func (o *office) project(name string) domain.ProjectID {
	o.t.Helper()
	var p project
	o.must(json.Unmarshal([]byte(o.run("project", "create", name, "--registry", "reg.example/x", "--json")), &p))
	return domain.ProjectID(p.ID)
}

func TestAcceptance24_AuditorsFindWhoDidWhatAndProveIt(t *testing.T) {
	o := newOffice(t)
	shop := o.project("shop")
	o.project("blog")
	for n := range 5 {
		o.push(shop, n)
	}
	t.Run("log", func(*testing.T) {
		out := o.run("audit", "log")
		for _, want := range []string{"laptop (token ", "project created", "  shop  ", "policy", "build requested"} {
			if !strings.Contains(out, want) {
				t.Errorf("want %q in\n%s", want, out)
			}
		}
		if out := o.run("audit", "log", "--project", "blog", "--type", "ProjectCreated,PushReceived", "--since", "1h"); strings.Count(out, "\n") != 1 || !strings.Contains(out, "blog") {
			t.Errorf("of one project and type:\n%s", out)
		}
		var line domain.Line
		o.must(json.Unmarshal([]byte(o.run("audit", "log", "--type", "ProjectCreated", "--project", "shop", "--json")), &line))
		if line.Project != string(shop) || !strings.HasPrefix(line.Actor, "token:") {
			t.Errorf("got %+v", line)
		}
		if out := o.run("audit", "log", "--actor", line.Actor, "--project", "shop"); strings.Contains(out, "policy") {
			t.Errorf("of one actor:\n%s", out)
		}
		o.fails(exitUsage, "--since", "audit", "log", "--since", "yesterday")
		o.fails(exitRefused, "no project", "audit", "log", "--project", "none")
		o.fails(exitRefused, "no such type", "audit", "log", "--type", "None")
	})
	good := filepath.Join(o.dir, "good")
	t.Run("export and verify", func(t *testing.T) {
		o.run("audit", "export", "--out", good)
		if out := o.run("audit", "verify", good); !strings.Contains(out, "good: ") || !strings.Contains(out, "without a gap") {
			t.Errorf("got %s", out)
		}
		o.fails(exitUsage, "there already", "audit", "export", "--out", good)
		o.fails(exitFailure, "read the export", "audit", "verify", o.dir)
		t.Setenv("PIPEOPS_URL", "http://127.0.0.1:1") // nothing is asked of anybody
		var verdict struct {
			OK     bool
			Events int
		}
		o.must(json.Unmarshal([]byte(o.run("audit", "verify", good, "--json")), &verdict))
		if !verdict.OK || verdict.Events < 20 {
			t.Errorf("got %+v", verdict)
		}
	})
	t.Run("a flipped byte", func(*testing.T) {
		bad := filepath.Join(o.dir, "bad")
		o.must(os.CopyFS(bad, os.DirFS(good)))
		file := filepath.Join(bad, "events.jsonl")
		text, err := os.ReadFile(file)
		o.must(err)
		lines := bytes.SplitAfter(text, []byte("\n"))
		lines[6][len(lines[6])-5] ^= 1
		o.must(os.WriteFile(file, bytes.Join(lines, nil), 0o600))
		o.fails(exitVerdict, "position 7", "audit", "verify", bad)
		out, _, _ := o.try("audit", "verify", bad, "--json")
		if !strings.Contains(out, `"ok": false`) || !strings.Contains(out, `"position": 7`) {
			t.Errorf("got %s", out)
		}
	})
	t.Run("a project's part", func(*testing.T) {
		part := filepath.Join(o.dir, "part")
		o.run("audit", "export", "--out", part, "--project", "shop")
		if out := o.run("audit", "verify", part); !strings.Contains(out, string(shop)) {
			t.Errorf("got %s", out)
		}
		o.fails(exitRefused, "no project", "audit", "export", "--out", part+"2", "--project", "none")
		if _, err := os.Stat(part + "2"); err == nil {
			t.Error("a half export is left")
		}
	})
	t.Run("a project's part and what was kept", func(*testing.T) { o.keptAndPart(shop) })
	t.Run("a project's part of a log with many checkpoints", func(t *testing.T) { o.manyCheckpoints(t, shop) })
	t.Run("checkpoint", func(*testing.T) {
		kept := filepath.Join(o.dir, "kept")
		o.run("audit", "checkpoint", "--now", "--file", kept)
		o.push(shop, 100)
		if out := o.run("audit", "checkpoint", "--now", "--file", kept); !strings.HasPrefix(out, "pipeops.log/") {
			t.Errorf("got %s", out)
		}
		o.run("audit", "verify", good, "--key", o.file("key", o.run("audit", "key")))
		o.fails(exitVerdict, "missing", "audit", "verify", good, "--checkpoint", kept) // it is older than what was kept
		var got []byte
		witness := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got, _ = io.ReadAll(r.Body) }))
		defer witness.Close()
		o.run("audit", "checkpoint", "--post", witness.URL)
		if !bytes.HasPrefix(got, []byte("old 0\n\npipeops.log/")) {
			t.Errorf("posted %q", got)
		}
		o.fails(exitUsage, "--post", "audit", "checkpoint", "--post", "witness.example")
		o.file("kept", "garbage")
		o.fails(exitRefused, "no checkpoint", "audit", "checkpoint", "--file", kept)
	})
	t.Run("a new key", func(*testing.T) { o.rotate(good) })
	t.Run("erase", func(*testing.T) { o.erase(good) })
	t.Run("fork", func(*testing.T) { o.fork() })
}

// keptAndPart holds a tenant's part against checkpoints from before, from after, and from another log.
func (o *office) keptAndPart(shop domain.ProjectID) {
	o.t.Helper()
	earlier, later := filepath.Join(o.dir, "earlier"), filepath.Join(o.dir, "later")
	o.run("audit", "checkpoint", "--now", "--file", earlier)
	o.push(shop, 50)
	part, again := filepath.Join(o.dir, "part-later"), filepath.Join(o.dir, "part-again")
	o.run("audit", "export", "--out", part, "--project", "shop")
	o.run("audit", "verify", part, "--checkpoint", earlier)
	o.push(shop, 51)
	o.run("audit", "checkpoint", "--now", "--file", later)
	o.fails(exitRefused, "not comparable", "audit", "verify", part, "--checkpoint", later)
	out, _, _ := o.try("audit", "verify", part, "--checkpoint", later, "--json")
	if !strings.Contains(out, `"notComparable": true`) || !strings.Contains(out, "--checkpoint FILE") {
		o.t.Errorf("got %s", out)
	}
	o.push(shop, 52)
	o.run("audit", "export", "--out", again, "--project", "shop", "--checkpoint", later)
	o.run("audit", "verify", again, "--checkpoint", later, "--checkpoint", earlier)
	proofs, err := filepath.Glob(filepath.Join(again, "consistency", "*"))
	o.must(err)
	text, err := os.ReadFile(earlier)
	o.must(err)
	size := strings.Split(string(text), "\n")[1]
	o.must(os.Remove(filepath.Join(again, "consistency", size)))
	o.fails(exitVerdict, "consistency/"+size+" is missing", "audit", "verify", again) // its own checkpoint needs it
	if len(proofs) < 2 {
		o.t.Errorf("proofs: %v", proofs)
	}
	o.fails(exitUsage, "--project", "audit", "export", "--out", again+"2", "--checkpoint", later)
	o.fails(exitUsage, "--checkpoint", "audit", "export", "--out", again+"2", "--project", "shop", "--checkpoint", later+"2")
	o.fails(exitRefused, "no checkpoint", "audit", "export", "--out", again+"2", "--project", "shop", "--checkpoint", o.file("garbage", "garbage"))
}

// manyCheckpoints exports as where the server picks few of its checkpoints: here only the newest.
func (o *office) manyCheckpoints(t *testing.T, shop domain.ProjectID) {
	kept, without, with := filepath.Join(o.dir, "seldom"), filepath.Join(o.dir, "without"), filepath.Join(o.dir, "with")
	o.run("audit", "checkpoint", "--now", "--file", kept)
	o.push(shop, 60)
	server, err := url.Parse(os.Getenv("PIPEOPS_URL"))
	o.must(err)
	proxy := httputil.NewSingleHostReverseProxy(server)
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.Request.URL.Path != "/audit/checkpoints" {
			return nil
		}
		text, err := io.ReadAll(r.Body)
		lines := bytes.SplitAfter(bytes.TrimSpace(text), []byte("\n"))
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(lines[len(lines)-1])), -1
		r.Header.Del("Content-Length")
		return err
	}
	front := httptest.NewServer(proxy)
	defer front.Close()
	t.Setenv("PIPEOPS_URL", front.URL)
	o.run("audit", "export", "--out", without, "--project", "shop")
	o.run("audit", "verify", without)
	o.fails(exitRefused, "--checkpoint FILE", "audit", "verify", without, "--checkpoint", kept)
	o.run("audit", "export", "--out", with, "--project", "shop", "--checkpoint", kept)
	o.run("audit", "verify", with, "--checkpoint", kept)
}

func (o *office) file(name, text string) string {
	o.t.Helper()
	file := filepath.Join(o.dir, name)
	o.must(os.WriteFile(file, []byte(text), 0o600))
	return file
}

// rotate gives checkpoints a new key: what was signed stays good, and who has only the old key hears of it.
func (o *office) rotate(before string) {
	o.t.Helper()
	old := o.file("old.pub", o.run("audit", "key"))
	o.fails(exitUsage, "--yes", "audit", "key", "rotate")
	if out := o.run("audit", "key", "rotate", "--yes"); !strings.Contains(out, "tree-heads/2") {
		o.t.Errorf("got %s", out)
	}
	o.project("newer")
	o.run("audit", "checkpoint", "--now")
	all := o.run("audit", "key")
	if strings.Count(all, "\n") != 2 {
		o.t.Errorf("keys: %s", all)
	}
	after, both := filepath.Join(o.dir, "rotated"), o.file("both.pub", all)
	o.run("audit", "export", "--out", after)
	o.run("audit", "verify", after, "--key", both)
	o.run("audit", "verify", before, "--key", both)
	o.run("audit", "verify", before, "--key", old)
	o.fails(exitVerdict, "signature is not good", "audit", "verify", after, "--key", old)
	o.refuseToRecord("CheckpointKeyCreated")
	o.fails(exitFailure, "key tree-heads/3 was made and signs from now on, but is not on record: ", "audit", "key", "rotate", "--yes")
	o.exec(`DROP TRIGGER no ON pipeops.events; DROP FUNCTION public.no`)
}

// erase forgets Ada: nothing tells her name any more, and what was proven stays so.
func (o *office) erase(before string) {
	o.t.Helper()
	pusher := func() string {
		return o.run("why", "shop", "production", "--json") + o.graphql(`{ pushes(project: "shop", first: 1) { pusher author message } }`)
	}
	if text := pusher(); !strings.Contains(text, person) {
		o.t.Fatalf("before, the name is told: %s", text)
	}
	o.nowhere("before")
	o.fails(exitUsage, "--reason", "audit", "erase", "github/ada")
	o.fails(exitRefused, "nothing is kept", "audit", "erase", "act_nobody", "--reason", "r")
	out := o.run("audit", "erase", "github/ada", "--reason", "request 4711")
	for _, want := range []string{"1 key(s) destroyed", "10 raw deliver(ies) deleted", "backups made from 20"} {
		if !strings.Contains(out, want) {
			o.t.Errorf("want %q in %s", want, out)
		}
	}
	if text := pusher(); strings.Contains(text, person) || !strings.Contains(text, "(erased)") {
		o.t.Errorf("after, the name is told: %s", text)
	}
	o.nowhere("after")
	if log := o.run("audit", "log", "--type", "SubjectErased"); !strings.Contains(log, "request 4711") || !strings.Contains(log, "laptop") {
		o.t.Errorf("the log says %s", log)
	}
	after := filepath.Join(o.dir, "after")
	o.run("audit", "export", "--out", after)
	o.run("audit", "verify", after)
	o.run("audit", "verify", before)
}

func (o *office) graphql(query string) string {
	o.t.Helper()
	c, err := newClient()
	o.must(err)
	var out json.RawMessage
	o.must(c.do(o.t.Context(), query, nil, &out))
	return string(out)
}

// nowhere sees to it that no table holds the name in plain, the read models neither.
func (o *office) nowhere(when string) {
	o.t.Helper()
	rows, err := o.owner.Query(o.t.Context(), `SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables
		WHERE schemaname IN ('pipeops', 'projections')`)
	o.must(err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	o.must(err)
	if len(tables) < 15 {
		o.t.Errorf("%d tables", len(tables))
	}
	for _, table := range tables {
		var found int
		o.must(o.owner.QueryRow(o.t.Context(), fmt.Sprintf(`SELECT count(*) FROM %s AS r
			WHERE r::text LIKE '%%Lovelace%%' OR r::text LIKE '%%' || encode('Lovelace', 'hex') || '%%'`, table)).Scan(&found)) //nolint:gosec // names of tables
		if found > 0 {
			o.t.Errorf("%s: %d rows of %s tell the name", when, found, table)
		}
	}
}

// fork loses the end of the log, as a restore does.
func (o *office) fork() {
	o.t.Helper()
	kept := filepath.Join(o.dir, "before-the-restore")
	o.run("audit", "checkpoint", "--now", "--file", kept)
	var size int64
	o.must(o.owner.QueryRow(o.t.Context(), "SELECT max(size) FROM pipeops.tree_heads").Scan(&size))
	o.exec(fmt.Sprintf(`ALTER TABLE pipeops.events DISABLE TRIGGER USER; DELETE FROM pipeops.events WHERE position > %d;
		ALTER TABLE pipeops.events ENABLE TRIGGER USER`, size-2))
	o.fails(exitRefused, "pipeops audit fork", "audit", "checkpoint", "--now")
	o.fails(exitUsage, "--yes", "audit", "fork")
	if out := o.run("audit", "fork", "--yes"); out != fmt.Sprintf("log epoch 2 begins at position %d\n", size-1) {
		o.t.Errorf("got %s", out)
	}
	o.run("audit", "checkpoint", "--now")
	o.fails(exitRefused, "a restore was declared", "audit", "checkpoint", "--file", kept)
	o.fails(exitRefused, "a restore was declared", "audit", "export", "--out", filepath.Join(o.dir, "forked-part"), "--project", "shop", "--checkpoint", kept)
	forked := filepath.Join(o.dir, "forked")
	o.run("audit", "export", "--out", forked)
	out := o.run("audit", "verify", forked, "--checkpoint", kept)
	for _, want := range []string{"fork:        a restore was declared", "had seen 2 events more"} {
		if !strings.Contains(out, want) {
			o.t.Errorf("want %q in %s", want, out)
		}
	}
}
