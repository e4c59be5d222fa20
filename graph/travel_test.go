package graph_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/projections"
)

// known is what there is to ask for.
type known struct {
	mu          sync.Mutex
	projects    []domain.ProjectID
	pushes      []domain.PushID
	builds      []domain.BuildID
	deployments []domain.DeploymentID
}

func (k *known) note(e domain.Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch e := e.(type) {
	case domain.ProjectCreated:
		k.projects = append(k.projects, e.Project)
	case domain.PushReceived:
		k.pushes = append(k.pushes, e.Push)
	case domain.BuildRequested:
		k.builds = append(k.builds, e.Build)
	case domain.DeploymentRequested:
		k.deployments = append(k.deployments, e.Deployment)
	}
}

func among[T ~string](k *known, r *rand.Rand, of func() []T) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := of()
	if len(all) == 0 {
		return "none"
	}
	return string(all[r.IntN(len(all))])
}

// author lets things happen to one project, as its people, workers and policies would.
type author struct {
	*world

	known       *known
	r           *rand.Rand
	project     domain.ProjectID
	environment domain.EnvironmentID
	service     domain.ServiceID
	builds      []domain.BuildID
	deployments []domain.DeploymentID
	pushes      int
	now         time.Time
}

// try executes a command and what follows from it; a refusal is an answer.
func (a *author) try(cmd domain.Command, cause domain.Recorded) {
	a.now = a.now.Add(time.Second)
	meta := commands.Meta{CommandID: uuid.NewString(), Actor: "token:t1", At: a.now, Project: a.project, CorrelationID: cause.CorrelationID, CausationID: cause.ID}
	if cause.ID != "" {
		meta.Actor = "policy"
	}
	result, err := a.commands.Execute(a.t.Context(), cmd, meta)
	a.after(result, err)
}

func (a *author) after(result commands.Result, err error) {
	if _, refused := errors.AsType[*domain.Refusal](err); refused {
		return
	}
	must(a.t, err)
	for _, r := range result.Events {
		e, err := r.Decode()
		must(a.t, err)
		a.known.note(e)
		switch e := e.(type) {
		case domain.BuildRequested:
			a.builds = append(a.builds, e.Build)
		case domain.DeploymentRequested:
			a.deployments = append(a.deployments, e.Deployment)
		}
		if cmd, follows := domain.Follow(r, e, newID); follows {
			a.try(cmd, r)
		}
	}
}

func (a *author) report(id domain.AttemptID, items ...domain.Event) {
	stored, over, err := a.commands.Progress(a.t.Context(), id)
	must(a.t, err)
	if over != "" {
		return
	}
	for i, item := range items {
		a.now = a.now.Add(time.Second)
		events, err := reportItem(a.t.Context(), a.store, a.commands, id, stored+int64(i)+1, commands.Item{Event: item, At: a.now})
		a.after(commands.Result{Events: events}, err)
	}
}

// young picks one of the newest three.
func young[T any](r *rand.Rand, all []T) T { return all[max(0, len(all)-1-r.IntN(3))] }

func (a *author) live() {
	switch n := a.r.IntN(20); {
	case n < 3 || len(a.builds) == 0:
		a.pushes++
		commit := fmt.Sprintf("%s%032d", string(a.project[len(a.project)-8:]), a.pushes)
		ref := []string{"refs/heads/main", "refs/heads/main", "refs/heads/main", "refs/tags/v1"}[a.r.IntN(4)]
		a.try(domain.ReceivePush{
			Push: domain.PushID(newID("psh")), Project: a.project, Source: "github", Delivery: strconv.Itoa(a.pushes), Kind: "push", Ref: ref,
			Commit: commit, Body: commit, Pusher: domain.Personal{Text: "ada", Subject: "p1"}, Message: domain.Personal{Text: "fix", Subject: "p1"},
		}, domain.Recorded{})
	case n == 3:
		spec := domain.DefaultSpec()
		spec.Replicas = 1 + a.r.IntN(4)
		a.try(domain.ConfigureProject{ID: a.project, Specs: map[domain.ServiceID]domain.ServiceSpec{a.service: spec}}, domain.Recorded{})
	case n == 4:
		a.try(domain.SupersedeBuild{Build: young(a.r, a.builds), By: a.builds[len(a.builds)-1]}, domain.Recorded{})
	case n == 5:
		a.try(domain.RequestDeployment{
			Project: a.project, Environment: a.environment, Service: a.service, Deployment: domain.DeploymentID(newID("dep")),
			Rollback: true, Lift: true, Reason: "rollback",
		}, domain.Recorded{})
	case n < 13 || len(a.deployments) == 0:
		a.build(young(a.r, a.builds))
	default:
		a.deploy(young(a.r, a.deployments))
	}
}

func (a *author) build(id domain.BuildID) {
	state, _, err := a.commands.Load(a.t.Context(), domain.ClaimBuild{Build: id})
	must(a.t, err)
	b := domain.Of[domain.Build](state, domain.BuildStream(id))
	if !b.Running {
		a.try(domain.ClaimBuild{Build: id, Worker: "wrk_1", Incarnation: "i"}, domain.Recorded{})
		return
	}
	digest := "sha256:" + b.Request.Commit
	image := []domain.Event{
		domain.ImagePushed{Reference: b.Request.Image + "@" + digest, Digest: digest},
		domain.ImageTagged{Reference: "r:1", Digest: digest},
		domain.BuildSucceeded{Digest: digest, Duration: 900},
	}
	switch a.r.IntN(8) {
	case 0:
		a.report(b.Attempt(), domain.AttemptLost{Attempt: b.Attempt(), Reason: "no heartbeat"})
	case 1:
		a.report(b.Attempt(), domain.BuildFailed{Diagnosis: broken})
	case 2, 3:
		a.report(b.Attempt(), domain.LayerCached{Name: "[1/2] COPY"}, domain.LayerBuilt{Name: "[2/2] RUN", Duration: 10})
	default:
		a.report(b.Attempt(), image...)
	}
}

var broken = domain.Diagnosis{Code: "TEST", Title: "it broke", Error: "<it & that>", Reason: "a test", Fixes: []string{"mend it"}, ReleaseAtFault: true}

func (a *author) deploy(id domain.DeploymentID) {
	state, _, err := a.commands.Load(a.t.Context(), domain.ClaimDeployment{Deployment: id})
	must(a.t, err)
	d := domain.Of[domain.Deployment](state, domain.DeploymentStream(id))
	if !d.Running {
		a.try(domain.ClaimDeployment{Deployment: id, Worker: "wrk_2", Incarnation: "i", At: a.now}, domain.Recorded{})
		return
	}
	a.report(d.Attempt(), []domain.Event{
		domain.RolloutProgressed{Wanted: 2, Available: a.r.IntN(3)},
		domain.DeploymentSucceeded{Digest: "sha256:x", Available: 2, Address: "x.svc:80"},
		domain.DeploymentSucceeded{Digest: "sha256:x", Available: 2, Address: "x.svc:80"},
		domain.DeploymentFailed{Diagnosis: broken},
		domain.RolledBack{To: "rel_1", Available: 1},
		domain.AttemptLost{Attempt: d.Attempt(), Reason: "no heartbeat"},
	}[a.r.IntN(6)])
}

const (
	allOfBuild      = `{ id push commit branch phase attempts attempt worker reference digest steps cached step diagnosis { code title error fixes } supersededBy position requestedAt waitingSince startedAt finishedAt }`
	allOfDeployment = `{ id environmentName serviceName reason phase attempts attempt progress { wanted available message } behind previous { id commit } release { id build configVersion }
		diagnosis { title } rollbackDiagnosis { title } digest address supersededBy position requestedAt waitingSince startedAt deadline finishedAt }`
	allOfPush = `{ id ref commit pusher author message status reason diagnosis { title } position receivedAt finishedAt builds ` + allOfBuild + ` deployments ` + allOfDeployment + ` }`
	allOfStep = `{ cursor event type at subject text who because diagnosis { title } }`
	allStatus = `{ project environment service release { id commit } digest commit address activatedAt phase latest ` + allOfDeployment + ` quarantined { release why } }`
)

// question asks one thing of every kind that can be asked as of a moment.
func (k *known) question(r *rand.Rand, a []*author) (query string, vars map[string]any) {
	of := a[r.IntN(len(a))]
	vars = map[string]any{"project": string(of.project), "environment": string(of.environment), "first": 1 + r.IntN(30)}
	fields := []string{
		`projects(asOf: $asOf) { id name branch version updatedAt services { name spec { replicas } } status { phase commit } lastPush { id status } }`,
		`project(id: $project, asOf: $asOf) { version environments { name } status ` + allStatus + ` lastPush ` + allOfPush + ` }`,
		`status(asOf: $asOf) ` + allStatus,
		`status(project: $project, asOf: $asOf) ` + allStatus,
		`build(id: $build, asOf: $asOf) ` + allOfBuild,
		`builds(project: $project, first: $first, asOf: $asOf) ` + allOfBuild,
		`builds(project: $project, commit: $commit, asOf: $asOf) ` + allOfBuild,
		`deployment(id: $deployment, asOf: $asOf) ` + allOfDeployment,
		`deployments(project: $project, first: $first, asOf: $asOf) ` + allOfDeployment,
		`deployments(project: $project, environment: $environment, first: $first, asOf: $asOf) ` + allOfDeployment,
		`push(id: $push, asOf: $asOf) ` + allOfPush,
		`pushes(project: $project, first: $first, ignored: true, asOf: $asOf) ` + allOfPush,
		`timeline(project: $project, asOf: $asOf) { push ` + allOfPush + ` entries { id position type subject severity text at } }`,
		`timeline(push: $push, asOf: $asOf) { push { id } entries { id position text } }`,
		`why(environment: $environment, asOf: $asOf) { asOf release { id } since more steps ` + allOfStep + ` beside { subject commit outcome text by steps ` + allOfStep + ` } }`,
	}
	field := fields[r.IntN(len(fields))]
	for name, value := range map[string]func() string{
		"$build":      func() string { return among(k, r, func() []domain.BuildID { return k.builds }) },
		"$deployment": func() string { return among(k, r, func() []domain.DeploymentID { return k.deployments }) },
		"$push":       func() string { return among(k, r, func() []domain.PushID { return k.pushes }) },
		"$commit":     func() string { return string(of.project[len(of.project)-8:]) },
	} {
		if strings.Contains(field, name) {
			vars[name[1:]] = value()
		}
	}
	kinds := map[string]string{"project": "ID!", "environment": "ID!", "first": "Int!", "build": "ID!", "deployment": "ID!", "push": "ID!", "commit": "String"}
	declared := []string{"$asOf: Moment"}
	for name := range vars {
		if !strings.Contains(field, "$"+name) {
			delete(vars, name)
			continue
		}
		declared = append(declared, "$"+name+": "+kinds[name])
	}
	return "query(" + strings.Join(declared, ", ") + ") { answer: " + field + " }", vars
}

// taken is an answer with what was asked and the place in the log that it was answered at.
type taken struct {
	query  string
	vars   map[string]any
	answer []byte
	at     domain.Cursor
}

func (w *world) take(query string, vars map[string]any) taken {
	w.t.Helper()
	out := taken{query: query, vars: vars, answer: w.raw(query, vars)}
	var told struct {
		Errors     []problem
		Extensions struct {
			AsOf struct{ Answer domain.Cursor }
		}
	}
	must(w.t, json.Unmarshal(out.answer, &told))
	if out.at = told.Extensions.AsOf.Answer; len(told.Errors) > 0 || out.at.Position == 0 {
		w.t.Errorf("%s %v: got %s", query, vars, out.answer)
	}
	return out
}

func TestEveryAnswerIsGivenAgainByteForByteAsOfItsPlace(t *testing.T) {
	t.Parallel()
	const pairs, seed = 1000, 11
	w := newWorld(t)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	other, err := eventstore.Open(t.Context(), eventstore.Config{URL: w.app, Log: log})
	must(t, err)
	t.Cleanup(other.Close)
	running(t, other.Run)
	second, err := projections.New(projections.Config{Store: other, Opener: w.subjects.OpenField, Leader: records.NewLeaders(other.Pool(), log), Log: log})
	must(t, err)
	running(t, second.Run) // as another serve process would
	changeLeaders := func() {
		_, err := w.owner.Exec(t.Context(), `SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_locks l USING (pid)
			WHERE l.locktype = 'advisory' AND l.granted AND a.state = 'idle' AND a.datname = current_database()`)
		must(t, err)
	}
	k := &known{}
	authors := make([]*author, 3)
	for i := range authors {
		a := &author{world: w, known: k, r: rand.New(rand.NewPCG(seed, uint64(i))), now: w.now}
		a.project = w.project(fmt.Sprint("app-", i))
		state, _, err := w.commands.Load(t.Context(), domain.ConfigureProject{ID: a.project})
		must(t, err)
		p := domain.Of[domain.Project](state, domain.ProjectStream(a.project))
		a.environment, a.service = p.Environments[0].ID, p.Services[0].ID
		authors[i] = a
	}
	ask[any](w, `query($at: Cursor) { projects(atLeast: $at) { status { phase } lastPush { builds { id } } } }`, map[string]any{"at": w.head().String()})
	var writers, readers sync.WaitGroup
	over := make(chan struct{})
	for _, a := range authors {
		writers.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					a.live()
				}
			}
		})
	}
	answers := make([][]taken, 2)
	for i := range answers {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(seed, 100+uint64(i)))
			for n := range pairs / len(answers) {
				if i == 0 && n%200 == 99 {
					changeLeaders() // one process or the other goes on
				}
				answers[i] = append(answers[i], w.take(k.question(r, authors)))
			}
		})
	}
	readers.Wait()
	close(over)
	writers.Wait()
	all := slices.Concat(answers...)
	places := map[domain.Cursor]bool{}
	for _, then := range all {
		places[then.at] = true
		then.vars["asOf"] = then.at.String()
		if again := w.raw(then.query, then.vars); string(again) != string(then.answer) {
			t.Fatalf("seed %d: %s %v: then\n%s\nnow\n%s", seed, then.query, then.vars, then.answer, again)
		}
	}
	if len(places) < 100 {
		t.Errorf("the answers are of %d places only: the log hardly moved", len(places))
	}
	t.Logf("%d answers of %d places in a log of %s", len(all), len(places), w.head())
}

func TestAMomentIsACursorOrATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.refused("MOMENT_BEFORE_LOG", `{ projects(asOf: "2020-01-01T00:00:00Z") { id } }`, nil)
	if p.Extensions.Field != "asOf" || p.Extensions.Fix == "" {
		t.Errorf("got %+v", p)
	}
	project := w.project("hello")
	w.push(project)
	const query = `query($asOf: Moment) { answer: project(name: "hello", asOf: $asOf) { version lastPush { status builds { phase } } } }`
	var times []time.Time
	for r, err := range w.store.Read(t.Context(), eventstore.Query{}) {
		must(t, err)
		times = append(times, r.RecordedAt)
	}
	for _, at := range times {
		place, err := w.store.At(t.Context(), at)
		must(t, err)
		byTime := w.take(query, map[string]any{"asOf": at.In(time.FixedZone("", 3600)).Format(time.RFC3339Nano)})
		byPlace := w.take(query, map[string]any{"asOf": place.String()})
		if byTime.at != place || string(byTime.answer) != string(byPlace.answer) {
			t.Errorf("at %s: got %s\nas of %s: %s", at, byTime.answer, place, byPlace.answer)
		}
	}
	type page struct {
		Events struct {
			Cursor string
			More   bool
			Events []struct{ Cursor string }
		}
	}
	place, err := w.store.At(t.Context(), times[len(times)-2])
	must(t, err)
	until := ask[page](w, `query($u: Moment) { events(until: $u) { cursor more events { cursor } } }`, map[string]any{"u": times[len(times)-2].Format(time.RFC3339Nano)}).Events
	if until.Cursor != place.String() || until.More || len(until.Events) != int(place.Position) {
		t.Errorf("until %s: got %+v", place, until)
	}
	both := ask[map[string]any](w, `query($a: Moment) { then: project(name: "hello", asOf: $a) { id } now: project(name: "hello") { id } }`, map[string]any{"a": "1.1"})
	if both["then"] != nil || both["now"] == nil {
		t.Errorf("each as of its own moment: got %v", both)
	}
	for _, c := range []struct{ code, field, query string }{
		{"MOMENT_BAD", "asOf", `{ projects(asOf: "yesterday") { id } }`},
		{"MOMENT_BAD", "asOf", `{ projects(asOf: "42") { id } }`},
		{"MOMENT_BAD", "asOf", `{ projects(asOf: "2026-11-24T03:00:00") { id } }`},
		{"MOMENT_BAD", "asOf", `{ projects(asOf: "") { id } }`},
		{"MOMENT_AHEAD", "asOf", `{ projects(asOf: "2126-01-01T00:00:00Z") { id } }`},
		{"MOMENT_BEFORE_LOG", "until", `{ events(until: "1999-01-01T00:00:00Z") { cursor } }`},
		{"CURSOR_AHEAD", "asOf", `{ status(asOf: "1.999999") { phase } }`},
		{"CURSOR_AHEAD", "asOf", `{ build(id: "bld_1", asOf: "2.1") { id } }`},
		{"CURSOR_AHEAD", "atLeast", `{ project(name: "hello", atLeast: "1.999999") { id } }`},
	} {
		if p := w.refused(c.code, c.query, nil); p.Extensions.Field != c.field || p.Message == "" || p.Extensions.Fix == "" {
			t.Errorf("%s: got %+v, want field %s and a fix", c.query, p, c.field)
		}
	}
	last := w.head()
	_, err = w.owner.Exec(t.Context(), "SELECT pipeops.raise_log_epoch()")
	must(t, err)
	w.project("after")
	forked := domain.Cursor{LogEpoch: last.LogEpoch, Position: last.Position + 1}
	if p := w.refused("CURSOR_FORKED", `query($a: Moment) { projects(asOf: $a) { id } }`, map[string]any{"a": forked.String()}); p.Extensions.Field != "asOf" {
		t.Errorf("got %+v", p)
	}
	if then := w.take(query, map[string]any{"asOf": last.String()}); then.at != last {
		t.Errorf("before the fork: got %s", then.answer)
	}
}
