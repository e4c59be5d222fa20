package replay_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/handlers/gitremote"
	"github.com/pipeops/pipeops/handlers/policies"
	"github.com/pipeops/pipeops/handlers/replay"
	"github.com/pipeops/pipeops/handlers/webhook"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
	"github.com/pipeops/pipeops/projections"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	project = domain.ProjectID("prj_hello")
	secret  = "it's a secret to everybody"
)

// world is a control plane with a project, a webhook and policies.
type world struct {
	t          *testing.T
	owner      *pgxpool.Pool
	store      *eventstore.Store
	commands   *commands.Handler
	keys       *seal.Keyring
	deliveries *records.Deliveries
	hooks      *webhook.Handler
	policies   *policies.Policies
	replays    *replay.Replays
	projector  *projections.Projector
	now        time.Time
}

// WebhookSecrets implements webhook.Secrets.
func (*world) WebhookSecrets(context.Context, domain.ProjectID, string) ([]webhook.Secret, error) {
	return []webhook.Secret{{Revision: 1, Value: []byte(secret)}}, nil
}

func newID(prefix string) string { return prefix + "_" + uuid.Must(uuid.NewV7()).String() }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	url := testenv.Postgres(t)
	app, err := migrations.Up(t.Context(), url, slog.New(slog.DiscardHandler))
	must(t, err)
	w := &world{t: t, now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	w.owner, err = pgxpool.New(t.Context(), url)
	must(t, err)
	t.Cleanup(w.owner.Close)
	w.store, err = eventstore.Open(t.Context(), eventstore.Config{URL: app, Log: log})
	must(t, err)
	t.Cleanup(w.store.Close)
	pool := w.store.Pool()
	master, err := seal.LoadMaster(filepath.Join(t.TempDir(), "master.key"))
	must(t, err)
	w.keys, err = seal.Open(t.Context(), master, records.NewKeys(pool))
	must(t, err)
	subjects := seal.NewSubjects(w.keys, records.NewSubjects(pool))
	w.deliveries = records.NewDeliveries(pool, w.keys)
	w.commands, err = commands.New(commands.Config{Store: w.store, Sealer: subjects, Log: log})
	must(t, err)
	leaders := records.NewLeaders(pool, log)
	w.projector, err = projections.New(projections.Config{Store: w.store, Opener: subjects.OpenField, Leader: leaders, Log: log})
	must(t, err)
	w.hooks, err = webhook.New(webhook.Config{Receiver: w.commands, Secrets: w, Seal: w.deliveries.Seal, Fingerprint: w.keys.Fingerprint, Subject: w.keys.Actor, NewID: newID, Log: log})
	must(t, err)
	now := func() time.Time { return w.now }
	w.policies = policies.New(policies.Config{Store: w.store, Commands: w.commands, Leader: leaders, NewID: newID, Now: now, Log: log})
	w.replays, err = replay.New(replay.Config{
		Store: w.store, Commands: w.commands, Projector: w.projector, Deliveries: w.deliveries, Opener: subjects.OpenField,
		Keyed: commands.Keyed{Subject: w.keys.Actor, Fingerprint: w.keys.Fingerprint}, NewID: newID, Now: now,
	})
	must(t, err)
	w.do(domain.CreateProject{
		ID: project, Name: "hello", Settings: domain.ProjectSettings{Branch: "master", Registry: "registry.test/acme"},
		Services:     []domain.NewService{{ID: "svc_hello", Name: "hello", Spec: domain.DefaultSpec()}},
		Environments: []domain.NewEnvironment{{ID: "env_production", Name: "production"}},
	})
	return w
}

func (w *world) do(cmd domain.Command) []domain.Recorded {
	w.t.Helper()
	result, err := w.commands.Execute(w.t.Context(), cmd, commands.Meta{CommandID: uuid.NewString(), Actor: "act_test", At: w.now, Project: project})
	must(w.t, err)
	return result.Events
}

// deliver sends a real delivery of GitHub's.
func (w *world) deliver(event, file string) domain.PushID {
	w.t.Helper()
	body, err := os.ReadFile(filepath.Join("..", "webhook", "testdata", "deliveries", "github", file))
	must(w.t, err)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	r := httptest.NewRequestWithContext(w.t.Context(), http.MethodPost, "/webhooks/github/"+string(project), bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-GitHub-Event", event)
	r.Header.Set("X-GitHub-Delivery", uuid.NewString())
	r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	answer := httptest.NewRecorder()
	w.hooks.ServeHTTP(answer, r)
	var got struct{ Push domain.PushID }
	if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil || got.Push == "" {
		w.t.Fatalf("%s: %s, %v", file, answer.Body, err)
	}
	return got.Push
}

// live lets the store, the policies and the read models work until all is answered.
func (w *world) live() {
	w.t.Helper()
	ctx, cancel := context.WithCancelCause(w.t.Context())
	done := make(chan error, 3)
	for _, run := range []func(context.Context) error{w.store.Run, w.policies.Run, w.projector.Run} {
		go func() { done <- run(ctx) }()
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		head, err := w.store.Head(w.t.Context())
		must(w.t, err)
		status, err := w.projector.Status(w.t.Context())
		must(w.t, err)
		behind, built := int64(0), true
		for _, s := range status {
			behind += s.Behind
			built = built && s.Unready(projections.Late) == ""
		}
		answered, err := w.store.LoadCursor(w.t.Context(), policies.CursorName)
		must(w.t, err)
		var last int64
		must(w.t, w.owner.QueryRow(w.t.Context(), "SELECT coalesce(max(position), 0) FROM pipeops.events WHERE type = ANY ($1)", domain.Followed()).Scan(&last))
		if behind == 0 && built && answered.Position >= last {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("at %s read models are %d behind, policies at %s", head, behind, answered)
		}
		<-time.After(5 * time.Millisecond)
	}
	cancel(nil)
	for range 3 {
		must(w.t, <-done)
	}
}

// build lets the newest build succeed.
func (w *world) build() {
	w.t.Helper()
	var id string
	must(w.t, w.owner.QueryRow(w.t.Context(), "SELECT substr(stream, 7) FROM pipeops.events WHERE type = 'BuildRequested' ORDER BY position DESC LIMIT 1").Scan(&id))
	w.do(domain.ClaimBuild{Build: domain.BuildID(id), Worker: "wrk_1", Incarnation: "inc_1"})
	for i, item := range []domain.Event{
		domain.ImagePushed{Reference: "registry.test/acme/hello@sha256:1", Digest: "sha256:1"},
		domain.ImageTagged{Reference: "registry.test/acme/hello:1", Digest: "sha256:1"},
		domain.BuildSucceeded{Digest: "sha256:1"},
	} {
		_, err := w.commands.Report(w.t.Context(), domain.NewAttemptID(id, 1), int64(i+1), []commands.Item{{Event: item, At: w.now}}, "wrk_1")
		must(w.t, err)
	}
}

// tables sums up every table there is.
func (w *world) tables() map[string]string {
	w.t.Helper()
	rows, err := w.owner.Query(w.t.Context(), `SELECT schemaname||'.'||tablename FROM pg_tables WHERE schemaname IN ('pipeops', 'projections')`)
	must(w.t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(w.t, err)
	out := map[string]string{}
	for _, name := range names {
		var sum string
		must(w.t, w.owner.QueryRow(w.t.Context(), "SELECT count(*)||' '||coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '') FROM "+name+" t").Scan(&sum))
		out[name] = sum
	}
	return out
}

func (w *world) count(event string) (n int) {
	w.t.Helper()
	must(w.t, w.owner.QueryRow(w.t.Context(), "SELECT count(*) FROM pipeops.events WHERE type = $1", event).Scan(&n))
	return n
}

func TestAReplayChangesNothingButItsOwnRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pushed, tagged := w.deliver("push", "push.json"), w.deliver("push", "push_tag.json")
	again := w.deliver("push", "push.json") // a duplicate
	opened := w.deliver("pull_request", "pr_opened.json")
	w.live()
	w.build()
	w.live()
	if w.count("BuildRequested") != 1 || w.count("DeploymentRequested") != 1 {
		t.Fatal("the push was not built and deployed")
	}
	run := replay.Run{Actor: "act_test"}
	had := w.tables()
	for n, again := range []func() (replay.Result, error){
		func() (replay.Result, error) { return w.replays.Delivery(t.Context(), run, pushed) },
		func() (replay.Result, error) { return w.replays.Delivery(t.Context(), run, tagged) },
		func() (replay.Result, error) { return w.replays.Delivery(t.Context(), run, again) },
		func() (replay.Result, error) { return w.replays.Delivery(t.Context(), run, opened) },
		func() (replay.Result, error) { return w.replays.Policy(t.Context(), run, domain.Cursor{}, "") },
		func() (replay.Result, error) { return w.replays.Policy(t.Context(), run, domain.Cursor{}, project) },
		func() (replay.Result, error) { return w.replays.Projections(t.Context(), run, nil, true) },
	} {
		got, err := again()
		must(t, err)
		if got.Different != 0 || len(got.Counts) == 0 || got.Cursor.Position == 0 {
			t.Errorf("replay %d: %+v", n, got)
		}
		if runs := w.count("ReplayRun"); runs != n+1 {
			t.Errorf("replay %d: %d are recorded", n, runs)
		}
	}
	has := w.tables()
	delete(had, "pipeops.events")
	delete(has, "pipeops.events")
	if diff := cmp.Diff(had, has); diff != "" {
		t.Errorf("a replay changed tables (-before +after):\n%s", diff)
	}
	var others int
	must(t, w.owner.QueryRow(t.Context(), `SELECT count(*) FROM pipeops.events WHERE type <> 'ReplayRun' AND position >
		(SELECT min(position) FROM pipeops.events WHERE type = 'ReplayRun')`).Scan(&others))
	if others != 0 {
		t.Errorf("replays led to %d events", others)
	}
	var unknown *replay.UnknownDeliveryError
	if _, err := w.replays.Delivery(t.Context(), run, "psh_nobody"); !errors.As(err, &unknown) {
		t.Errorf("got %v, want that nothing is kept of it", err)
	}
}

func TestAReplayTellsWhatThisVersionWouldDoOtherwise(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deliver("push", "push.json")
	w.live()
	run := replay.Run{Actor: "act_test"}
	// What another version recorded: a push that it took for a duplicate, and one that it built under another tag.
	body, err := os.ReadFile(filepath.Join("..", "webhook", "testdata", "deliveries", "github", "push_branch_create.json"))
	must(t, err)
	body = bytes.ReplaceAll(body, []byte("refs/heads/master"), []byte("refs/heads/other"))
	ignored := domain.PushIgnored{Push: "psh_ignored", Project: project, Source: "github", Delivery: "1", Kind: "push", Reason: "duplicate"}
	stream := domain.PushStream(project, "github", "1")
	keyID, sealed, err := w.deliveries.Seal("psh_ignored", body)
	must(t, err)
	_, err = w.store.Append(t.Context(), eventstore.Append{
		Writes:      []eventstore.Write{w.write(stream, domain.EventID(string(stream), 0), ignored)},
		Attachments: []eventstore.Attachment{{ID: "psh_ignored", EventID: domain.EventID(string(stream), 0), ProjectID: project, ContentType: "application/json", KeyID: keyID, Sealed: sealed}},
	})
	must(t, err)
	got, err := w.replays.Delivery(t.Context(), run, "psh_ignored")
	must(t, err)
	if got.Different == 0 || !strings.Contains(got.Differences[0].What, "PushIgnored") {
		t.Errorf("a delivery that would not be ignored as a duplicate: got %+v", got)
	}

	received := domain.PushReceived{Push: "psh_2", Project: project, Source: "github", Delivery: "2", Ref: "refs/heads/master", Branch: "master", Commit: strings.Repeat("a", 40)}
	event := uuid.NewString()
	from, err := w.store.LoadCursor(t.Context(), policies.CursorName)
	must(t, err)
	before, err := w.store.Append(t.Context(), eventstore.Append{Writes: []eventstore.Write{w.write(domain.PushStream(project, "github", "2"), event, received)}})
	must(t, err)
	requested := domain.BuildRequested{
		Build: "bld_2", Project: project, ProjectName: "hello", Push: "psh_2", Ref: received.Ref, Branch: "master", Commit: received.Commit,
		Services: []domain.ServiceID{"svc_hello"}, Plan: domain.BuildPlan{RootDir: ".", Dockerfile: "Dockerfile"}, Image: "registry.test/acme/hello", Tag: "latest", ConfigVersion: 3,
	}
	_, err = w.store.Append(t.Context(), eventstore.Append{
		Writes: []eventstore.Write{w.write(domain.BuildStream("bld_2"), domain.EventID(domain.Derive("policy", event), 0), requested)},
		Move:   &eventstore.CursorMove{Name: policies.CursorName, From: from, To: before.Last},
	})
	must(t, err)
	got, err = w.replays.Policy(t.Context(), run, domain.Cursor{}, "")
	must(t, err)
	want := []string{"BuildRequested.tag"}
	var what []string
	for _, d := range got.Differences {
		what = append(what, d.What)
	}
	if diff := cmp.Diff(want, what); diff != "" || got.Different != 1 {
		t.Errorf("a build under another tag (-want +got):\n%s%+v", diff, got)
	}
	if d := got.Differences[0]; d.Was != `"latest"` || d.Would != `"`+received.Commit+`"` {
		t.Errorf("got %+v", d)
	}
	after, err := w.replays.Policy(t.Context(), run, before.Last, "")
	must(t, err)
	if after.Different != 0 {
		t.Errorf("what comes after it: got %+v", after)
	}
}

// replayed gives the replays on record, oldest first.
func (w *world) replayed() (all []domain.ReplayRun) {
	w.t.Helper()
	for r, err := range w.store.Read(w.t.Context(), eventstore.Query{Types: []string{"ReplayRun"}}) {
		must(w.t, err)
		e, err := r.Decode()
		must(w.t, err)
		all = append(all, e.(domain.ReplayRun))
	}
	return all
}

// generation says how often a read model was replaced.
func (w *world) generation(name string) (n int) {
	w.t.Helper()
	must(w.t, w.owner.QueryRow(w.t.Context(), "SELECT generation FROM projections.checkpoints WHERE name ~ ('^' || $1 || '_v[0-9]+$')", name).Scan(&n))
	return n
}

func TestARebuildIsOnRecordWithItsChecksums(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deliver("push", "push.json")
	w.live()
	run := replay.Run{Actor: "act_test"}
	verified, err := w.replays.Projections(t.Context(), run, []string{"builds", "timeline"}, true)
	must(t, err)
	rebuilt, err := w.replays.Projections(t.Context(), run, []string{"builds", "timeline"}, false)
	must(t, err)
	for i, name := range []string{"builds", "timeline"} {
		was, is := verified.Projections[i], rebuilt.Projections[i]
		if is.Name != name || is.Version < 1 || is.Rows == 0 || len(is.Checksum) != 32 || is.InUse != is.Checksum || !is.Replaced || is.Cursor.Position == 0 {
			t.Errorf("got %+v", is)
		}
		is.Replaced = false
		if was != is {
			t.Errorf("verified %+v, rebuilt %+v", was, is)
		}
	}
	all := w.replayed()
	if diff := cmp.Diff(rebuilt.Projections, all[1].Projections); diff != "" || all[1].Ended != "" {
		t.Errorf("on record is %+v (-result +record):\n%s", all[1], diff)
	}
}

func TestAReplayThatIsCutOrFailsIsOnRecordWithWhatItHasDone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.deliver("push", "push.json")
	w.live()
	w.build()
	w.live()
	check := func(what string, err error, builds int, says string) domain.ReplayRun {
		t.Helper()
		all := w.replayed()
		if err == nil || len(all) == 0 {
			t.Fatalf("%s: got %v, on record is %+v", what, err, all)
		}
		last := all[len(all)-1]
		if !strings.Contains(last.Ended, says) || w.generation("builds") != builds || w.generation("timeline") != 0 {
			t.Errorf("%s: on record is %+v, builds were replaced %d times", what, last, w.generation("builds"))
		}
		return last
	}
	names := []string{"builds", "timeline"}
	onlyBuilds := func(what string, r domain.ReplayRun) {
		t.Helper()
		if len(r.Projections) != 1 || r.Projections[0].Name != "builds" || !r.Projections[0].Replaced || r.Projections[0].Checksum == "" || r.To.Position == 0 {
			t.Errorf("%s: on record is %+v, want that builds were replaced", what, r)
		}
	}
	ctx, leave := context.WithCancelCause(t.Context())
	_, err := w.replays.Projections(ctx, replay.Run{Actor: "act_test", Step: func(s replay.Step) {
		if s.Subject == "timeline" {
			leave(errors.New("gone"))
		}
	}}, names, false)
	onlyBuilds("cut", check("cut", err, 1, "cut at projection timeline: whoever wanted it left, or the server stopped"))

	ctx, leave = context.WithCancelCause(t.Context())
	_, err = w.replays.Policy(ctx, replay.Run{Actor: "act_test", Step: func(replay.Step) { leave(errors.New("gone")) }}, domain.Cursor{}, "")
	if r := check("policy", err, 1, "cut at policy after 1."); r.Kind != "policy" || len(r.Counts) == 0 || r.Counts[0].Count != 1 || r.To.Position == 0 {
		t.Errorf("on record is %+v, want the one decision that it got through with", r)
	}

	must(t, w.exec(`ALTER TABLE projections.timeline_v1 RENAME TO gone`))
	_, err = w.replays.Projections(t.Context(), replay.Run{Actor: "act_test"}, names, false)
	var ended *replay.EndedError
	if !errors.As(err, &ended) || ended.Number == "" || !strings.Contains(err.Error(), "timeline_v1") {
		t.Fatalf("got %v, want an *EndedError with a number and what led to it", err)
	}
	r := check("failed", err, 2, "failed at projection timeline: internal error "+ended.Number)
	onlyBuilds("failed", r)
	if strings.Contains(r.Ended, "timeline_v1") {
		t.Errorf("what led to it is on record: %s", r.Ended)
	}
	must(t, w.exec(`ALTER TABLE projections.gone RENAME TO timeline_v1`))

	ctx, leave = context.WithCancelCause(t.Context())
	leave(errors.New("gone"))
	_, err = w.replays.Delivery(ctx, replay.Run{Actor: "act_test"}, first)
	if r := check("delivery", err, 2, "cut at delivery: "); r.Kind != "delivery" || r.Subject != string(first) {
		t.Errorf("on record is %+v", r)
	}

	had := len(w.replayed())
	var unknown *projections.UnknownError
	if _, err := w.replays.Projections(t.Context(), replay.Run{Actor: "act_test"}, []string{"builds", "nothing"}, false); !errors.As(err, &unknown) {
		t.Errorf("got %v", err)
	}
	if has := len(w.replayed()); has != had || w.generation("builds") != 2 {
		t.Errorf("a name that nothing has: %d more are on record, builds were replaced %d times", has-had, w.generation("builds"))
	}
}

func (w *world) exec(statement string) error {
	_, err := w.owner.Exec(w.t.Context(), statement)
	return err
}

func TestAServerThatStopsWaitsUntilItsReplaysAreOnRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deliver("push", "push.json")
	w.live()
	ctx, stop := context.WithCancelCause(t.Context())
	begun, goOn := make(chan struct{}, 1), make(chan struct{})
	replayed := make(chan error, 1)
	go func() {
		_, err := w.replays.Projections(ctx, replay.Run{Actor: "act_test", Step: func(replay.Step) {
			select {
			case begun <- struct{}{}:
			default:
			}
			<-goOn
		}}, []string{"timeline"}, true)
		replayed <- err
	}()
	<-begun
	ended := make(chan error, 1)
	go func() { ended <- w.replays.Run(ctx) }()
	stop(errors.New("stopped"))
	close(goOn)
	must(t, <-ended)
	if n := w.count("ReplayRun"); n != 1 {
		t.Errorf("it ended with %d replays on record", n)
	}
	if err := <-replayed; err == nil {
		t.Error("the replay went on")
	}
}

func (w *world) write(stream domain.Stream, id string, e domain.Event) eventstore.Write {
	w.t.Helper()
	body, err := json.Marshal(e)
	must(w.t, err)
	return eventstore.Write{Stream: stream, Expected: 0, Events: []eventstore.NewEvent{{
		ID: id, Type: domain.TypeOf(e), SchemaVersion: 1, ProjectID: project, OccurredAt: w.now, Body: body,
	}}}
}

func TestAPushToOurOwnRemoteIsReadAgainFromItsReflog(t *testing.T) {
	t.Parallel()
	raw := "refs/heads/main " + strings.Repeat("0", 40) + " " + strings.Repeat("b", 40) + " act_1 <req_1> 1795392000 +0000\tpush\n"
	had := domain.ReceivePush{Push: "psh_1", Project: project, Message: domain.Personal{Subject: "act_1"}, Forced: true}
	cmd, err := gitremote.Reread(had, []byte(raw), commands.Keyed{
		Subject:     func(_, person string) string { return "subject of " + person },
		Fingerprint: func(_ domain.ProjectID, raw []byte) string { return hex.EncodeToString(raw) },
	})
	must(t, err)
	if cmd.Ref != "refs/heads/main" || cmd.Commit != strings.Repeat("b", 40) || cmd.Push != "psh_1" || cmd.Message != had.Message || !cmd.Forced || cmd.Body != hex.EncodeToString([]byte(raw)) {
		t.Errorf("got %+v", cmd)
	}
	if _, err := gitremote.Reread(had, []byte("nonsense"), commands.Keyed{}); err == nil {
		t.Error("nonsense was read")
	}
}
