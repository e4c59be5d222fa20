package projections_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
	"github.com/pipeops/pipeops/projections"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childOf); url != "" {
		childMain(url)
	}
	goleak.VerifyTestMain(m)
}

// world is a database with a store, a way to let things happen, and the keys of what is personal.
type world struct {
	t        testing.TB
	app      string
	owner    *pgxpool.Pool
	store    *eventstore.Store
	commands *commands.Handler
	subjects *seal.Subjects

	now         time.Time
	projects    []domain.ProjectID
	builds      []domain.BuildID
	deployments []domain.DeploymentID
	pushes      int
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	url := testenv.Postgres(tb)
	app, err := migrations.Up(tb.Context(), url, slog.New(slog.DiscardHandler))
	must(tb, err)
	w := &world{t: tb, app: app, now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	w.owner, err = pgxpool.New(tb.Context(), url)
	must(tb, err)
	tb.Cleanup(w.owner.Close)
	w.store = w.open()
	master, err := seal.LoadMaster(filepath.Join(tb.TempDir(), "master.key"))
	must(tb, err)
	keys, err := seal.Open(tb.Context(), master, records.NewKeys(w.store.Pool()))
	must(tb, err)
	w.subjects = seal.NewSubjects(keys, records.NewSubjects(w.store.Pool()))
	w.commands, err = commands.New(commands.Config{Store: w.store, Sealer: w.subjects, Log: w.log()})
	must(tb, err)
	return w
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func (w *world) log() *slog.Logger { return slog.New(slog.NewTextHandler(w.t.Output(), nil)) }

// open gives a running store, as one more process would have.
func (w *world) open() *eventstore.Store {
	w.t.Helper()
	s, err := eventstore.Open(w.t.Context(), eventstore.Config{URL: w.app, Log: w.log()})
	must(w.t, err)
	w.t.Cleanup(s.Close)
	running(w.t, s.Run)
	return s
}

// running runs a service until the test ends, or stop is called.
func running(tb testing.TB, run func(context.Context) error) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancelCause(tb.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel(nil)
		if err := <-done; err != nil {
			tb.Error(err)
		}
	}
	tb.Cleanup(stop)
	return stop
}

// projector gives one on a store, not yet running.
func (w *world) projector(s *eventstore.Store) *projections.Projector {
	w.t.Helper()
	p, err := projections.New(w.config(s))
	must(w.t, err)
	return p
}

func (w *world) config(s *eventstore.Store) projections.Config {
	return projections.Config{
		Store: s, Opener: w.subjects.OpenField, Leader: records.NewLeaders(s.Pool(), w.log()), Log: w.log(),
		RetryStopped: 50 * time.Millisecond, Patience: 20 * time.Second,
	}
}

// unready names the read models that can't be answered from yet.
func unready(tb testing.TB, p *projections.Projector) (names []string) {
	tb.Helper()
	status, err := p.Status(tb.Context())
	must(tb, err)
	for _, s := range status {
		if s.Unready(projections.Late) != "" {
			names = append(names, s.Name)
		}
	}
	return names
}

func newID(prefix string) string { return prefix + "_" + uuid.Must(uuid.NewV7()).String() }

// try lets somebody want something; a refusal is an answer.
func (w *world) try(project domain.ProjectID, cmd domain.Command) []domain.Recorded {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	result, err := w.commands.Execute(w.t.Context(), cmd, commands.Meta{CommandID: uuid.NewString(), Actor: "act_1", At: w.now, Project: project})
	if _, refused := errors.AsType[*domain.Refusal](err); refused {
		return nil
	}
	must(w.t, err)
	return result.Events
}

// project creates one with a service and an environment.
func (w *world) project(name string) domain.ProjectID {
	w.t.Helper()
	id := domain.ProjectID(newID("prj"))
	events := w.try(id, domain.CreateProject{
		ID: id, Name: name, Settings: domain.ProjectSettings{Branch: "main", Registry: "registry.test"},
		Services:     []domain.NewService{{ID: domain.ServiceID(newID("svc")), Name: name, Spec: domain.DefaultSpec()}},
		Environments: []domain.NewEnvironment{{ID: domain.EnvironmentID(newID("env")), Name: "production"}},
	})
	if len(events) == 0 {
		w.t.Fatalf("project %s was refused", name)
	}
	w.projects = append(w.projects, id)
	return id
}

// push lets one arrive, and what follows from it by policy.
func (w *world) push(project domain.ProjectID, ref string) domain.PushID {
	w.t.Helper()
	w.pushes++
	sum := sha256.Sum256(fmt.Append(nil, project, ref, w.pushes))
	commit := hex.EncodeToString(sum[:20])
	id := domain.PushID(newID("psh"))
	person := func(text string) domain.Personal { return domain.Personal{Text: text, Subject: "person-1"} }
	w.follow(w.try(project, domain.ReceivePush{
		Push: id, Project: project, Source: "github", Delivery: strconv.Itoa(w.pushes), Kind: "push", Ref: ref, Commit: commit, Body: commit,
		Pusher: person("ada"), Author: person("Ada <ada@example.org>"), Message: person("fix it"), Time: domain.At(w.now),
	}))
	return id
}

// follow does what follows from events by policy.
func (w *world) follow(events []domain.Recorded) {
	w.t.Helper()
	for _, r := range events {
		e, err := r.Decode()
		must(w.t, err)
		switch e := e.(type) {
		case domain.BuildRequested:
			w.builds = append(w.builds, e.Build)
		case domain.DeploymentRequested:
			w.deployments = append(w.deployments, e.Deployment)
		}
		if cmd, follows := domain.Follow(r, e, newID); follows {
			w.follow(w.try(r.ProjectID, cmd))
		}
	}
}

// build folds a build.
func (w *world) build(id domain.BuildID) domain.Build {
	w.t.Helper()
	s, _, err := w.commands.Load(w.t.Context(), domain.ClaimBuild{Build: id})
	must(w.t, err)
	return *domain.Of[domain.Build](s, domain.BuildStream(id))
}

// deployment folds a deployment.
func (w *world) deployment(id domain.DeploymentID) domain.Deployment {
	w.t.Helper()
	s, _, err := w.commands.Load(w.t.Context(), domain.ClaimDeployment{Deployment: id})
	must(w.t, err)
	return *domain.Of[domain.Deployment](s, domain.DeploymentStream(id))
}

// workOnBuild claims it, or reports what its worker could report next.
func (w *world) workOnBuild(id domain.BuildID, item domain.Event) {
	w.t.Helper()
	b := w.build(id)
	if !b.Running {
		w.try(b.Request.Project, domain.ClaimBuild{Build: id, Worker: "wrk_1", Incarnation: "inc_1"})
		return
	}
	w.report(b.Attempt(), b.Sequence+1, item)
}

func (w *world) workOnDeployment(id domain.DeploymentID, item domain.Event) {
	w.t.Helper()
	d := w.deployment(id)
	if !d.Running {
		w.try(d.Request.Project, domain.ClaimDeployment{Deployment: id, Worker: "wrk_2", Incarnation: "inc_2", At: w.now})
		return
	}
	w.report(d.Attempt(), d.Sequence+1, item)
}

func (w *world) report(a domain.AttemptID, sequence int64, item domain.Event) {
	w.t.Helper()
	if item == nil { // it was only to be claimed
		return
	}
	w.now = w.now.Add(time.Second)
	_, err := w.commands.Report(w.t.Context(), a, sequence, []commands.Item{{Event: item, At: w.now}}, "wrk_1")
	if _, refused := errors.AsType[*domain.Refusal](err); refused {
		return
	}
	must(w.t, err)
	var ids []string
	for i := range 8 { // more than an item ever leads to
		ids = append(ids, domain.EventID(domain.ReportCommandID(a, sequence), i))
	}
	events, err := w.store.Find(w.t.Context(), ids...)
	must(w.t, err)
	w.follow(events)
}

// succeed takes a build to its image, and live where the branch is followed.
func (w *world) succeed(id domain.BuildID) {
	w.t.Helper()
	digest := "sha256:" + w.build(id).Request.Commit
	w.workOnBuild(id, nil)
	for _, item := range []domain.Event{
		domain.SourceFetched{Commit: w.build(id).Request.Commit, Files: 3, Bytes: 2000, Duration: 120},
		domain.LayerBuilt{Digest: "sha256:1", Name: "[1/2] RUN make", Duration: 2400},
		domain.ImagePushed{Reference: w.build(id).Request.Image + "@" + digest, Digest: digest, Platforms: []string{"linux/amd64"}, SizeBytes: 5 << 20},
		domain.ImageTagged{Reference: "registry.test/hello:1", Digest: digest},
		domain.WorkspaceRemoved{},
		domain.BuildSucceeded{Digest: digest, Duration: 61_000},
	} {
		w.workOnBuild(id, item)
	}
}

// random lets one random thing happen.
func (w *world) random(r *rand.Rand) {
	w.t.Helper()
	project := w.projects[r.IntN(len(w.projects))]
	switch n := r.IntN(20); {
	case n == 0 && len(w.projects) < 4:
		w.project(fmt.Sprintf("app-%d", len(w.projects)))
	case n == 1:
		w.configure(r, project)
	case n <= 4:
		w.push(project, []string{"refs/heads/main", "refs/heads/main", "refs/heads/main", "refs/tags/v1", "refs/heads/next"}[r.IntN(5)])
	case n <= 12 && len(w.builds) > 0:
		w.randomBuild(r, pick(r, w.builds))
	case len(w.deployments) > 0:
		w.randomDeployment(r, pick(r, w.deployments))
	}
}

// pick prefers what is young: the old is over, mostly.
func pick[T any](r *rand.Rand, all []T) T { return all[max(0, len(all)-1-r.IntN(3))] }

func (w *world) configure(r *rand.Rand, project domain.ProjectID) {
	spec := domain.DefaultSpec()
	spec.Replicas = 1 + r.IntN(3)
	spec.Port = 8000 + r.IntN(100)
	cmd := domain.ConfigureProject{ID: project, Settings: &domain.ProjectSettings{Branch: "main", Registry: "registry.test"}}
	switch r.IntN(3) {
	case 0:
		cmd.Environments = []domain.NewEnvironment{{ID: domain.EnvironmentID(newID("env")), Name: fmt.Sprintf("env-%d", r.IntN(3)), Branch: "next"}}
	case 1:
		cmd.Services = []domain.NewService{{ID: domain.ServiceID(newID("svc")), Name: fmt.Sprintf("svc-%d", r.IntN(3)), Spec: spec}}
	case 2:
		w.try(project, domain.RotateWebhookSecret{ID: project, Provider: "github", Revision: 1 + r.IntN(3)})
	}
	w.try(project, cmd)
}

func (w *world) randomBuild(r *rand.Rand, id domain.BuildID) {
	if r.IntN(8) == 0 {
		w.succeed(id)
		return
	}
	digest := "sha256:" + w.build(id).Request.Commit
	w.workOnBuild(id, []domain.Event{
		domain.LayerCached{Digest: "sha256:1", Name: "[1/2] COPY"},
		domain.LayerBuilt{Digest: "sha256:2", Name: "[2/2] RUN", Duration: 1500},
		domain.BuildArgsFiltered{Passed: []string{"A"}, Dropped: []string{"B"}},
		domain.ImageBuilt{Steps: 4, Cached: 1, Duration: 900},
		domain.ImagePushed{Reference: w.build(id).Request.Image + "@" + digest, Digest: digest, SizeBytes: 12345},
		domain.ImageTagged{Reference: "registry.test/x:1", Digest: digest},
		domain.BuildSucceeded{Digest: digest, Duration: 3000},
		domain.ImagePushed{Reference: w.build(id).Request.Image + "@" + digest, Digest: digest, SizeBytes: 12345},
		domain.ImageTagged{Reference: "registry.test/x:1", Digest: digest},
		domain.BuildSucceeded{Digest: digest, Duration: 3000},
		domain.AttemptLost{Attempt: w.attempt(id), Reason: "no heartbeat"},
		domain.BuildFailed{Diagnosis: diagnosis("Build failed")},
	}[r.IntN(12)])
	if r.IntN(20) == 0 && len(w.builds) > 1 {
		b := w.build(id)
		w.try(b.Request.Project, domain.SupersedeBuild{Build: id, By: w.builds[len(w.builds)-1]})
	}
}

func (w *world) attempt(id domain.BuildID) domain.AttemptID { b := w.build(id); return b.Attempt() }

func (w *world) randomDeployment(r *rand.Rand, id domain.DeploymentID) {
	d := w.deployment(id)
	w.workOnDeployment(id, []domain.Event{
		domain.ManifestsApplied{Namespace: d.Request.Namespace, Objects: []string{"Deployment/x"}, Changed: 1},
		domain.RolloutProgressed{Wanted: 2, Updated: 1, Ready: r.IntN(3), Available: r.IntN(3), Message: "waiting\x00"},
		domain.DeploymentSucceeded{Digest: "sha256:x", Available: 2, Address: "x.svc:80", Duration: 2000},
		domain.DeploymentSucceeded{Digest: "sha256:x", Available: 2, Address: "x.svc:80", Duration: 2000},
		domain.DeploymentFailed{Diagnosis: diagnosis("Deployment failed")},
		domain.RolledBack{To: "rel_1", Available: 1, Duration: 100},
		domain.RollbackFailed{Diagnosis: diagnosis("Rollback failed")},
		domain.AttemptLost{Attempt: d.Attempt(), Reason: "no heartbeat"},
	}[r.IntN(8)])
	if r.IntN(10) == 0 {
		w.follow(w.try(d.Request.Project, domain.RequestDeployment{
			Project: d.Request.Project, Environment: d.Request.Environment, Service: d.Request.Service,
			Deployment: domain.DeploymentID(newID("dep")), Rollback: true, Lift: r.IntN(2) == 0, Reason: "rollback",
		}))
	}
}

func diagnosis(title string) domain.Diagnosis {
	return domain.Diagnosis{Code: "TEST", Title: title, Error: "it broke", Reason: "a test", Fixes: []string{"mend it"}}
}

func (w *world) head() domain.Cursor {
	w.t.Helper()
	c, err := w.store.Head(w.t.Context())
	must(w.t, err)
	return c
}

// answer is all that the read models say.
type answer struct {
	Projects    []projections.Project
	Status      []projections.ServiceStatus
	Builds      []projections.Build
	Deployments []projections.Deployment
	Pushes      []projections.Push
	Timelines   []*projections.Timeline
}

func ask(tb testing.TB, q *projections.Queries, at projections.At) (a answer) {
	tb.Helper()
	ctx := tb.Context()
	var err error
	a.Projects, err = q.Projects(ctx, projections.Names{}, at)
	must(tb, err)
	a.Status, err = q.StatusOf(ctx, a.Projects, at)
	must(tb, err)
	for _, p := range a.Projects {
		b, err := q.Builds(ctx, p.ID, "", projections.Page{}, at)
		must(tb, err)
		d, err := q.Deployments(ctx, p.ID, "", "", projections.Page{}, at)
		must(tb, err)
		u, err := q.Pushes(ctx, p.ID, true, projections.Page{}, at)
		must(tb, err)
		l, err := q.Timeline(ctx, p.ID, "", at)
		must(tb, err)
		a.Builds, a.Deployments, a.Pushes = slices.Concat(a.Builds, b), slices.Concat(a.Deployments, d), slices.Concat(a.Pushes, u)
		a.Timelines = append(a.Timelines, l)
	}
	return a
}
