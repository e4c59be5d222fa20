package deploy

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/testenv"
)

// service is one service in a namespace of the test's own, with a deployer that watches.
type service struct {
	*Deployer
	kubeconfig string
	request    domain.DeploymentRequested // without release
}

func setup(t *testing.T) *service {
	t.Helper()
	kubeconfig := testenv.Cluster(t)
	s := &service{kubeconfig: kubeconfig, Deployer: watching(t, kubeconfig), request: fresh()}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeoutCause(context.Background(), 30*time.Second, fmt.Errorf("delete namespace %s", s.request.Namespace))
		defer cancel()
		if err := s.client.CoreV1().Namespaces().Delete(ctx, s.request.Namespace, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("delete namespace %s: %v", s.request.Namespace, err)
		}
	})
	return s
}

// watching gives a deployer without worker, whose informers run until the test ends.
func watching(t *testing.T, kubeconfig string) *Deployer {
	t.Helper()
	d, err := newDeployer(kubeconfig, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = d.watcher.Run(ctx) })
	t.Cleanup(func() { stop(nil); running.Wait() })
	return d
}

func id(prefix string) string { return prefix + "_" + uuid.Must(uuid.NewV7()).String() }

func fresh() domain.DeploymentRequested {
	environment := domain.EnvironmentID(id("env"))
	r := domain.DeploymentRequested{
		Deployment: domain.DeploymentID(id("dep")), Project: domain.ProjectID(id("prj")), ProjectName: "deploytest",
		Environment: environment, EnvironmentName: "production", Namespace: domain.Namespace("deploytest", "production", environment),
		Service: domain.ServiceID(id("svc")), ServiceName: "web", Spec: domain.DefaultSpec(), Reason: "push",
	}
	second := domain.Probe{Period: 1, Timeout: 1, Failures: 3}
	r.Spec.Health = domain.Health{Path: "/health", Startup: domain.Probe{Period: 1, Timeout: 1, Failures: 60}, Readiness: second, Liveness: second}
	r.Spec.Strategy = domain.Strategy{Kind: domain.Rolling, MinReady: 1, Deadline: 120}
	r.Spec.CPURequest, r.Spec.MemoryRequest = "5m", "16Mi"
	return r
}

// release is a deployment of a commit that is its own; change may set the rest.
func (s *service) release(t *testing.T, commit string, change func(*domain.ServiceSpec)) domain.DeploymentRequested {
	t.Helper()
	r := s.request
	r.Deployment = domain.DeploymentID(id("dep"))
	if change != nil {
		change(&r.Spec)
	}
	r.Release = domain.NewRelease(r.Service, "bld_x", commit, image(t, commit), 1, r.Spec)
	return r
}

func mode(m string) func(*domain.ServiceSpec) {
	return func(s *domain.ServiceSpec) { s.Variables = map[string]string{"MODE": m} }
}

// recorder is an attempt whose reports are stored at once.
type recorder struct {
	effect func(context.Context) error

	mu     sync.Mutex
	events []domain.Event
	heard  chan struct{} // closed at the next report
}

func (r *recorder) Report(e domain.Event) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	if r.heard != nil {
		close(r.heard)
		r.heard = nil
	}
	return int64(len(r.events))
}

func (r *recorder) Stored(context.Context, int64) error { return nil }

func (r *recorder) Effect(ctx context.Context) error {
	if r.effect != nil {
		return r.effect(ctx)
	}
	return nil
}

// await returns once an event of the type was reported.
func await[E domain.Event](t *testing.T, r *recorder) {
	t.Helper()
	for {
		r.mu.Lock()
		_, ok := find[E](r.events)
		if r.heard == nil {
			r.heard = make(chan struct{})
		}
		heard := r.heard
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-heard:
		case <-time.After(2 * time.Minute):
			t.Fatalf("reported in vain: %s", typesOf(r.events))
		}
	}
}

func find[E domain.Event](events []domain.Event) (e E, ok bool) {
	for _, one := range slices.Backward(events) {
		if e, ok = one.(E); ok {
			return e, true
		}
	}
	return e, false
}

// only gives the last event of a type that must be there.
func only[E domain.Event](t *testing.T, r *recorder) E {
	t.Helper()
	e, ok := find[E](r.events)
	if !ok {
		t.Fatalf("no %T among %s", e, describe(r.events))
	}
	return e
}

func typesOf(events []domain.Event) (out []string) {
	for _, e := range events {
		if _, often := e.(domain.RolloutProgressed); !often {
			out = append(out, domain.TypeOf(e))
		}
	}
	return out
}

func describe(events []domain.Event) string {
	var b strings.Builder
	for _, e := range events {
		text, _ := json.Marshal(e)
		fmt.Fprintf(&b, "\n%s %s", domain.TypeOf(e), text)
	}
	return b.String()
}

// try does one attempt at a deployment.
type try struct {
	n        int // of the attempt, default 1
	epoch    int64
	previous *domain.DeploymentRequested
	rollback bool
	deadline time.Time // default: as the strategy says
	effect   func(context.Context) error
}

func (s *service) grant(r domain.DeploymentRequested, o try) bus.Grant {
	c := domain.DeployContext{Request: r, Deadline: domain.At(time.Now().Add(r.Spec.Strategy.Deadline.Duration()))}
	if !o.deadline.IsZero() {
		c.Deadline = domain.At(o.deadline)
	}
	if o.previous != nil {
		c.Previous = &domain.Activation{Deployment: o.previous.Deployment, Release: o.previous.Release, Spec: o.previous.Spec}
	}
	text, _ := json.Marshal(c)
	return bus.Grant{Attempt: domain.NewAttemptID(string(r.Deployment), max(1, o.n)), FencingEpoch: o.epoch, Context: text, Rollback: o.rollback}
}

func (s *service) try(t *testing.T, r domain.DeploymentRequested, o try) (*recorder, error) {
	t.Helper()
	a := &recorder{effect: o.effect}
	return a, s.do(t.Context(), a, s.grant(r, o))
}

// deployed is a deployment that must succeed.
func (s *service) deployed(t *testing.T, r domain.DeploymentRequested, o try) *recorder {
	t.Helper()
	a, err := s.try(t, r, o)
	if err != nil {
		t.Fatalf("deploy: %v, after %s", err, describe(a.events))
	}
	only[domain.DeploymentSucceeded](t, a)
	return a
}

// address of the Service that this machine reaches.
func (s *service) address(t *testing.T) string {
	t.Helper()
	found, err := s.client.CoreV1().Services(s.request.Namespace).Get(t.Context(), s.request.ServiceName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(found.Spec.ClusterIP, "80")
}

// served waits until the Service answers with the commit ten times in a row: the node's own rules lag a little behind
// what the API server shows.
func (s *service) served(t *testing.T, commit string) {
	t.Helper()
	address := s.address(t)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	enough := time.After(30 * time.Second)
	for row := 0; row < 10; {
		body, err := get("http://" + address + "/")
		row++
		if err != nil || body != commit {
			row = 0
		}
		select {
		case <-poll.C:
		case <-enough:
			t.Fatalf("served %q, %v; want %s", body, err, commit)
		}
	}
}

// versions gives the resourceVersion of what a deployment may change.
func (s *service) versions(t *testing.T) map[string]string {
	t.Helper()
	client, namespace := s.client, s.request.Namespace
	out := map[string]string{}
	keep := func(kind string, err error, objects ...metav1.Object) {
		if err != nil {
			t.Fatalf("list %s: %v", kind, err)
		}
		for _, o := range objects {
			out[kind+"/"+o.GetName()] = o.GetResourceVersion()
		}
	}
	services, err := client.CoreV1().Services(namespace).List(t.Context(), metav1.ListOptions{})
	keep("Service", err)
	for i := range services.Items {
		keep("Service", nil, &services.Items[i])
	}
	workloads, err := client.AppsV1().Deployments(namespace).List(t.Context(), metav1.ListOptions{})
	keep("Deployment", err)
	for i := range workloads.Items {
		keep("Deployment", nil, &workloads.Items[i])
	}
	sets, err := client.AppsV1().ReplicaSets(namespace).List(t.Context(), metav1.ListOptions{})
	keep("ReplicaSet", err)
	for i := range sets.Items {
		keep("ReplicaSet", nil, &sets.Items[i])
	}
	return out
}

// load asks an address 50 times a second over fresh connections until stop, which gives the answers' bodies, counted,
// and the errors.
func load(address string) (stop func() (answers map[string]int, errs []error)) {
	ctx, cancel := context.WithCancelCause(context.Background())
	var mu sync.Mutex
	answers, errs := map[string]int{}, []error(nil)
	var asking sync.WaitGroup
	ask := func() {
		body, err := get("http://" + address + "/")
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			errs = append(errs, err)
			return
		}
		answers[body]++
	}
	asking.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				asking.Go(ask)
			case <-ctx.Done():
				return
			}
		}
	})
	return func() (map[string]int, []error) {
		cancel(nil)
		asking.Wait()
		return answers, errs
	}
}

func get(url string) (string, error) {
	response, err := httpClient.Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s: %s", response.Status, body)
	}
	return string(body), err
}

// quiet fails the test for errors of a load.
func quiet(t *testing.T, errs []error) {
	t.Helper()
	if len(errs) > 0 {
		t.Errorf("%d requests failed, the first: %v", len(errs), errs[0])
	}
}

// httpClient makes a connection of its own for each request.
var httpClient = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

var program = struct {
	sync.Mutex
	layer []byte
}{}

// image pushes the test program, once per version, and gives its reference by digest.
func image(t *testing.T, version string) string {
	t.Helper()
	registry := testenv.Registry(t)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(programLayer(t))), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Architecture, config.OS = "amd64", "linux"
	config.Config.Entrypoint = []string{"/app"}
	config.Config.Labels = map[string]string{"version": version}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(registry+"/deploytest/app@"+digest.String(), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// programLayer is a layer with the program, built once.
func programLayer(t *testing.T) []byte {
	t.Helper()
	program.Lock()
	defer program.Unlock()
	if program.layer != nil {
		return program.layer
	}
	binary := filepath.Join(t.TempDir(), "app")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "./testdata/app")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the test program: %v\n%s", err, out)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "app", Mode: 0o755, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	program.layer = layer.Bytes()
	return program.layer
}

// until polls a condition.
func until(t *testing.T, what string, met func() bool) {
	t.Helper()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	enough := time.After(time.Minute)
	for !met() {
		select {
		case <-poll.C:
		case <-enough:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
