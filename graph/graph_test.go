package graph_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/graph"
)

const projectFields = `{ id name repository branch registry version webhookUrl gitRemote webhooks { provider revision }
	services { name spec { port replicas dockerfile healthPath deadline variables { name value } startup { period failures } } } environments { name branch namespace } }`

type projectView struct {
	ID                                                        domain.ProjectID
	Name, Repository, Branch, Registry, WebhookURL, GitRemote string
	Version                                                   int64
	Webhooks                                                  []struct {
		Provider string
		Revision int
	}
	Services []struct {
		Name string
		Spec struct {
			Port, Replicas, Deadline int
			Dockerfile, HealthPath   string
			Variables                []struct{ Name, Value string }
			Startup                  struct{ Period, Failures int }
		}
	}
	Environments []struct{ Name, Branch, Namespace string }
}

type payloadView struct {
	Project  projectView
	Cursor   string
	Revision int
	Secret   *string
}

func create(w *world, input string) payloadView {
	w.t.Helper()
	return ask[struct{ CreateProject payloadView }](w, `mutation { createProject(input: `+input+`) { project `+projectFields+` cursor } }`, nil).CreateProject
}

func TestAProjectIsCreatedWithItsDefaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := create(w, `{name: "hello"}`).Project
	if p.Branch != "main" || p.Registry != "registry.test" || len(p.Services) != 1 || p.Services[0].Name != "hello" || p.Services[0].Spec.Port != 8080 ||
		p.Services[0].Spec.Startup.Failures != 24 || len(p.Environments) != 1 || p.Environments[0].Name != "production" ||
		p.WebhookURL != "https://pipeops.test/webhooks/github/"+string(p.ID) || p.GitRemote != "https://pipeops.test/git/hello" {
		t.Errorf("got %+v", p)
	}
	bare := create(w, `{name: "bare", services: [], environments: [], registry: "ghcr.io/acme", repository: "https://github.com/acme/bare.git"}`).Project
	if len(bare.Services) != 0 || len(bare.Environments) != 0 || bare.Registry != "ghcr.io/acme" {
		t.Errorf("empty lists mean none: got %+v", bare)
	}
	full := create(w, `{name: "full", branch: "trunk", services: [{name: "api", port: 9000, replicas: 3, healthPath: "/up", deadline: 60, dockerfile: "api/Dockerfile",
		startup: {period: 1}, variables: [{name: "B", value: "2"}, {name: "A", value: "1"}]}, {name: "web"}], environments: [{name: "staging", branch: "next"}]}`).Project
	if s := full.Services[0]; s.Name != "api" || s.Spec.Port != 9000 || s.Spec.Replicas != 3 || s.Spec.HealthPath != "/up" || s.Spec.Deadline != 60 ||
		s.Spec.Startup.Period != 1 || s.Spec.Startup.Failures != 24 || s.Spec.Variables[0].Name != "A" || full.Environments[0].Branch != "next" {
		t.Errorf("got %+v", full)
	}
	names := ask[struct{ Projects []struct{ Name string } }](w, `{ projects { name } }`, nil).Projects
	if fmt.Sprint(names) != "[{bare} {full} {hello}]" {
		t.Errorf("got %v, want them by name", names)
	}
	found := ask[struct{ Project *projectView }](w, `query($id: ID) { project(id: $id) `+projectFields+` }`, map[string]any{"id": p.ID}).Project
	if found == nil || cmp.Diff(p, *found) != "" {
		t.Errorf("by id: got %+v", found)
	}
	if none := ask[struct{ Project *projectView }](w, `{ project(name: "none") `+projectFields+` }`, nil).Project; none != nil {
		t.Errorf("got %+v, want null", none)
	}
}

func TestAGitCredentialIsKeptSealedForItsHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	kept := func(project domain.ProjectID, host string) string {
		t.Helper()
		value, _, err := w.records.secrets.Get(t.Context(), project, "git-credential/"+host, 0)
		must(t, err)
		return string(value)
	}
	p := create(w, `{name: "shop", repository: "https://github.com/acme/shop.git", gitCredential: "ada:first"}`).Project
	if got := kept(p.ID, "github.com"); got != "ada:first" {
		t.Errorf("got %q", got)
	}
	const change = `mutation { configureProject(input: {project: "shop", repository: "https://git.example/shop", gitCredential: "second", idempotencyKey: "k"}) { cursor } }`
	ask[any](w, change, nil)
	ask[any](w, change, nil)
	if first, second := kept(p.ID, "github.com"), kept(p.ID, "git.example"); first != "ada:first" || second != "second" {
		t.Errorf("got %q and %q", first, second)
	}
	for r, err := range w.store.Read(t.Context(), eventstore.Query{Project: p.ID}) {
		must(t, err)
		if strings.Contains(string(r.Body), "ada:first") || strings.Contains(string(r.Body), "second") {
			t.Errorf("the log tells the credential: %s", r.Body)
		}
	}
}

func TestRefusalsReachTheCallerWithCodeFieldAndFix(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.project("hello")
	for _, c := range []struct{ code, field, query string }{
		{"NAME_TAKEN", "name", `mutation { createProject(input: {name: "hello"}) { cursor } }`},
		{"BAD_NAME", "name", `mutation { createProject(input: {name: "Hello World"}) { cursor } }`},
		{"BAD_SETTING", "port", `mutation { createProject(input: {name: "x", services: [{name: "x", port: 70000}]}) { cursor } }`},
		{"SECRET_IN_URL", "repository", `mutation { createProject(input: {name: "x", repository: "https://me:pass@github.com/a/b.git"}) { cursor } }`},
		{"BAD_INPUT", "variables", `mutation { createProject(input: {name: "x", services: [{name: "x", variables: [{name: "A", value: ""}, {name: "A", value: ""}]}]}) { cursor } }`},
		{"BAD_INPUT", "webhookSecret", `mutation { createProject(input: {name: "x", webhookSecret: ""}) { cursor } }`},
		{"BAD_INPUT", "gitCredential", `mutation { createProject(input: {name: "x", gitCredential: "token"}) { cursor } }`},
		{"BAD_INPUT", "gitCredential", `mutation { configureProject(input: {project: "hello", gitCredential: "token"}) { cursor } }`},
		{"BAD_INPUT", "gitCredential", `mutation { configureProject(input: {project: "hello", repository: "https://host/a", gitCredential: "to ken"}) { cursor } }`},
		{"NOT_FOUND", "project", `mutation { configureProject(input: {project: "nobody", branch: "x"}) { cursor } }`},
		{"NOT_FOUND", "project", `mutation { configureProject(input: {project: "prj_nobody", branch: "x"}) { cursor } }`},
		{"FIXED", "environments", `mutation { configureProject(input: {project: "hello", environments: [{name: "production", branch: "x"}]}) { cursor } }`},
		{"NO_IMAGE", "commit", `mutation { deploy(input: {project: "hello"}) { cursor } }`},
		{"NO_IMAGE", "build", `mutation { deploy(input: {project: "hello", build: "bld_none"}) { cursor } }`},
		{"NOT_FOUND", "environment", `mutation { deploy(input: {project: "hello", environment: "moon"}) { cursor } }`},
		{"NO_EARLIER_RELEASE", "release", `mutation { rollback(input: {project: "hello"}) { cursor } }`},
		{"NOT_FOUND", "project", `{ builds(project: "nobody") { id } }`},
		{"BAD_INPUT", "first", `{ builds(project: "hello", first: 0) { id } }`},
		{"BAD_INPUT", "first", `{ events(first: 2000) { cursor } }`},
		{"BAD_INPUT", "types", `{ events(types: ["Nonsense"]) { cursor } }`},
		{"BAD_INPUT", "name", `{ project { id } }`},
		{"CURSOR_BAD", "atLeast", `{ projects(atLeast: "nonsense") { id } }`},
		{"CURSOR_AHEAD", "atLeast", `{ projects(atLeast: "1.999999") { id } }`},
		{"CURSOR_AHEAD", "after", `{ events(after: "7.1") { cursor } }`},
		{"NOT_FOUND", "build", `{ buildLog(build: "bld_none") { text } }`},
	} {
		p := w.refused(c.code, c.query, nil)
		if p.Extensions.Field != c.field || p.Message == "" || (p.Extensions.Fix == "" && c.code != "BAD_INPUT") {
			t.Errorf("%s: got %+v, want field %s and a fix", c.query, p, c.field)
		}
	}
	_, err := w.owner.Exec(t.Context(), "SELECT pipeops.raise_log_epoch()")
	must(t, err)
	head := ask[struct{ Head domain.Cursor }](w, `{ head }`, nil)
	if p := w.refused("CURSOR_FORKED", `{ events(after: "1.99") { cursor } }`, nil); p.Extensions.Position != strconv.FormatInt(head.Head.Position+1, 10) {
		t.Errorf("the fork is at position %q, the head is %s", p.Extensions.Position, head.Head)
	}
}

func TestWhatIsNotMeantForCallersReachesTheLogOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.project("hello")
	ask[any](w, `{ projects { id } }`, nil)
	_, err := w.owner.Exec(t.Context(), "ALTER TABLE projections.projects_v1 RENAME TO gone")
	must(t, err)
	p := w.refused("INTERNAL", `{ projects { id } }`, nil)
	if !strings.HasPrefix(p.Message, "internal error err_") || strings.Contains(p.Message, "projects_v1") {
		t.Errorf("got %+v", p)
	}
}

func TestQueriesHaveLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *graph.Config) { c.Depth, c.Complexity = 3, 10_000 })
	w.project("hello")
	w.refused("DEPTH_LIMIT_EXCEEDED", `{ timeline(project: "hello") { push { builds { diagnosis { code } } ...A } } } fragment A on Push { builds { ...B } } fragment B on Build { id }`, nil)
	w.refused("COMPLEXITY_LIMIT_EXCEEDED", `{ a: events(first: 1000) { events { id type data } } b: events(first: 1000) { events { id type data } } c: pushes(project: "hello", first: 500) { builds { id commit phase branch } } }`, nil)
	w.refused("GRAPHQL_VALIDATION_FAILED", `{ nonsense }`, nil)
	w.refused("GRAPHQL_PARSE_FAILED", `{ projects {`, nil)
}

func TestTheSameIdempotencyKeyIsDoneOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := create(w, `{name: "hello", webhookSecret: "sesame-sesame", idempotencyKey: "k1"}`)
	var group sync.WaitGroup
	for range 5 {
		group.Go(func() {
			if again := create(w, `{name: "hello", webhookSecret: "sesame-sesame", idempotencyKey: "k1"}`); cmp.Diff(first, again) != "" {
				t.Errorf("again: got %+v, want %+v", again, first)
			}
		})
	}
	group.Wait()
	rotate := `mutation { rotateWebhookSecret(input: {project: "hello", idempotencyKey: "k1"}) { project ` + projectFields + ` cursor revision secret } }`
	type answer struct{ RotateWebhookSecret payloadView }
	made := ask[answer](w, rotate, nil).RotateWebhookSecret
	again := ask[answer](w, rotate, nil).RotateWebhookSecret
	if made.Revision != 2 || made.Secret == nil || cmp.Diff(made, again) != "" {
		t.Errorf("got %+v, then %+v, want revision 2 and the same secret twice", made, again)
	}
	stored, number, err := w.records.secrets.Get(t.Context(), made.Project.ID, graph.WebhookSecret("github"), 0)
	if err != nil || number != 2 || string(stored) != *made.Secret {
		t.Errorf("the newest secret is %d, %v, want 2, the one that was shown", number, err)
	}
	if old, _, err := w.records.secrets.Get(t.Context(), made.Project.ID, graph.WebhookSecret("github"), 1); err != nil || string(old) != "sesame-sesame" {
		t.Errorf("the first secret: got %q, %v", old, err)
	}
	var events string
	must(t, w.owner.QueryRow(t.Context(), "SELECT string_agg(convert_from(body, 'UTF8'), ' ') FROM pipeops.events").Scan(&events))
	if strings.Contains(events, "sesame") || strings.Contains(events, *made.Secret) {
		t.Error("a secret stands in the log")
	}
}

func TestChangesOfOneProjectByManyAtOnceAllStay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.project("hello")
	var group sync.WaitGroup
	for _, input := range []string{
		`services: [{name: "hello", port: 9000}]`, `services: [{name: "hello", replicas: 4}]`, `services: [{name: "hello", healthPath: "/up"}]`,
		`branch: "trunk"`, `registry: "ghcr.io/acme"`, `services: [{name: "worker"}]`, `environments: [{name: "staging", branch: "next"}]`,
		`services: [{name: "hello", startup: {period: 1}}]`,
	} {
		group.Go(func() {
			if _, problems := w.post(`mutation { configureProject(input: {project: "hello", `+input+`}) { cursor } }`, nil); len(problems) > 0 {
				t.Errorf("%s: %+v", input, problems)
			}
		})
	}
	group.Wait()
	p := ask[struct{ Project projectView }](w, `query($at: Cursor) { project(name: "hello", atLeast: $at) `+projectFields+` }`, map[string]any{"at": w.head().String()}).Project
	s := p.Services[0].Spec
	if s.Port != 9000 || s.Replicas != 4 || s.HealthPath != "/up" || s.Startup.Period != 1 || p.Branch != "trunk" || p.Registry != "ghcr.io/acme" ||
		len(p.Services) != 2 || len(p.Environments) != 2 {
		t.Errorf("got %+v", p)
	}
	nothing := ask[struct{ ConfigureProject payloadView }](w, `mutation { configureProject(input: {project: "hello", branch: "trunk"}) { project `+projectFields+` cursor } }`, nil).ConfigureProject
	if nothing.Cursor != w.head().String() || nothing.Project.Version != p.Version {
		t.Errorf("nothing changes: got %+v", nothing)
	}
}

const statusQuery = `query($asOf: Moment, $at: Cursor) { status(project: "hello", asOf: $asOf, atLeast: $at) { phase commit digest address release { id }
	quarantined { release why } latest { id phase reason diagnosis { title fixes } } } }`

type statusView struct {
	Status []struct {
		Phase                   *string
		Commit, Digest, Address string
		Release                 *struct{ ID string }
		Quarantined             []struct{ Release, Why string }
		Latest                  *struct {
			ID, Phase, Reason string
			Diagnosis         *struct {
				Title string
				Fixes []string
			}
		}
	}
}

func TestDeployAndRollBackByHand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("hello")
	empty := ask[statusView](w, statusQuery, map[string]any{"at": w.head().String()}).Status
	if len(empty) != 1 || empty[0].Phase != nil || empty[0].Latest != nil {
		t.Errorf("before the first deployment: got %+v", empty)
	}
	_, first := w.push(project)
	w.build(project, first)
	w.deployment(project, domain.DeploymentSucceeded{Digest: "sha256:one", Available: 1, Address: "hello.svc:80"})
	afterFirst := w.head().String()
	push, second := w.push(project)
	w.build(project, second)
	w.deployment(project, domain.DeploymentFailed{Diagnosis: domain.Diagnosis{Code: "CRASH", Title: "Deployment failed: CrashLoopBackOff", Fixes: []string{"mend it"}, ReleaseAtFault: true}},
		domain.RolledBack{To: "rel_1", Available: 1})

	now := ask[statusView](w, statusQuery, map[string]any{"at": w.head().String()}).Status[0]
	if *now.Phase != "ROLLED_BACK" || now.Address != "hello.svc:80" || len(now.Quarantined) != 1 || now.Latest.Diagnosis.Fixes[0] != "mend it" {
		t.Errorf("got %+v", now)
	}
	then := ask[statusView](w, statusQuery, map[string]any{"asOf": afterFirst}).Status[0]
	if *then.Phase != "SUCCEEDED" || len(then.Quarantined) != 0 || then.Commit != now.Commit {
		t.Errorf("as of %s: got %+v", afterFirst, then)
	}
	w.refused("QUARANTINED", `mutation { deploy(input: {project: "hello"}) { cursor } }`, nil)
	type answer struct {
		Deploy, Rollback struct {
			Deployment struct{ ID, Phase, Reason, ServiceName string }
			Cursor     string
		}
	}
	const deploy = `mutation($c: String) { deploy(input: {project: "hello", environment: "production", commit: $c, liftQuarantine: true, idempotencyKey: "d1"}) {
		deployment { id phase reason serviceName } cursor } }`
	commit := map[string]any{"c": strings.Repeat("0", 39) + "2"}
	lifted := ask[answer](w, deploy, commit)
	if d := lifted.Deploy.Deployment; d.Phase != "WAITING" || d.Reason != "manual" || d.ServiceName != "hello" {
		t.Errorf("got %+v", d)
	}
	if again := ask[answer](w, deploy, commit); again != lifted {
		t.Errorf("again: got %+v, want %+v", again, lifted)
	}
	w.deployment(project, domain.DeploymentSucceeded{Digest: "sha256:two", Available: 1, Address: "hello.svc:80"})
	back := ask[answer](w, `mutation { rollback(input: {project: "hello"}) { deployment { id phase reason serviceName } cursor } }`, nil).Rollback
	if back.Deployment.Reason != "rollback" || back.Deployment.ID != string(last[domain.DeploymentRequested](w, project).Deployment) {
		t.Errorf("got %+v", back)
	}
	w.deployment(project, domain.DeploymentSucceeded{Digest: "sha256:one", Available: 1, Address: "hello.svc:80"})
	end := ask[statusView](w, statusQuery, map[string]any{"at": w.head().String()}).Status[0]
	if end.Digest != "sha256:one" || end.Commit != then.Commit || end.Latest.Reason != "rollback" {
		t.Errorf("got %+v", end)
	}
	all := ask[struct{ Deployments []struct{ ID, Phase string } }](w, `{ deployments(project: "hello", service: "hello") { id phase } }`, nil).Deployments
	if len(all) != 4 || all[0].ID != back.Deployment.ID {
		t.Errorf("got %+v, want four, the newest first", all)
	}
	timeline := ask[struct {
		Timeline struct {
			Push struct {
				ID, Status, Author, Message string
				Builds                      []struct{ ID string }
				Deployments                 []struct{ ID, Phase string }
			}
			Entries []struct{ Text, Severity, Type, Position string }
		}
	}](w, `{ timeline(project: "hello") { push { id status author message builds { id } deployments { id phase } } entries { text severity type position } } }`, nil).Timeline
	if timeline.Push.ID != string(push) || timeline.Push.Author != "Ada" || timeline.Push.Status != "LIVE" || len(timeline.Push.Builds) != 1 ||
		len(timeline.Push.Deployments) != 2 || timeline.Push.Deployments[0].Phase != "ROLLED_BACK" || len(timeline.Entries) < 10 {
		t.Errorf("got %+v", timeline)
	}
}

func TestNestedAnswersAreAsOfTheSameMoment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("hello")
	_, build := w.push(project)
	then := w.head().String()
	w.build(project, build)
	const query = `query($asOf: Moment, $at: Cursor) { project(name: "hello", asOf: $asOf, atLeast: $at) { status { phase } lastPush { status builds { phase } deployments { phase } } } }`
	got, err := json.Marshal([]any{
		ask[any](w, query, map[string]any{"asOf": then}), ask[any](w, query, map[string]any{"at": w.head().String()}),
	})
	must(t, err)
	want := `[{"project":{"lastPush":{"builds":[{"phase":"WAITING"}],"deployments":[],"status":"BUILDING"},"status":[{"phase":null}]}},` +
		`{"project":{"lastPush":{"builds":[{"phase":"SUCCEEDED"}],"deployments":[{"phase":"WAITING"}],"status":"DEPLOYING"},"status":[{"phase":"WAITING"}]}}]`
	if string(got) != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

func TestEventsComeInPagesWithAllTheirFields(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("hello")
	w.push(project)
	w.project("other")
	const query = `query($after: Cursor, $first: Int!) { head events(after: $after, project: "hello", first: $first) { cursor head more events {
		cursor position epoch id stream version project type schemaVersion data actor attempt attemptSeq correlationId causationId occurredAt recordedAt trace } } }`
	type answer struct {
		Head   string
		Events struct {
			Cursor, Head string
			More         bool
			Events       []map[string]any
		}
	}
	var got []map[string]any
	var after *string
	for more := true; more; {
		a := ask[answer](w, query, map[string]any{"after": after, "first": 3})
		got, after, more = append(got, a.Events.Events...), &a.Events.Cursor, a.Events.More
		if a.Head != w.head().String() || a.Events.Head != a.Head {
			t.Errorf("head: got %s and %s, want %s", a.Head, a.Events.Head, w.head())
		}
	}
	if *after != w.head().String() {
		t.Errorf("in the end the cursor is %s, want the head %s", *after, w.head())
	}
	var want []map[string]any
	for r, err := range w.store.Read(t.Context(), everythingOf(project)) {
		must(t, err)
		b, err := json.Marshal(r.Line())
		must(t, err)
		var line map[string]any
		must(t, json.Unmarshal(b, &line))
		line["position"] = strconv.FormatInt(r.Cursor.Position, 10)
		want = append(want, line)
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got) < 6 {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestABuildsOutputIsReadInPieces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	project := w.project("hello")
	_, build := w.push(project)
	type answer struct {
		BuildLog struct {
			Attempt, Text string
			Next          int64
			Done          bool
		}
	}
	read := func(after int64) answer {
		return ask[answer](w, `query($b: ID!, $after: Int64!) { buildLog(build: $b, after: $after) { attempt text next done } }`, map[string]any{"b": build, "after": after})
	}
	ask[any](w, `query($at: Cursor) { projects(atLeast: $at) { id } }`, map[string]any{"at": w.head().String()})
	w.do(project, domain.ClaimBuild{Build: build, Worker: "wrk_1", Incarnation: "i1"})
	ask[any](w, `query($b: ID!, $at: Cursor) { build(id: $b, atLeast: $at) { id } }`, map[string]any{"b": build, "at": w.head().String()})
	if a := read(0); a.BuildLog.Done || a.BuildLog.Text != "" {
		t.Errorf("without output: got %+v", a)
	}
	attempt := domain.NewAttemptID(string(build), 1)
	text := strings.Repeat("compiling äöü\n", 40_000)
	for at := 0; at < len(text); at += 100_001 {
		must(t, w.records.logs.Append(t.Context(), attempt, "build", int64(at), []byte(text[at:min(len(text), at+100_001)])))
	}
	var got strings.Builder
	var next int64
	for {
		a := read(next)
		if a.BuildLog.Text == "" {
			break
		}
		got.WriteString(a.BuildLog.Text)
		next = a.BuildLog.Next
	}
	if got.String() != text {
		t.Errorf("got %d bytes, want %d", got.Len(), len(text))
	}
	w.report(attempt, domain.BuildFailed{Diagnosis: domain.Diagnosis{Code: "X", Title: "x"}})
	ask[any](w, `query($b: ID!, $at: Cursor) { build(id: $b, atLeast: $at) { id } }`, map[string]any{"b": build, "at": w.head().String()})
	if a := read(next); a.BuildLog.Done {
		t.Errorf("failed, and its last output is still on its way: got %+v", a)
	}
	must(t, w.records.logs.Append(t.Context(), attempt, "build", next+4, nil)) // it ends there
	must(t, w.records.logs.Append(t.Context(), attempt, "build", next+2, []byte("d\n")))
	if a := read(next); a.BuildLog.Done || a.BuildLog.Text != "" {
		t.Errorf("before a hole that can still be filled: got %+v", a)
	}
	must(t, w.records.logs.Append(t.Context(), attempt, "build", next, []byte("en")))
	if a := read(next); !a.BuildLog.Done || a.BuildLog.Text != "end\n" || a.BuildLog.Attempt != string(attempt) {
		t.Errorf("in the end: got %+v", a)
	}
}

func TestOutputThatIsGoneIsSaidToBeSo(t *testing.T) {
	t.Parallel()
	var later atomic.Int64 // days
	w := newWorld(t, func(c *graph.Config) {
		c.KeepLogs = 90 * 24 * time.Hour
		c.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load()) * 24 * time.Hour) }
	})
	w.now = time.Now().UTC()
	project := w.project("hello")
	_, build := w.push(project)
	attempt := domain.NewAttemptID(string(build), 1)
	w.do(project, domain.ClaimBuild{Build: build, Worker: "wrk_1", Incarnation: "i1"})
	must(t, w.records.logs.Append(t.Context(), attempt, "build", 0, []byte("first\n")))
	must(t, w.records.logs.Append(t.Context(), attempt, "build", 6, []byte("last\n")))
	must(t, w.records.logs.Append(t.Context(), attempt, "build", 11, nil))
	w.report(attempt, domain.BuildFailed{Diagnosis: domain.Diagnosis{Code: "X", Title: "x"}})
	type log struct {
		Text string
		Done bool
	}
	read := func() log {
		ask[any](w, `query($b: ID!, $at: Cursor) { build(id: $b, atLeast: $at) { id } }`, map[string]any{"b": build, "at": w.head().String()})
		return ask[struct{ BuildLog log }](w, `query($b: ID!) { buildLog(build: $b) { text done } }`, map[string]any{"b": build}).BuildLog
	}
	if got, want := read(), (log{"first\nlast\n", true}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	later.Store(91)
	if got, want := read(), (log{"first\nlast\n", true}); got != want {
		t.Errorf("before it is removed: got %+v, want %+v", got, want)
	}
	_, err := w.owner.Exec(t.Context(), "UPDATE pipeops.build_log_chunks SET received_at = received_at - interval '1 day' WHERE start = 0")
	must(t, err)
	_, err = w.records.logs.DropBefore(t.Context(), time.Now().Add(-time.Hour))
	must(t, err)
	if got, want := read(), (log{"[pipeops: 6 bytes of output were removed: it is kept for 90 days]\nlast\n", true}); got != want {
		t.Errorf("without its beginning: got %+v, want %+v", got, want)
	}
	_, err = w.records.logs.DropBefore(t.Context(), time.Now().Add(time.Hour))
	must(t, err)
	if got, want := read(), (log{"[pipeops: the output of this build was removed: it is kept for 90 days]\n", true}); got != want {
		t.Errorf("without any: got %+v, want %+v", got, want)
	}
}

func TestABuildsOutputGoesOnInItsNextAttempt(t *testing.T) {
	t.Parallel()
	var late atomic.Bool // a minute has passed
	w := newWorld(t, func(c *graph.Config) {
		c.Now = func() time.Time {
			if late.Load() {
				return time.Now().Add(time.Minute)
			}
			return time.Now()
		}
	})
	project := w.project("hello")
	_, build := w.push(project)
	type log struct {
		Attempt, Text, NextAttempt string
		Next                       int64
		Done                       bool
	}
	read := func(attempt domain.AttemptID) log {
		ask[any](w, `query($b: ID!, $at: Cursor) { build(id: $b, atLeast: $at) { id } }`, map[string]any{"b": build, "at": w.head().String()})
		return ask[struct{ BuildLog log }](w, `query($b: ID!, $a: ID) { buildLog(build: $b, attempt: $a) { attempt text next done nextAttempt } }`,
			map[string]any{"b": build, "a": attempt}).BuildLog
	}
	first, second := domain.NewAttemptID(string(build), 1), domain.NewAttemptID(string(build), 2)
	w.do(project, domain.ClaimBuild{Build: build, Worker: "wrk_1", Incarnation: "i1"})
	must(t, w.records.logs.Append(t.Context(), first, "build", 0, []byte("one\n")))
	must(t, w.records.logs.Append(t.Context(), first, "build", 10, []byte("two\n")))
	w.do(project, domain.LoseBuildAttempt{Attempt: first, Reason: "silent"})
	if got, want := read(first), (log{Attempt: string(first), Text: "one\n", Next: 4}); got != want {
		t.Errorf("lost, and the next one hasn't begun: got %+v, want %+v", got, want)
	}
	late.Store(true)
	if got, want := read(first), (log{Attempt: string(first), Text: "one\n\n[pipeops: 6 bytes of output are lost]\ntwo\n", Next: 14}); got != want {
		t.Errorf("after a while: got %+v, want %+v", got, want)
	}
	w.do(project, domain.ClaimBuild{Build: build, Worker: "wrk_1", Incarnation: "i1"})
	if got := read(first); !got.Done || got.NextAttempt != string(second) {
		t.Errorf("the next one has begun: got %+v", got)
	}
	if got := read(second); got.Done || got.NextAttempt != "" {
		t.Errorf("of the next one: got %+v", got)
	}
}

func TestWorkersAreListedWithWhatTheyRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := w.records.claims.Beat(t.Context(), beat("wrk_1", "i1", 2, "bld_1.1"))
	must(t, err)
	got := ask[struct {
		Workers []struct {
			ID, Class, Incarnation string
			Slots                  int
			Running                []string
		}
	}](w, `{ workers { id class incarnation slots running lastSeen stopping } }`, nil).Workers
	if len(got) != 1 || got[0].ID != "wrk_1" || got[0].Slots != 2 || len(got[0].Running) != 1 || got[0].Running[0] != "bld_1.1" {
		t.Errorf("got %+v", got)
	}
}

func TestWithoutAGoodTokenThereIsNoAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, header := range []string{"", "Bearer", "Bearer ", "Bearer nonsense", "Basic " + w.token, w.token} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.server.URL+"/graphql", strings.NewReader(`{"query":"{ head }"}`))
		must(t, err)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", header)
		resp, err := http.DefaultClient.Do(r)
		must(t, err)
		var answer struct {
			Data   any       `json:"data"`
			Errors []problem `json:"errors"`
		}
		must(t, json.NewDecoder(resp.Body).Decode(&answer))
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized || answer.Data != nil || answer.Errors[0].Extensions.Code != "UNAUTHENTICATED" {
			t.Errorf("%q: got %s %+v", header, resp.Status, answer)
		}
	}
	must(t, w.records.tokens.Revoke(t.Context(), w.id))
	w.refused("UNAUTHENTICATED", `{ head }`, nil)
}

func TestABrowserSignsInWithACookie(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	browser := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer browser.CloseIdleConnections()
	get := func(method, path, body string, cookies ...*http.Cookie) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, w.server.URL+path, strings.NewReader(body))
		must(t, err)
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if path == "/graphql" {
			r.Header.Set("Content-Type", "application/json")
		}
		for _, c := range cookies {
			r.AddCookie(c)
		}
		resp, err := browser.Do(r)
		must(t, err)
		_ = resp.Body.Close()
		return resp
	}
	for _, resp := range []*http.Response{get("POST", "/login", "token="+w.token), get("GET", "/some/page?token="+w.token+"&x=1", "")} {
		cookies := resp.Cookies()
		if len(cookies) != 1 || !cookies[0].HttpOnly || !cookies[0].Secure || cookies[0].SameSite != http.SameSiteStrictMode {
			t.Fatalf("%s: got cookies %v", resp.Status, cookies)
		}
		if resp.StatusCode == http.StatusSeeOther && resp.Header.Get("Location") != "/some/page?x=1" {
			t.Errorf("the token leads to %s", resp.Header.Get("Location"))
		}
		if got := get("POST", "/graphql", `{"query":"{ head }"}`, cookies...); got.StatusCode != http.StatusOK {
			t.Errorf("with the cookie: got %s", got.Status)
		}
	}
	if resp := get("POST", "/login", "token=nonsense"); resp.StatusCode != http.StatusUnauthorized || len(resp.Cookies()) != 0 {
		t.Errorf("with a wrong token: got %s, %v", resp.Status, resp.Cookies())
	}
	if resp := get("GET", "/page?token=nonsense", ""); resp.Header.Get("Location") != "/page" || len(resp.Cookies()) != 0 {
		t.Errorf("got %s to %q, %v", resp.Status, resp.Header.Get("Location"), resp.Cookies())
	}
	for origin, want := range map[string]int{"https://evil.test": 403, w.server.URL: 400, "https://pipeops.test": 400} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.server.URL+"/graphql", strings.NewReader(`{`))
		must(t, err)
		r.Header = http.Header{"Origin": {origin}, "Content-Type": {"application/json"}, "Authorization": {"Bearer " + w.token}}
		resp, err := browser.Do(r)
		must(t, err)
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("from a page of %s: got %s, want %d", origin, resp.Status, want)
		}
	}
	if resp := get("DELETE", "/login", ""); len(resp.Cookies()) != 1 || resp.Cookies()[0].MaxAge >= 0 {
		t.Errorf("signing out: got %v", resp.Cookies())
	}
	if resp := get("GET", "/login", ""); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("got %s", resp.Status)
	}
}

func TestProjectsComeInPagesByNameOfWhatOneMaySee(t *testing.T) {
	t.Parallel()
	var hidden sync.Map
	w := newWorld(t, func(c *graph.Config) {
		c.MayRead = func(_ context.Context, _ string, p domain.ProjectID) bool { _, is := hidden.Load(p); return !is }
	})
	for _, name := range []string{"e", "a", "d", "b", "c"} {
		if id := w.project(name); name == "b" || name == "c" {
			hidden.Store(id, true)
		}
	}
	type page struct {
		Projects []struct{ Name string }
		Status   []struct{ ProjectName string }
	}
	const query = `query($first: Int!, $after: String) { projects(first: $first, after: $after) { name } status(first: $first, after: $after) { projectName } }`
	for _, c := range []struct {
		after, want string
	}{{"", "[{a} {d}]"}, {"a", "[{d} {e}]"}, {"d", "[{e}]"}, {"e", "[]"}} {
		got := ask[page](w, query, map[string]any{"first": 2, "after": c.after})
		if fmt.Sprint(got.Projects) != c.want || fmt.Sprint(got.Status) != c.want {
			t.Errorf("after %q: %v and %v, want %s", c.after, got.Projects, got.Status, c.want)
		}
	}
	for _, first := range []string{"0", "501"} {
		w.refused("BAD_INPUT", `{ projects(first: `+first+`) { name } }`, nil)
		w.refused("BAD_INPUT", `{ status(first: `+first+`) { projectName } }`, nil)
	}
}
