package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/pipeops/pipeops/domain"
)

func cluster4(t testing.TB, kubeconfig string) *kubernetes.Clientset {
	t.Helper()
	rest, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	c, err := kubernetes.NewForConfig(rest)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func clusterIP(t testing.TB, kubeconfig, namespace, service string) string {
	t.Helper()
	s, err := cluster4(t, kubeconfig).CoreV1().Services(namespace).Get(t.Context(), service, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Spec.ClusterIP
}

// TestPipeOps is PipeOps as a whole, with all of its processes apart.
func TestPipeOps(t *testing.T) {
	s := newSystem(t)
	steps := []struct {
		name string
		test func(*testing.T, *system)
	}{
		{"a push becomes a release, and the next one replaces it without an error", pushBecomesRelease},
		{"a bad push ends in a diagnosis while the old release serves", badPushes},
		{"a push to a project that isn't configured is ignored with a diagnosis", notConfigured},
		{"the same delivery sent 50 times over two serves is one push and one build", sameDelivery},
		{"a subscription cut at 100 instants sees the filtered log", cutSubscription},
		{"deploy and roll back by hand", byHand},
		{"the dashboard shows a push live in a real browser", dashboard},
		{"an outside consumer misses nothing that the broker loses", outsideConsumer},
		{"no workspace, process or mount is left behind", leavesNothing},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			mine := *s
			mine.t = t
			step.test(t, &mine)
		})
	}
}

func pushBecomesRelease(t *testing.T, s *system) {
	a := s.newApp("release")
	first := a.push("serve", nil)
	lines := a.events(first, 4*time.Minute)
	if last := lines[len(lines)-1].Type; last != "DeploymentSucceeded" {
		t.Fatalf("the first push ended in %s: %v", last, types(lines))
	}
	for _, once := range []string{"PushReceived", "BuildRequested", "BuildStarted", "SourceFetched", "ImageBuilt", "ImagePushed", "ImageTagged", "WorkspaceRemoved", "BuildSucceeded", "DeploymentRequested", "DeploymentStarted", "ManifestsApplied", "DeploymentSucceeded"} {
		if n := count(lines, once); n != 1 {
			t.Errorf("%d × %s in %v", n, once, types(lines))
		}
	}
	if count(lines, "LayerBuilt")+count(lines, "LayerCached") < 4 {
		t.Errorf("too few layers in %v", types(lines))
	}
	address := a.address()
	a.serves(address, first)
	stop := load(t, address)
	second := a.push("serve", nil)
	a.events(second, 4*time.Minute)
	a.serves(address, second)
	answers, errs := stop()
	if len(errs) > 0 {
		t.Errorf("%d errors during the rollout, first: %v (answers %v)", len(errs), errs[0], answers)
	}
	for commit := range answers {
		if commit != first && commit != second {
			t.Errorf("unexpected answer %q", commit)
		}
	}
	if row := a.status(); row.Commit != second || row.Phase != "SUCCEEDED" || !strings.HasPrefix(row.Digest, "sha256:") {
		t.Errorf("status is %+v", row)
	}
	build := buildOf(t, lines)
	eventually(t, 20*time.Second, "the build's output is kept", func() error {
		if out := s.run("logs", build); !strings.Contains(out, "go build") {
			return fmt.Errorf("got %q", out)
		}
		return nil
	})
}

func buildOf(t testing.TB, lines []domain.Line) string {
	t.Helper()
	for _, l := range lines {
		if l.Type == "BuildRequested" {
			return strings.TrimPrefix(l.Stream, "build/")
		}
	}
	t.Fatalf("no build in %v", types(lines))
	return ""
}

func badPushes(t *testing.T, s *system) {
	a := s.newApp("bad")
	good := a.push("serve", nil)
	a.events(good, 4*time.Minute)
	address := a.address()
	a.serves(address, good)
	for _, bad := range []struct {
		name, mode string
		files      map[string]string
		lost       bool // the image, between its build and its rollout
		event      string
		final      string
		error      string
	}{
		{"broken Dockerfile", "serve", map[string]string{"Dockerfile": "FROM busybox:stable\nRUNN true\n"}, false, "BuildFailed", "BuildFailed", "RUNN"},
		{"failing step", "serve", map[string]string{"Dockerfile": "FROM busybox:stable\nRUN echo oh no && exit 3\n"}, false, "BuildFailed", "BuildFailed", "exit code: 3"},
		{"base image that doesn't exist", "serve", map[string]string{"Dockerfile": "FROM nobody/nothing:never\n"}, false, "BuildFailed", "BuildFailed", "nobody/nothing"},
		{"program that exits at once", "exit", nil, false, "DeploymentFailed", "RolledBack", ""},
		{"port that nobody listens on", "deaf", nil, false, "DeploymentFailed", "RolledBack", ""},
		{"image that does not exist", "serve", nil, true, "DeploymentFailed", "RolledBack", "not found"},
	} {
		t.Run(bad.name, func(t *testing.T) {
			b := a.in(t)
			stop := load(t, address)
			var commit string
			if bad.lost {
				commit = b.pushAndLoseImage()
			} else {
				commit = b.push(bad.mode, bad.files)
			}
			lines := b.events(commit, 4*time.Minute)
			answers, errs := stop()
			if last := lines[len(lines)-1].Type; last != bad.final {
				t.Errorf("ended in %s: %v", last, types(lines))
			}
			d := diagnosisOf(t, lines, bad.event)
			if d.Code == "" || d.Step == "" || d.Error == "" || d.Reason == "" || len(d.Fixes) == 0 || !strings.Contains(d.Error+strings.Join(d.Log, "\n"), bad.error) {
				t.Errorf("diagnosis is thin: %+v", d)
			}
			t.Logf("\n%s", d)
			if len(errs) > 0 {
				t.Errorf("%d errors from push to verdict, first: %v", len(errs), errs[0])
			}
			if len(answers) != 1 || answers[good] == 0 {
				t.Errorf("answers %v, want only %s", answers, good)
			}
		})
	}
	if row := a.status(); row.Commit != good || row.Phase == "RUNNING" || row.Phase == "WAITING" {
		t.Errorf("status is %+v", row)
	}
}

// pushAndLoseImage pushes while no deployer runs, and deletes the image before one does.
func (a *sampleApp) pushAndLoseImage() (commit string) {
	a.t.Helper()
	for _, d := range a.deployers {
		d.kill()
	}
	commit = a.push("serve", nil)
	var image struct{ Reference string }
	lines := a.until(commit, time.Minute, func(lines []domain.Line) bool { return lines[len(lines)-1].Type == "DeploymentRequested" })
	for _, l := range lines {
		if l.Type == "ImagePushed" {
			if err := json.Unmarshal(l.Data, &image); err != nil {
				a.t.Fatal(err)
			}
		}
	}
	registry, rest, _ := strings.Cut(image.Reference, "/")
	repository, digest, _ := strings.Cut(rest, "@")
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodDelete, "http://"+registry+"/v2/"+repository+"/manifests/"+digest, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		a.t.Fatalf("delete %s: %s", image.Reference, resp.Status)
	}
	for _, d := range a.deployers {
		d.start(binary(a.t))
	}
	return commit
}

func notConfigured(t *testing.T, s *system) {
	a := s.newApp("bare", "--no-environment")
	commit := a.push("serve", nil)
	lines := a.events(commit, time.Minute)
	d := diagnosisOf(t, lines, "PushIgnored")
	if d.Code != "PROJECT_NOT_CONFIGURED" || len(d.Fixes) == 0 {
		t.Errorf("got %+v", d)
	}
}

func sameDelivery(t *testing.T, s *system) {
	secret := filepath.Join(s.dir, "webhook-secret")
	if err := os.WriteFile(secret, []byte("It's a secret to everybody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := s.newApp("hooked", "--webhook-secret-file", secret)
	commit := a.commit("serve", nil)
	// The commit is there under another branch, which nobody builds; the webhook tells of main.
	if _, err := git(t.Context(), a.work, []string{
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Bearer " + s.clients[0].token,
	}, "push", "--quiet", s.clients[0].url+"/git/hooked", "HEAD:refs/heads/elsewhere"); err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"ref":"refs/heads/main","before":"%040d","after":"%s","created":true,"deleted":false,"forced":false,
		"repository":{"full_name":"a/b","default_branch":"main"},"pusher":{"name":"ada","email":"ada@example.com"},"sender":{"login":"ada"},
		"head_commit":{"id":"%s","message":"hello","timestamp":"2026-01-02T03:04:05Z","author":{"name":"Ada","email":"ada@example.com"}},"commits":[]}`, 0, commit, commit)
	deliver := func(c *client, signature string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+"/webhooks/github/"+a.id, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-GitHub-Event", "push")
		req.Header.Set("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
		req.Header.Set("X-Hub-Signature-256", signature)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	mac := hmac.New(sha256.New, []byte("It's a secret to everybody"))
	mac.Write([]byte(body))
	signature := "sha256=" + hex.EncodeToString(mac.Sum(nil))
	if got := deliver(s.clients[0], "sha256="+strings.Repeat("0", 64)); got != http.StatusUnauthorized {
		t.Errorf("a wrong signature gets %d", got)
	}
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			if got := deliver(s.clients[i%2], signature); got != http.StatusAccepted {
				t.Errorf("delivery %d got %d", i, got)
			}
		})
	}
	all.Wait()
	lines := a.events(commit, 4*time.Minute)
	if last := lines[len(lines)-1].Type; last != "DeploymentSucceeded" {
		t.Errorf("ended in %s: %v", last, types(lines))
	}
	var everything []domain.Line
	if err := s.clients[0].pages(t.Context(), "", map[string]any{"project": "hooked"}, func(l domain.Line) error {
		everything = append(everything, l)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, once := range []string{"PushReceived", "BuildRequested", "ImagePushed", "DeploymentRequested"} {
		if n := count(everything, once); n != 1 {
			t.Errorf("%d × %s", n, once)
		}
	}
}

func cutSubscription(t *testing.T, s *system) {
	a := s.newApp("cut")
	b := s.newApp("cut-other")
	slow := map[string]string{"Dockerfile": "FROM busybox:stable\nCOPY stamp /stamp\n" +
		strings.Repeat("RUN for i in 1 2 3 4 5 6 7 8; do echo $i; usleep 50000; done; date +%N > /n\n", 12) + "RUN exit 1\n"}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Minute, errSlow)
	defer cancel()
	filter := map[string]any{"project": "cut"}
	var seen []int64
	over := false
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		after, cuts := "", 0
		for !over || cuts < 100 {
			if ctx.Err() != nil {
				return
			}
			cut, stop := context.WithTimeoutCause(ctx, time.Duration(1+(cuts*37)%180)*time.Millisecond, errEnough)
			err := s.clients[cuts%2].subscribe(cut, `subscription($after: Cursor, $filter: EventFilter) { events(after: $after, filter: $filter) { events { position type } cursor } }`,
				variables(after, filter), func(data json.RawMessage) error {
					var out struct {
						Events struct {
							Events []struct {
								Position string
								Type     string
							}
							Cursor string
						}
					}
					if err := json.Unmarshal(data, &out); err != nil {
						return err
					}
					for _, e := range out.Events.Events {
						var p int64
						if _, err := fmt.Sscan(e.Position, &p); err != nil {
							return err
						}
						seen = append(seen, p)
						over = over || e.Type == "BuildFailed"
					}
					after = out.Events.Cursor
					return nil
				})
			stop()
			cuts++
			if _, refused := errors.AsType[*coded](err); refused {
				t.Errorf("cut %d: %v", cuts, err)
				return
			}
		}
	}()
	b.push("serve", slow)
	a.push("serve", slow)
	<-finished
	if ctx.Err() != nil {
		t.Fatal(context.Cause(ctx))
	}
	var want []int64
	if err := s.clients[0].pages(ctx, "", filter, func(l domain.Line) error {
		want = append(want, l.Position)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(seen, want[:min(len(seen), len(want))]) || len(seen) < len(want) && !over {
		t.Errorf("saw  %v\nwant %v", seen, want)
	}
}

func variables(after string, filter map[string]any) map[string]any {
	v := map[string]any{"filter": filter}
	if after != "" {
		v["after"] = after
	}
	return v
}

func byHand(t *testing.T, s *system) {
	a := s.newApp("hand")
	first := a.push("serve", nil)
	a.events(first, 4*time.Minute)
	second := a.push("serve", nil)
	a.events(second, 4*time.Minute)
	s.run("rollback", "hand", "--wait")
	if row := a.status(); row.Commit != first {
		t.Errorf("after the rollback %s is active, want %s", row.Commit, first)
	}
	a.serves(a.address(), first)
	s.run("deploy", "hand", "--commit", second, "--wait")
	if row := a.status(); row.Commit != second {
		t.Errorf("after the deploy %s is active, want %s", row.Commit, second)
	}
}

func dashboard(t *testing.T, s *system) {
	a := s.newApp("screen")
	a.events(a.push("serve", nil), 4*time.Minute)
	cmd := exec.CommandContext(t.Context(), "node", "e2e/dashboard.mjs")
	cmd.Dir = filepath.Join("..", "..", "web")
	cmd.Env = append(os.Environ(), "BASE_URL="+s.clients[0].url, "TOKEN="+s.clients[0].token, "PROJECT=screen")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("web/e2e: %v (its packages come with `make web`)\n%s", err, out)
	}
	t.Logf("%s", out)
}
