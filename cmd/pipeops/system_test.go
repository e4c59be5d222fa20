package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/local"
	"github.com/pipeops/pipeops/internal/testenv"
)

// system is PipeOps as it runs for real: two `serve`, two `runner` and two
// `deployer`, each a process of the built binary, over RabbitMQ, with real
// PostgreSQL, BuildKit, registry and Kubernetes.
type system struct {
	t          testing.TB
	dir        string
	env        []string
	kubeconfig string
	buildkit   string
	serves     []*process
	runners    []*process
	deployers  []*process
	clients    []*client // one per serve
}

// process is one process that can be killed, frozen and started again.
type process struct {
	t    testing.TB
	name string
	args []string
	env  []string
	log  string
	home string
	cmd  *exec.Cmd
	done chan struct{}
}

var buildFolder string // that of buildOnce

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(buildFolder)
	os.Exit(code)
}

var buildOnce = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("PIPEOPS_BIN"); bin != "" {
		return bin, nil
	}
	dir, err := os.MkdirTemp("", "pipeops-test-")
	if err != nil {
		return "", err
	}
	buildFolder = dir
	bin := filepath.Join(dir, "pipeops")
	out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput() //nolint:noctx // once for all tests
	if err != nil {
		return "", fmt.Errorf("build pipeops: %w\n%s", err, out)
	}
	return bin, nil
})

func binary(t testing.TB) string {
	t.Helper()
	bin, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// newSystem starts everything and waits until it is ready.
func newSystem(t testing.TB) *system {
	t.Helper()
	s := &system{t: t, dir: t.TempDir(), kubeconfig: testenv.Cluster(t), buildkit: testenv.BuildKit(t)}
	testenv.BaseImages(t, local.Busybox, local.Golang)
	if err := os.Chmod(s.dir, 0o755); err != nil { //nolint:gosec // git's processes enter
		t.Fatal(err)
	}
	s.env = append(os.Environ(),
		"DATABASE_URL="+testenv.Postgres(t), "AMQP_URL="+testenv.AMQP(t), "BUILDKIT_HOST="+s.buildkit, "REGISTRY="+testenv.Registry(t),
		"KUBECONFIG="+s.kubeconfig, "PIPEOPS_HOME="+filepath.Join(s.dir, "home"), "PIPEOPS_LOG=debug",
	)
	s.run("migrate")
	token := strings.TrimSpace(s.run("token", "create", "test"))
	for i := range 2 {
		address := freeAddress(t)
		c := &client{url: "http://" + address, token: token}
		s.clients = append(s.clients, c)
		s.serves = append(s.serves, s.start(fmt.Sprint("serve", i), filepath.Join(s.dir, "home"), []string{"serve"}, "PIPEOPS_LISTEN="+address))
	}
	s.ready()
	for i := range 2 {
		s.runners = append(s.runners, s.worker("build", "runner", i))
		s.deployers = append(s.deployers, s.worker("deploy", "deployer", i))
	}
	return s
}

// ready waits until each serve is.
func (s *system) ready() {
	s.t.Helper()
	for _, c := range s.clients {
		eventually(s.t, time.Minute, "serve is ready", func() error {
			if not := readiness(s.t.Context(), c.url); not != "" {
				return errors.New(not)
			}
			return nil
		})
	}
}

// worker enrolls one and starts it, with a home of its own and without the database.
func (s *system) worker(class, command string, i int) *process {
	name := fmt.Sprint(command, i)
	home := filepath.Join(s.dir, name)
	file := filepath.Join(home, "key.json")
	if err := os.MkdirAll(home, 0o755); err != nil {
		s.t.Fatal(err)
	}
	s.run("worker", "enroll", "--class", class, "--out", file)
	return s.start(name, home, []string{command}, "DATABASE_URL=", "PIPEOPS_MIGRATE_URL=", "PIPEOPS_HOME="+home, "PIPEOPS_WORKER_FILE="+file, "PIPEOPS_URL="+s.clients[0].url)
}

func (s *system) start(name, home string, args []string, env ...string) *process {
	p := &process{t: s.t, name: name, args: args, env: append(slices.Clone(s.env), env...), log: filepath.Join(s.dir, name+".log"), home: home}
	p.start(binary(s.t))
	s.t.Cleanup(func() {
		p.signal(syscall.SIGCONT)
		p.signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(30 * time.Second):
			s.t.Errorf("%s did not stop within 30 s", name)
			p.kill()
		}
		if s.t.Failed() {
			s.t.Logf("the end of %s:\n%s", name, tail(p.log, 60))
		}
	})
	return p
}

func (p *process) start(bin string) {
	p.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(bin, p.args...) //nolint:noctx // killed by the test
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.env, log, log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	p.done = done
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(done)
	}(p.cmd)
}

func (p *process) signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// run runs a command of the binary to its end and gives its stdout.
func (s *system) run(args ...string) string {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), binary(s.t), args...)
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, &stdout, &stderr
	if len(s.clients) > 0 {
		cmd.Env = append(cmd.Env, "PIPEOPS_URL="+s.clients[0].url, "PIPEOPS_TOKEN="+s.clients[0].token)
	}
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("pipeops %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String()
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed at once
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// eventually waits for a condition.
func eventually(t testing.TB, within time.Duration, what string, met func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), within, errSlow)
	defer cancel()
	for {
		err := met()
		if err == nil {
			return
		}
		if !waitFor(ctx, 100*time.Millisecond) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
	}
}

// app is a sample with a project and a work tree of its own.
type sampleApp struct {
	*system
	name string
	work string
	id   string
}

// webApp is a small web app. It tells its commit, and does what MODE says.
const webApp = `package main

import ("fmt"; "net/http"; "os"; "os/signal"; "syscall"; "context"; "time")

var commit = "unknown"
const mode = "MODE"

func main() {
	if mode == "exit" { fmt.Println("panic: nothing to do for", commit); os.Exit(3) }
	port := os.Getenv("PORT")
	if mode == "deaf" { port = "9" + port[1:] }
	http.HandleFunc("/health", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, commit) })
	s := &http.Server{Addr: ":" + port}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { <-stop; ctx, c := context.WithTimeout(context.Background(), 5*time.Second); defer c(); s.Shutdown(ctx) }()
	s.ListenAndServe()
}
`

const dockerfile = `FROM golang:1.26 AS build
WORKDIR /src
COPY . .
ARG PIPEOPS_GIT_COMMIT
RUN --mount=type=cache,target=/root/.cache/go-build CGO_ENABLED=0 go build -ldflags "-X main.commit=$PIPEOPS_GIT_COMMIT" -o /app .
FROM busybox:stable
COPY --from=build /app /app
USER 65532:65532
ENTRYPOINT ["/app"]
`

// newApp creates a project with quick probes.
func (s *system) newApp(name string, flags ...string) *sampleApp {
	s.t.Helper()
	a := &sampleApp{system: s, name: name, work: filepath.Join(s.dir, "work-"+name)}
	args := append([]string{"project", "create", name, "--json", "--min-ready", "1", "--startup-period", "1", "--startup-failures", "10", "--readiness-period", "1"}, flags...)
	var p struct{ ID string }
	if err := json.Unmarshal([]byte(s.run(args...)), &p); err != nil {
		s.t.Fatal(err)
	}
	a.id = p.ID
	a.git("init", "--quiet", "--initial-branch=main", a.work)
	return a
}

// in is the app as a subtest uses it.
func (a *sampleApp) in(t testing.TB) *sampleApp {
	t.Helper()
	system, app := *a.system, *a
	system.t, app.system = t, &system
	return &app
}

func (a *sampleApp) git(args ...string) string {
	a.t.Helper()
	dir := a.work
	if args[0] == "init" {
		dir = a.dir
	}
	out, err := git(a.t.Context(), dir, nil, args...)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// commit writes the app in a mode (plus other files) and commits it.
func (a *sampleApp) commit(mode string, files map[string]string) string {
	a.t.Helper()
	all := map[string]string{
		"main.go": strings.Replace(webApp, "MODE", mode, 1), "go.mod": "module app\n\ngo 1.26\n", "Dockerfile": dockerfile,
		"stamp": time.Now().String(),
	}
	maps.Copy(all, files)
	for name, text := range all {
		if err := os.WriteFile(filepath.Join(a.work, name), []byte(text), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	a.git("add", "--all")
	a.git("commit", "--quiet", "--message", mode)
	return a.git("rev-parse", "HEAD")
}

// push commits and pushes.
func (a *sampleApp) push(mode string, files map[string]string) string {
	a.t.Helper()
	commit := a.commit(mode, files)
	if err := a.clients[0].gitPush(a.t.Context(), a.work, a.name); err != nil {
		a.t.Fatal(err)
	}
	return commit
}

// finals are the events that end what a commit led to.
var finals = []string{"DeploymentSucceeded", "RolledBack", "RollbackFailed", "BuildFailed", "PushIgnored", "BuildSuperseded", "DeploymentSuperseded"}

// events gives the log of what a commit led to, up to its final event.
func (a *sampleApp) events(commit string, within time.Duration) []domain.Line {
	a.t.Helper()
	return a.until(commit, within, func(lines []domain.Line) bool {
		l := lines[len(lines)-1]
		return slices.Contains(finals, l.Type) ||
			l.Type == "DeploymentFailed" && !a.clients[1].rollsBack(a.t.Context(), l.Stream[len("deployment/"):], l.Cursor)
	})
}

// until follows what a commit leads to until it is enough, and gives all of it so far.
func (a *sampleApp) until(commit string, within time.Duration, enough func([]domain.Line) bool) []domain.Line {
	a.t.Helper()
	ctx, cancel := context.WithTimeoutCause(a.t.Context(), within, errSlow)
	defer cancel()
	var lines []domain.Line
	correlation := ""
	err := a.clients[1].follow(ctx, "", map[string]any{"project": a.name}, func(l domain.Line) error {
		var d struct{ Commit, Reason string }
		if json.Unmarshal(l.Data, &d) == nil && d.Commit == commit && correlation == "" && d.Reason != "other-branch" {
			correlation = l.CorrelationID
		}
		if correlation == "" || l.CorrelationID != correlation {
			return nil
		}
		if lines = append(lines, l); enough(lines) {
			return errEnough
		}
		return nil
	})
	if err != nil || ctx.Err() != nil {
		a.t.Fatalf("events of %s: %v, %v; seen %v", short(commit), err, context.Cause(ctx), types(lines))
	}
	return lines
}

func types(lines []domain.Line) (out []string) {
	for _, l := range lines {
		out = append(out, l.Type)
	}
	return out
}

func count(lines []domain.Line, eventType string) (n int) {
	for _, l := range lines {
		if l.Type == eventType {
			n++
		}
	}
	return n
}

// diagnosisOf is the one in the first event of the type.
func diagnosisOf(t testing.TB, lines []domain.Line, eventType string) domain.Diagnosis {
	t.Helper()
	for _, l := range lines {
		if l.Type == eventType {
			var d struct{ Diagnosis domain.Diagnosis }
			if err := json.Unmarshal(l.Data, &d); err != nil {
				t.Fatal(err)
			}
			return d.Diagnosis
		}
	}
	t.Fatalf("no %s in %v", eventType, types(lines))
	return domain.Diagnosis{}
}

// status is the one row of the app.
func (a *sampleApp) status() statusRow {
	a.t.Helper()
	var rows []statusRow
	if err := json.Unmarshal([]byte(a.run("status", a.name, "--json")), &rows); err != nil || len(rows) != 1 {
		a.t.Fatalf("status of %s: %v, %v", a.name, rows, err)
	}
	return rows[0]
}

// address is the ClusterIP of the app's Service, which this machine reaches.
func (a *sampleApp) address() string {
	a.t.Helper()
	return clusterIP(a.t, a.kubeconfig, a.status().Namespace, a.name) + ":80"
}

// serves waits until the address answers with a commit: kube-proxy follows the
// Service a moment later than the deployer sees it.
func (a *sampleApp) serves(address, commit string) {
	a.t.Helper()
	eventually(a.t, 30*time.Second, "the commit is served", func() error {
		if got, err := get(a.t.Context(), address); got != commit {
			return fmt.Errorf("serves %q, %w; want %s", got, err, commit)
		}
		return nil
	})
}

// get asks the app and gives the commit that it tells.
func get(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, errSlow)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	req.Close = true // a connection each: as new clients come
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return strings.TrimSpace(string(b)), err
}

// load asks the address 50 times a second until stopped, and gives how often
// each answer came and the errors.
func load(t testing.TB, address string) (stop func() (answers map[string]int, errs []error)) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	answers, errs := map[string]int{}, []error{}
	var mu sync.Mutex
	var all sync.WaitGroup
	all.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			all.Go(func() {
				commit, err := get(context.WithoutCancel(ctx), address)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					errs = append(errs, err)
					return
				}
				answers[commit]++
			})
		}
	})
	return func() (map[string]int, []error) {
		cancel(errors.New("enough"))
		all.Wait()
		return answers, errs
	}
}
