package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/policies"
)

const hookSecret = "it's a secret to everybody"

// hooked creates a project that takes deliveries of GitHub's.
func (o *office) hooked(name string) domain.ProjectID {
	o.t.Helper()
	id := o.project(name)
	o.run("project", "set", name, "--webhook-secret-file", o.file("webhook-secret", hookSecret))
	return id
}

// deliver sends a real delivery of GitHub's, as a push to main, and gives the push.
func (o *office) deliver(project domain.ProjectID, delivery string) domain.PushID {
	o.t.Helper()
	body := hookBody(o.t)
	mac := hmac.New(sha256.New, []byte(hookSecret))
	mac.Write(body)
	r, err := http.NewRequestWithContext(o.t.Context(), http.MethodPost, os.Getenv("PIPEOPS_URL")+"/webhooks/github/"+string(project), bytes.NewReader(body))
	o.must(err)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-GitHub-Event", "push")
	r.Header.Set("X-GitHub-Delivery", delivery)
	r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	resp, err := http.DefaultClient.Do(r)
	o.must(err)
	defer func() { _ = resp.Body.Close() }()
	var got struct {
		Push   domain.PushID
		Cursor string
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusAccepted {
		o.t.Fatalf("got %s, %v", resp.Status, err)
	}
	o.answered(got.Cursor)
	o.graphql(fmt.Sprintf(`{ push(id: %q, atLeast: %q) { id } }`, got.Push, got.Cursor))
	return got.Push
}

func hookBody(t *testing.T) []byte {
	t.Helper()
	body, err := os.ReadFile(filepath.Join("..", "..", "handlers", "webhook", "testdata", "deliveries", "github", "push.json"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(body, []byte("refs/heads/master"), []byte("refs/heads/main"))
}

// answered waits until the policies have answered what stands at a cursor.
func (o *office) answered(cursor string) {
	o.t.Helper()
	until, err := domain.ParseCursor(cursor)
	o.must(err)
	var last int64
	o.must(o.owner.QueryRow(o.t.Context(), "SELECT coalesce(max(position), 0) FROM pipeops.events WHERE type = ANY ($1) AND position <= $2",
		domain.Followed(), until.Position).Scan(&last))
	eventually(o.t, 30*time.Second, "the policies", func() error {
		at, err := o.core.store.LoadCursor(o.t.Context(), policies.CursorName)
		if err == nil && at.Position < last {
			err = fmt.Errorf("they are at %s, want %d", at, last)
		}
		return err
	})
}

// record appends what another version may have recorded, and waits until it is in the read models.
func (o *office) record(a eventstore.Append, push string) {
	o.t.Helper()
	for i := range a.Writes {
		for j := range a.Writes[i].Events {
			a.Writes[i].Events[j].SchemaVersion, a.Writes[i].Events[j].OccurredAt = 1, time.Now()
		}
	}
	got, err := o.core.store.Append(o.t.Context(), a)
	o.must(err)
	o.answered(got.Last.String())
	o.graphql(fmt.Sprintf(`{ push(id: %q, atLeast: %q) { id } }`, push, got.Last))
}

func (o *office) event(project domain.ProjectID, id string, e domain.Event) eventstore.NewEvent {
	o.t.Helper()
	body, err := json.Marshal(e)
	o.must(err)
	return eventstore.NewEvent{ID: id, Type: domain.TypeOf(e), ProjectID: project, Body: body}
}

func TestReplaysSayWhatThisVersionWouldDoOtherwise(t *testing.T) {
	o := newOffice(t)
	shop, blog := o.hooked("shop"), o.project("blog")
	const delivery = "72d3162e-cc78-11e3-81ab-4c9367dc0958"
	push := o.deliver(shop, delivery)
	t.Run("delivery", func(*testing.T) { o.replayDelivery(shop, push, delivery) })
	t.Run("policy", func(*testing.T) { o.replayPolicy(shop, blog) })
	t.Run("projections", func(*testing.T) { o.replayProjections() })
}

func (o *office) replayDelivery(project domain.ProjectID, push domain.PushID, delivery string) {
	for _, id := range []string{string(push), delivery} {
		if out := o.run("replay", "delivery", id); !strings.Contains(out, "Replayed delivery "+string(push)) || !strings.Contains(out, "All as it was.") {
			o.t.Errorf("%s: got %s", id, out)
		}
	}
	o.fails(exitRefused, "no delivery is kept", "replay", "delivery", "psh_nobody")
	o.fails(exitUsage, "", "replay", "delivery")
	// Another version took a tag for a duplicate.
	ignored := domain.PushIgnored{Push: "psh_other", Project: project, Source: "github", Delivery: "other", Kind: "push", Reason: "duplicate"}
	stream := domain.PushStream(project, "github", "other")
	event := domain.EventID(string(stream), 0)
	keyID, sealed, err := o.core.deliveries.Seal("psh_other", bytes.ReplaceAll(hookBody(o.t), []byte("refs/heads/main"), []byte("refs/tags/v1")))
	o.must(err)
	o.record(eventstore.Append{
		Writes:      []eventstore.Write{{Stream: stream, Events: []eventstore.NewEvent{o.event(project, event, ignored)}}},
		Attachments: []eventstore.Attachment{{ID: "psh_other", EventID: event, ProjectID: project, ContentType: "application/json", KeyID: keyID, Sealed: sealed}},
	}, "psh_other")
	o.fails(exitVerdict, "differences", "replay", "delivery", "psh_other")
	out, _, _ := o.try("replay", "delivery", "other", "--json")
	var got gqlReplay
	o.must(json.Unmarshal([]byte(out), &got))
	if got.Kind != "delivery" || got.Different == 0 || !strings.Contains(out, `"PushIgnored.reason"`) || !strings.Contains(out, `"was": "\"duplicate\""`) {
		o.t.Errorf("got %s", out)
	}
}

func (o *office) replayPolicy(shop, blog domain.ProjectID) {
	before, err := o.core.store.Head(o.t.Context())
	o.must(err)
	for _, since := range []string{"", "24h", "2020-01-01", time.Now().UTC().Format(time.DateOnly), "2020-01-01T00:00:00Z", "1.0"} {
		args := []string{"replay", "policy", "--project", "shop", "--json"}
		if since != "" {
			args = append(args, "--since", since)
		}
		var got gqlReplay
		o.must(json.Unmarshal([]byte(o.run(args...)), &got))
		if got.Kind != "policy" || got.Subject != string(shop) || got.Different != 0 || len(got.Counts) == 0 || got.Counts[0].Count == 0 {
			o.t.Errorf("since %q: got %+v", since, got)
		}
	}
	o.fails(exitUsage, "--since", "replay", "policy", "--since", "yesterday")
	o.fails(exitRefused, "lies ahead", "replay", "policy", "--since", "2999-01-01")
	o.fails(exitRefused, "no project", "replay", "policy", "--project", "none")
	// Another version built under another tag.
	received := domain.PushReceived{Push: "psh_2", Project: blog, Source: "github", Delivery: "2", Ref: "refs/heads/main", Branch: "main", Commit: strings.Repeat("a", 40)}
	requested := domain.BuildRequested{
		Build: "bld_2", Project: blog, ProjectName: "blog", Push: "psh_2", Ref: received.Ref, Branch: "main", Commit: received.Commit, Tag: "latest",
	}
	event := uuid.NewString()
	o.record(eventstore.Append{Writes: []eventstore.Write{
		{Stream: domain.PushStream(blog, "github", "2"), Events: []eventstore.NewEvent{o.event(blog, event, received)}},
		{Stream: domain.BuildStream("bld_2"), Events: []eventstore.NewEvent{o.event(blog, domain.EventID(domain.Derive("policy", event), 0), requested)}},
	}}, "psh_2")
	out, code, err := o.try("replay", "policy", "--since", before.String())
	if code != exitVerdict || err == nil || !strings.Contains(out, "BuildRequested.tag") || !strings.Contains(out, `was:   "latest"`) {
		o.t.Errorf("exit code %d, %v\n%s", code, err, out)
	}
	if out := o.run("replay", "policy", "--project", "shop"); !strings.Contains(out, "All as it was.") {
		o.t.Errorf("of another project: got %s", out)
	}
}

func (o *office) replayProjections() {
	var verified, rebuilt gqlReplay
	o.must(json.Unmarshal([]byte(o.run("replay", "projections", "--verify", "--json")), &verified))
	if len(verified.Projections) != 5 || verified.Different != 0 {
		o.t.Fatalf("got %+v", verified)
	}
	out := o.run("replay", "projections", "builds")
	if !strings.Contains(out, "CHECKSUM") || !strings.Contains(out, "replaced") {
		o.t.Errorf("got %s", out)
	}
	o.must(json.Unmarshal([]byte(o.run("replay", "projections", "builds", "--json")), &rebuilt))
	for _, p := range verified.Projections {
		if p.Name == "builds" && (p.Checksum != rebuilt.Projections[0].Checksum || p.Rows == 0 || p.Replaced || !strings.Contains(out, p.Checksum)) {
			o.t.Errorf("verified %+v, rebuilt %+v\n%s", p, rebuilt.Projections[0], out)
		}
	}
	o.fails(exitRefused, "there is no projection", "replay", "projections", "builds", "nothing")
	o.exec(`UPDATE projections.builds_v2 SET row = replace(row::text, 'shop', 'shop2')::json`)
	o.fails(exitVerdict, "differences", "replay", "projections", "builds", "--verify")
	o.fails(exitVerdict, "differences", "replay", "projections", "builds") // puts it right
	o.run("replay", "projections", "builds", "--verify")
	o.exec(`ALTER TABLE projections.timeline_v1 RENAME TO gone`)
	o.fails(exitFailure, "internal error", "replay", "projections", "builds", "timeline")
	o.exec(`ALTER TABLE projections.gone RENAME TO timeline_v1`)
	if log := o.run("audit", "log", "--type", "ReplayRun"); !strings.Contains(log, "failed at projection timeline: internal error err_") {
		o.t.Errorf("the log says\n%s", log)
	}
	log := o.run("audit", "log", "--type", "ReplayRun", "--json")
	if !strings.Contains(log, verified.Projections[0].Checksum) || !strings.Contains(log, `"replaced":true`) {
		o.t.Errorf("the log says\n%s", log)
	}
}

func TestStoppedReadModelsAreListedTriedAgainAndSkipped(t *testing.T) {
	o := newOffice(t)
	shop := o.project("shop")
	list := func() map[string]gqlProjection {
		var all []gqlProjection
		o.must(json.Unmarshal([]byte(o.run("projections", "list", "--json")), &all))
		named := map[string]gqlProjection{}
		for _, p := range all {
			named[p.Name] = p
		}
		return named
	}
	if all := list(); len(all) != 5 || all["environments"].Stopped != nil || all["environments"].Version < 1 {
		t.Fatalf("got %+v", all)
	}
	o.fails(exitRefused, "isn't stopped", "projections", "skip", "environments", "--reason", "r")
	o.fails(exitRefused, "there is no projection", "projections", "retry", "nothing", "--reason", "r")
	o.fails(exitUsage, "--reason", "projections", "retry", "environments")
	poisoned, err := o.core.store.Append(t.Context(), eventstore.Append{Writes: []eventstore.Write{{
		Stream: domain.SlotStream("env_none", "svc_none"), Expected: eventstore.AnyVersion,
		Events: []eventstore.NewEvent{{ID: uuid.NewString(), Type: "DeploymentReleased", SchemaVersion: 99, Body: []byte(`{}`), ProjectID: shop, OccurredAt: time.Now()}},
	}}})
	o.must(err)
	eventually(t, 30*time.Second, "the read model", func() error {
		if p := list()["environments"]; p.Stopped == nil || p.state() != "stopped" {
			return errors.New("it hasn't stopped")
		}
		return nil
	})
	position := strings.TrimPrefix(poisoned.Last.String(), "1.")
	out := o.run("projections", "list")
	for _, want := range []string{"stopped", "environments can't get over event", "(DeploymentReleased) at position " + position, "pipeops projections retry|skip environments"} {
		if !strings.Contains(out, want) {
			t.Errorf("want %q in\n%s", want, out)
		}
	}
	if out := o.run("projections", "retry", "environments", "--reason", "once more"); !strings.Contains(out, "environments: it tries again (recorded at 1.") {
		t.Errorf("got %s", out)
	}
	if out := o.run("projections", "skip", "environments", "--reason", "a faulty build wrote it"); !strings.Contains(out, "goes on without the event") {
		t.Errorf("got %s", out)
	}
	eventually(t, 30*time.Second, "the read model", func() error {
		if p := list()["environments"]; p.Stopped != nil || len(p.Skipped) != 1 || p.Skipped[0] != position {
			return fmt.Errorf("got %+v", p)
		}
		return nil
	})
	log := o.run("audit", "log", "--type", "ProjectionSkipped,ProjectionRetried")
	if !strings.Contains(log, "once more") || !strings.Contains(log, "a faulty build wrote it") {
		t.Errorf("the log says\n%s", log)
	}
}

func TestProgressIsABarOnATerminalAndLinesElsewhere(t *testing.T) {
	t.Parallel()
	show := func(moving, through bool) string {
		var out bytes.Buffer
		g := &gauge{w: &out, moving: moving}
		g.show("builds", 0, 10)
		g.show("builds", 5, 10)
		g.show("timeline", 12, 10) // the log has grown since
		g.show("environments", 0, 0)
		g.end(through)
		return out.String()
	}
	bar := func(subject string, full, percent int, of string) string {
		return fmt.Sprintf("\r%-14s [%s%s] %3d %%  %s\x1b[K", subject, strings.Repeat("#", full), strings.Repeat(".", 30-full), percent, of)
	}
	want := bar("builds", 0, 0, "0 of 10") + bar("builds", 15, 50, "5 of 10") + bar("builds", 30, 100, "10 of 10") + "\n" +
		bar("timeline", 30, 100, "10 of 10") + bar("timeline", 30, 100, "10 of 10") + "\n" + bar("environments", 30, 100, "0 of 0")
	if got := show(true, false); got != want+"\n" {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if got := show(true, true); got != want+bar("environments", 30, 100, "0 of 0")+"\n" {
		t.Errorf("through: got %q", got)
	}
	if got, want := show(false, true), "builds: 0 of 10\ntimeline: 12 of 10\nenvironments: 0 of 0\n"; got != want {
		t.Errorf("elsewhere: got %q, want %q", got, want)
	}
}
