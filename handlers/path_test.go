// Package handlers_test drives the control plane as a whole (commands,
// policies, scheduler, claims, ingest) on a real store, with real workers
// whose work is scripted.
package handlers_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/claims"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/handlers/ingest"
	"github.com/pipeops/pipeops/handlers/policies"
	"github.com/pipeops/pipeops/handlers/relay"
	"github.com/pipeops/pipeops/handlers/schedule"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/internal/worker"
	"github.com/pipeops/pipeops/migrations"
)

// plane is one control plane.
type plane struct {
	store    *eventstore.Store
	commands *commands.Handler
	bus      bus.Bus
}

func newID(prefix string) string { return prefix + "_" + uuid.Must(uuid.NewV7()).String() }

// world is a database, a bus and any number of control planes and workers.
type world struct {
	t     *testing.T
	owner string // address of the login that owns the schema
	app   string
	home  string
	open  func() bus.Bus
	log   *slog.Logger
}

func newWorld(t *testing.T, open func() bus.Bus) *world {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	owner := testenv.Postgres(t)
	app, err := migrations.Up(t.Context(), owner, log)
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, owner: owner, app: app, home: t.TempDir(), open: open, log: log}
}

func inProcess(t *testing.T) func() bus.Bus {
	t.Helper()
	b := bus.NewInProcess(bus.Config{})
	t.Cleanup(func() { _ = b.Close() })
	return func() bus.Bus { return b }
}

func overAMQP(t *testing.T) func() bus.Bus {
	t.Helper()
	url := testenv.AMQP(t)
	return func() bus.Bus {
		b, err := bus.NewAMQP(t.Context(), bus.AMQPConfig{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return b
	}
}

// goes runs a service until the test ends.
func (w *world) goes(name string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil && context.Cause(ctx) == nil {
			w.t.Errorf("%s: %v", name, err)
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel(errors.New("test ended"))
		<-done
	})
	w.t.Cleanup(stop)
	return stop
}

// core opens the log and the keys; nothing runs on them yet.
func (w *world) core() (*plane, *seal.Keyring) {
	w.t.Helper()
	store, err := eventstore.Open(w.t.Context(), eventstore.Config{URL: w.app, Log: w.log})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(store.Close)
	master, err := seal.LoadMaster(filepath.Join(w.home, "master.key"))
	if err != nil {
		w.t.Fatal(err)
	}
	keys, err := seal.Open(w.t.Context(), master, records.NewKeys(store.Pool()))
	if err != nil {
		w.t.Fatal(err)
	}
	h, err := commands.New(commands.Config{Store: store, Sealer: seal.NewSubjects(keys, records.NewSubjects(store.Pool())), Log: w.log})
	if err != nil {
		w.t.Fatal(err)
	}
	w.goes("store", store.Run)
	return &plane{store, h, w.open()}, keys
}

// plane starts a control plane.
func (w *world) plane() *plane {
	w.t.Helper()
	p, keys := w.core()
	store, h, b := p.store, p.commands, p.bus
	leases, leaders := records.NewClaims(store.Pool()), records.NewLeaders(store.Pool(), w.log)
	secrets := func(context.Context, domain.AttemptID, domain.ProjectID, bus.Kind) (map[string]string, error) {
		return map[string]string{"git-token": "s3cret"}, nil
	}
	w.ingest(p, keys)
	w.goes("claims", claims.New(claims.Config{Bus: b, Commands: h, Leases: leases, Keys: keys, Secrets: secrets, Now: time.Now, Log: w.log}).Run)
	w.goes("policies", policies.New(policies.Config{Store: store, Commands: h, Leader: leaders, NewID: newID, Now: time.Now, Log: w.log}).Run)
	w.goes("schedule", schedule.New(schedule.Config{Store: store, Commands: h, Bus: b, Leader: leaders, Leases: leases, Now: time.Now, Log: w.log, Lease: 3 * time.Second}).Run)
	w.goes("relay", relay.New(relay.Config{Store: store, Bus: b, Leader: leaders, Log: w.log}).Run)
	return p
}

func (w *world) ingest(p *plane, keys *seal.Keyring) {
	logs := records.NewLogChunks(p.store.Pool())
	w.goes("ingest", ingest.New(ingest.Config{Bus: p.bus, Commands: p.commands, Keys: keys, Logs: logs, Now: time.Now, Log: w.log}).Run)
}

// worker enrolls and starts one.
func (w *world) worker(p *plane, kind bus.Kind, do func(context.Context, *worker.Attempt) error) (stop func()) {
	w.t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	id := domain.WorkerID(newID("wrk"))
	p.must(w.t, domain.EnrollWorker{Worker: id, Class: string(kind), PublicKey: public})
	work, err := worker.New(worker.Config{Bus: w.open(), Kind: kind, Worker: id, Key: key, Slots: 2, Log: w.log, Do: do})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.goes("worker", work.Run)
}

func (p *plane) must(t *testing.T, cmd domain.Command) commands.Result {
	t.Helper()
	r, err := p.commands.Execute(t.Context(), cmd, commands.Meta{CommandID: uuid.NewString(), Actor: "test", At: time.Now(), Project: "prj_1"})
	if err != nil {
		t.Fatalf("%T: %v", cmd, err)
	}
	return r
}

func (p *plane) project(t *testing.T) {
	t.Helper()
	p.must(t, domain.CreateProject{
		ID: "prj_1", Name: "hello", Settings: domain.ProjectSettings{Branch: "main", Registry: "reg"},
		Services:     []domain.NewService{{ID: "svc_1", Name: "hello", Spec: domain.DefaultSpec()}},
		Environments: []domain.NewEnvironment{{ID: "env_1", Name: "production"}},
	})
}

func push(commit, delivery string) domain.ReceivePush {
	return domain.ReceivePush{
		Push: domain.PushID(newID("psh")), Project: "prj_1", Source: "github", Delivery: delivery, Kind: "push",
		Ref: "refs/heads/main", Commit: strings.Repeat(commit, 40)[:40], Body: delivery,
		Pusher: domain.Personal{Text: "Ada", Subject: "sub_ada"},
	}
}

// until follows the log until one of the types was recorded n times, and gives all types seen.
func (p *plane) until(t *testing.T, eventType string, n int) (types []string) {
	t.Helper()
	return p.within(t, time.Minute, eventType, n)
}

// within is until with another patience.
func (p *plane) within(t *testing.T, patience time.Duration, eventType string, n int) (types []string) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), patience, fmt.Errorf("no %d. %s", n, eventType))
	defer cancel()
	for batch, err := range p.store.Subscribe(ctx, domain.Cursor{}, eventstore.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range batch.Events {
			types = append(types, r.Type)
			if r.Type == eventType {
				if n--; n == 0 {
					return types
				}
			}
		}
	}
	t.Fatalf("%v; seen %d, at last %v", context.Cause(ctx), len(types), types[max(0, len(types)-100):])
	return nil
}

// build does what a runner would.
func build(ctx context.Context, a *worker.Attempt) error {
	digest := "sha256:" + strings.Repeat("a", 64)
	if a.Secret("git-token") != "s3cret" {
		return errors.New("the secret is missing")
	}
	if a.Grant.Digest == "" {
		a.Report(domain.SourceFetched{Commit: "c"})
		a.Log("build", []byte("hello\n"))
		n := a.Report(domain.ImagePushed{Reference: "reg/hello@" + digest, Digest: digest})
		if err := a.Stored(ctx, n); err != nil {
			return err
		}
	}
	a.Report(domain.ImageTagged{Reference: "reg/hello:c", Digest: digest})
	a.Report(domain.WorkspaceRemoved{})
	a.Report(domain.BuildSucceeded{Digest: digest})
	return nil
}

func deploy(_ context.Context, a *worker.Attempt) error {
	a.Report(domain.ManifestsApplied{Namespace: "n"})
	a.Report(domain.DeploymentSucceeded{Available: 1})
	return nil
}

var path = []string{
	"PushReceived", "RefMoved", "BuildRequested", "BuildStarted", "SourceFetched", "ImagePushed", "ImageTagged", "WorkspaceRemoved",
	"BuildSucceeded", "DeploymentRequested", "DeploymentAdmitted", "DeploymentStarted", "DeploymentClaimed", "ManifestsApplied",
	"DeploymentSucceeded", "ReleaseActivated",
}

func TestAPushGoesThroughWorkersToARelease(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) func() bus.Bus{"in process": inProcess, "over RabbitMQ": overAMQP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, open(t))
			p := w.plane()
			w.worker(p, bus.KindBuild, build)
			w.worker(p, bus.KindDeploy, deploy)
			p.project(t)
			p.must(t, push("a", "1"))
			types := p.until(t, "ReleaseActivated", 1)
			if got := types[slices.Index(types, "PushReceived"):]; !slices.Equal(got, path) {
				t.Errorf("got  %v\nwant %v", got, path)
			}
			p.oneTrace(t, len(path))
		})
	}
}

// oneTrace wants the last n events to belong to one trace.
func (p *plane) oneTrace(t *testing.T, n int) {
	t.Helper()
	var traces []string
	for r, err := range p.store.Read(t.Context(), eventstore.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		traces = append(traces, r.Trace)
	}
	got := slices.Compact(traces[len(traces)-n:])
	if len(got) != 1 || got[0] == "" || domain.Traceparent(got[0]) != got[0] {
		t.Errorf("traces of a push: %q, want one", got)
	}
}

func TestTheSameDeliveryManyTimesOverTwoPlanesIsOnePushAndOneBuild(t *testing.T) {
	t.Parallel()
	w := newWorld(t, overAMQP(t))
	planes := []*plane{w.plane(), w.plane()}
	w.worker(planes[0], bus.KindBuild, build)
	w.worker(planes[1], bus.KindDeploy, deploy)
	planes[0].project(t)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			_, err := planes[i%2].commands.Receive(t.Context(), push("a", "same"), commands.Meta{CommandID: "delivery-same", At: time.Now(), Project: "prj_1"})
			if err != nil {
				t.Errorf("delivery %d: %v", i, err)
			}
		})
	}
	all.Wait()
	types := planes[0].until(t, "ReleaseActivated", 1)
	for _, once := range []string{"PushReceived", "BuildRequested", "ImagePushed", "DeploymentRequested"} {
		n := 0
		for _, have := range types {
			if have == once {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d × %s", n, once)
		}
	}
}

func TestALostRunnersBuildGoesOnElsewhereWithItsImage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p := w.plane()
	p.project(t)
	stuck := make(chan struct{})
	var once sync.Once
	stop := w.worker(p, bus.KindBuild, func(ctx context.Context, a *worker.Attempt) error {
		n := a.Report(domain.ImagePushed{Reference: "reg/hello@sha256:" + strings.Repeat("a", 64), Digest: "sha256:" + strings.Repeat("a", 64)})
		if err := a.Stored(ctx, n); err != nil {
			return err
		}
		once.Do(func() { close(stuck) })
		<-ctx.Done()
		return context.Cause(ctx)
	})
	p.must(t, push("a", "1"))
	select {
	case <-stuck:
	case <-time.After(30 * time.Second):
		t.Fatal("the build did not begin")
	}
	stop()
	w.worker(p, bus.KindBuild, build)
	types := p.until(t, "BuildSucceeded", 1)
	pushed, lost := 0, 0
	for _, have := range types {
		switch have {
		case "ImagePushed":
			pushed++
		case "AttemptLost":
			lost++
		}
	}
	if pushed != 1 || lost != 1 {
		t.Errorf("%d images, %d lost attempts in %v", pushed, lost, types)
	}
}
