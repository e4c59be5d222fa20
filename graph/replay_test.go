package graph_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/graph"
	"github.com/pipeops/pipeops/handlers/policies"
	"github.com/pipeops/pipeops/handlers/webhook"
	"github.com/pipeops/pipeops/internal/records"
)

type standing struct {
	Name    string
	Behind  int64
	Skipped []string
	Stopped *struct{ Position, Event, Type, Error string }
}

func (w *world) standing(name string) standing {
	w.t.Helper()
	type answer struct{ Projections []standing }
	all := ask[answer](w, `{ projections { name version cursor behind behindMs movedAt caughtUpAt skipped stopped { position event type error at } } }`, nil).Projections
	i := slices.IndexFunc(all, func(s standing) bool { return s.Name == name })
	if len(all) != 5 || i < 0 {
		w.t.Fatalf("got %+v", all)
	}
	return all[i]
}

func TestAcceptance16_AStoppedReadModelIsShownTriedAgainAndSkippedOverTheAPI(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("hello")
	_, build := w.push(project)
	const decide = `mutation($in: StoppedProjectionInput!) { skipProjection(input: $in) { cursor projection { name } } }`
	in := func(name, reason string) map[string]any {
		return map[string]any{"in": map[string]any{"name": name, "reason": reason, "idempotencyKey": "once"}}
	}
	w.refused("NOT_STOPPED", decide, in("builds", "why not"))
	w.refused("NOT_FOUND", decide, in("nothing", "why not"))
	poisoned, err := w.store.Append(t.Context(), eventstore.Append{Writes: []eventstore.Write{{
		Stream: domain.BuildStream(build), Expected: eventstore.AnyVersion,
		Events: []eventstore.NewEvent{{ID: uuid.NewString(), Type: "BuildStarted", SchemaVersion: 99, Body: []byte(`{}`), ProjectID: project, OccurredAt: w.now}},
	}}})
	must(t, err)
	stopped := w.standing("builds")
	for deadline := time.Now().Add(30 * time.Second); stopped.Stopped == nil && time.Now().Before(deadline); stopped = w.standing("builds") {
	}
	position := poisoned.Last.String()[2:]
	if stopped.Stopped == nil || stopped.Stopped.Position != position || stopped.Stopped.Type != "BuildStarted" || stopped.Behind != 1 {
		t.Fatalf("got %+v, want that it has stopped at %s", stopped, position)
	}
	w.refused("BAD_REASON", decide, in("builds", ""))
	ask[any](w, `mutation { retryProjection(input: {name: "builds", reason: "once more"}) { cursor } }`, nil)
	first := ask[struct{ SkipProjection struct{ Cursor string } }](w, decide, in("builds", "a faulty build wrote it")).SkipProjection.Cursor
	if again := ask[struct{ SkipProjection struct{ Cursor string } }](w, decide, in("builds", "a faulty build wrote it")).SkipProjection.Cursor; again != first {
		t.Errorf("the same key got %s, then %s", first, again)
	}
	ask[any](w, `query($c: Cursor) { build(id: "`+string(build)+`", atLeast: $c) { phase } }`, map[string]any{"c": first})
	if got := w.standing("builds"); got.Stopped != nil || !slices.Equal(got.Skipped, []string{position}) {
		t.Errorf("got %+v, want that it goes on without %s", got, position)
	}
	recorded := last[domain.ProjectionSkipped](w, "")
	if recorded.Projection != "builds" || recorded.Position != poisoned.Last.Position || recorded.Reason != "a faulty build wrote it" || recorded.Event != stopped.Stopped.Event {
		t.Errorf("recorded is %+v", recorded)
	}
}

func TestAReplayTellsHowFarItIsAndWhatItFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *graph.Config) { c.Interval = time.Millisecond })
	project := w.project("hello")
	w.push(project)
	s := w.connect()
	type step struct {
		Subject string
		Goal    int64
		Result  *struct {
			Kind      string
			Different int64
			Counts    []struct {
				Name  string
				Count int64
			}
			Projections []struct {
				Name, Checksum, InUse, Cursor string
				Version                       int
				Rows                          int64
				Replaced                      bool
			}
		}
	}
	for id, field := range map[string]string{
		"projections": `replayProjections(names: ["builds", "timeline"], verify: true)`, "rebuild": `replayProjections(names: ["builds"])`,
		"policy": `replayPolicy(project: "hello", since: "2020-01-01T00:00:00Z")`, // a time before the log
	} {
		s.subscribe(id, `subscription { step: `+field+` { subject goal result { kind different counts { name count } differences { what } cursor
			projections { name version rows checksum inUse different replaced cursor } } } }`, nil)
		var got step
		for got.Result == nil {
			got = data[struct{ Step step }](s, id).Step
		}
		if got.Result.Different != 0 || got.Result.Kind == "" {
			t.Errorf("%s: got %+v", id, got.Result)
		}
		for _, p := range got.Result.Projections {
			if p.Version < 1 || p.Rows == 0 || len(p.Checksum) != 32 || p.InUse != p.Checksum || p.Cursor == "" || p.Replaced != (id == "rebuild") {
				t.Errorf("%s: got %+v", id, p)
			}
		}
		if want := map[string]int{"projections": 2, "rebuild": 1}[id]; len(got.Result.Projections) != want {
			t.Errorf("%s: got %d projections, want %d", id, len(got.Result.Projections), want)
		}
		if f, err := s.next(); err != nil || f.Type != "complete" || f.ID != id {
			t.Errorf("%s: got %+v, %v, want that it is complete", id, f, err)
		}
	}
	w.refused("NOT_FOUND", `mutation { replayDelivery(input: {push: "psh_nobody"}) { kind } }`, nil)
}

// delivered sends a real delivery of GitHub's through the door that it comes in by, lets the policies answer it, and gives
// the push.
func (w *world) delivered(project domain.ProjectID, delivery string) domain.PushID {
	w.t.Helper()
	const secret = "it's a secret to everybody"
	hooks, err := webhook.New(webhook.Config{
		Receiver: w.commands, Secrets: hookSecret(secret), Seal: records.NewDeliveries(w.store.Pool(), w.keys).Seal,
		Fingerprint: w.keys.Fingerprint, Subject: w.keys.Actor, NewID: newID,
	})
	must(w.t, err)
	body, err := os.ReadFile(filepath.Join("..", "handlers", "webhook", "testdata", "deliveries", "github", "push.json"))
	must(w.t, err)
	body = bytes.ReplaceAll(body, []byte("refs/heads/master"), []byte("refs/heads/main"))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	r := httptest.NewRequestWithContext(w.t.Context(), http.MethodPost, "/webhooks/github/"+string(project), bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-GitHub-Event", "push")
	r.Header.Set("X-GitHub-Delivery", delivery)
	r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	answer := httptest.NewRecorder()
	hooks.ServeHTTP(answer, r)
	if answer.Code != http.StatusAccepted {
		w.t.Fatalf("got %d, %s", answer.Code, answer.Body)
	}
	work := policies.New(policies.Config{Store: w.store, Commands: w.commands, NewID: newID, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	pushed, ok, err := w.store.First(w.t.Context(), domain.PushStream(project, "github", delivery))
	must(w.t, err)
	if !ok {
		w.t.Fatal("the delivery is not recorded")
	}
	at, err := w.store.LoadCursor(w.t.Context(), policies.CursorName)
	must(w.t, err)
	_, err = work.RunOnce(w.t.Context(), at, eventstore.Batch{Events: []domain.Recorded{pushed}, Cursor: pushed.Cursor})
	must(w.t, err)
	return last[domain.PushReceived](w, project).Push
}

type hookSecret string

// WebhookSecrets implements webhook.Secrets.
func (s hookSecret) WebhookSecrets(context.Context, domain.ProjectID, string) ([]webhook.Secret, error) {
	return []webhook.Secret{{Revision: 1, Value: []byte(s)}}, nil
}

func TestADeliveryIsReplayedByThePushsIDAndByTheHosts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hello, other := w.project("hello"), w.project("other")
	const delivery = "72d3162e-cc78-11e3-81ab-4c9367dc0958"
	push := w.delivered(hello, delivery)
	const replayed = `mutation($of: ID!) { replayDelivery(input: {push: $of}) {
		kind subject from to different counts { name count } differences { subject what was would } projections { name } cursor } }`
	ask[any](w, `query($c: Cursor, $p: ID!) { push(id: $p, atLeast: $c) { id } }`, map[string]any{"c": w.head().String(), "p": push})
	for _, id := range []string{string(push), delivery} {
		got := ask[struct {
			ReplayDelivery struct {
				Kind, Subject, From, To, Cursor string
				Different                       int64
				Counts                          []struct {
					Name  string
					Count int64
				}
				Differences, Projections []any
			}
		}](w, replayed, map[string]any{"of": id}).ReplayDelivery
		counts := map[string]int64{}
		for _, c := range got.Counts {
			counts[c.Name] = c.Count
		}
		if got.Kind != "delivery" || got.Subject != string(push) || got.Different != 0 || len(got.Differences) != 0 || counts["bytes"] == 0 || counts["events"] != 3 || counts["decisions"] != 1 {
			t.Errorf("%s: got %+v", id, got)
		}
		if c := w.head().String(); got.Cursor != c {
			t.Errorf("%s: it was recorded at %s, want %s", id, got.Cursor, c)
		}
	}
	w.refused("NOT_FOUND", replayed, map[string]any{"of": "another-delivery"})
	w.delivered(other, delivery)
	p := w.refused("AMBIGUOUS", replayed, map[string]any{"of": delivery})
	if !strings.Contains(p.Message, string(push)) {
		t.Errorf("got %+v, want both pushes named", p)
	}
}

func TestAReplayThatFailsTellsTheSameNumberOnRecordInTheLogAndToWhoWantedIt(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	w := newWorld(t, func(c *graph.Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	ask[any](w, `query($c: Cursor) { pushes(project: "`+string(w.project("hello"))+`", atLeast: $c) { id } }`, map[string]any{"c": w.head().String()})
	_, err := w.owner.Exec(t.Context(), "ALTER TABLE projections.timeline_v1 RENAME TO gone")
	must(t, err)
	s := w.connect()
	s.subscribe("r", `subscription { replayProjections(names: ["timeline"], verify: true) { subject } }`, nil)
	f, err := s.next()
	for err == nil && !strings.Contains(string(f.Payload), "internal error") && f.Type == "next" {
		f, err = s.next()
	}
	must(t, err)
	ended := last[domain.ReplayRun](w, "").Ended
	number, ok := strings.CutPrefix(ended, "failed at projection timeline: internal error ")
	if !ok || !strings.HasPrefix(number, "err_") || strings.Contains(number, " ") {
		t.Fatalf("on record is %q", ended)
	}
	if !strings.Contains(string(f.Payload), number) || strings.Contains(string(f.Payload), "timeline_v1") {
		t.Errorf("told was %s, on record is %q", f.Payload, ended)
	}
	if text := log.String(); strings.Count(text, number) != 1 || !strings.Contains(text, "timeline_v1") {
		t.Errorf("%s is not once in the log, with what led to it:\n%s", number, text)
	}
}

type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
