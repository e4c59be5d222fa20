package gitremote_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/gitremote"
)

func TestPushIsRecordedBeforeGitAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	commit := w.commit("Say hello\n\nto everybody")
	out := w.git("push", b.address("hello", b.token), "main")
	events, envelopes := b.recorded(t)
	if len(events) != 2 {
		t.Fatalf("%d events, want PushReceived and RefMoved; git said:\n%s", len(events), out)
	}
	got := events[0].(domain.PushReceived)
	author := b.keys.Actor("git", "ada@example.org")
	want := domain.PushReceived{
		Push: got.Push, Project: project, Source: "git", Delivery: got.Delivery, Ref: "refs/heads/main", Branch: "main", Commit: commit,
		Pusher:    domain.Personal{Text: b.actor, Subject: b.actor},
		Author:    domain.Personal{Text: "Ada <Ada@Example.org>", Subject: author},
		Message:   domain.Personal{Text: "Say hello\n\nto everybody", Subject: author},
		Timestamp: got.Timestamp,
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(domain.Personal{}, domain.PushReceived{})); diff != "" || got.Timestamp.IsZero() {
		t.Error(diff, got.Timestamp)
	}
	e := envelopes[0]
	if e.Actor != b.actor || e.CorrelationID != string(got.Push) || e.ProjectID != project {
		t.Errorf("envelope %+v", e)
	}
	for _, says := range []string{"remote: pipeops: push " + string(got.Push) + " accepted, building " + commit[:7], "pipeops events --follow"} {
		if !strings.Contains(out, says) {
			t.Errorf("git doesn't say %q:\n%s", says, out)
		}
	}
	raw, err := b.deliveries.Get(t.Context(), string(got.Push))
	must(t, err)
	if !bytes.HasPrefix(raw.Raw, []byte("refs/heads/main "+strings.Repeat("0", 40)+" "+commit+" "+b.actor+" <req_")) || raw.EventID != e.ID {
		t.Errorf("raw delivery of event %s: %s", raw.EventID, raw.Raw)
	}
}

func TestWhatLeadsToNothingIsRecordedWithTheReasonAndTold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	a := w.commit("a")
	address := b.address("hello", b.token)
	for _, c := range []struct{ args, tells string }{
		{"main", "accepted, building"},
		{"main:feature", "of feature ignored: pushes to main are built"},
		{"main:refs/tags/v1", "of tags/v1 ignored: tags aren't built"},
		{":feature", "of feature ignored: it is deleted here"},
		{":refs/tags/v1", "of tags/v1 ignored: tags aren't built"},
	} {
		if out := w.git("push", address, c.args); !strings.Contains(out, c.tells) {
			t.Errorf("push %s: git doesn't say %q:\n%s", c.args, c.tells, out)
		}
	}
	want := []string{
		"received refs/heads/main →a", "ignored refs/heads/feature a: other-branch", "ignored refs/tags/v1 a: tag",
		"ignored refs/heads/feature : branch-deleted", "ignored refs/tags/v1 : tag",
	}
	names := map[string]string{a: "a"}
	if diff := cmp.Diff(want, b.story(t, names)); diff != "" {
		t.Error(diff)
	}
	must(t, b.remote.Reconcile(t.Context()))
	if diff := cmp.Diff(want, b.story(t, names)); diff != "" {
		t.Errorf("reconciled though nothing was missing: %s", diff)
	}
}

func TestPushToAProjectThatIsNotFullyConfiguredTellsWhatIsMissing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.create(t, domain.CreateProject{ID: "prj_bare", Name: "bare", Settings: domain.ProjectSettings{Branch: "main"}})
	w := newWork(t)
	w.commit("a")
	out := w.git("push", b.address("bare.git", b.token), "main")
	for _, says := range []string{"❌ Push ignored: the project isn't fully configured", "1. Name the registry", "Run: pipeops project show bare"} {
		if !strings.Contains(out, says) {
			t.Errorf("git doesn't say %q:\n%s", says, out)
		}
	}
}

func TestOnlyAGoodTokenGetsIn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	w.commit("a")
	for _, c := range []struct{ name, token, says string }{
		{"hello", "wrong", "Authentication failed"},
		{"hello", "", "Authentication failed"},
		{"nobody", "wrong", "Authentication failed"},
		{"nobody", b.token, "there is no such project"},
	} {
		if out, err := w.try("push", b.address(c.name, c.token), "main"); err == nil || !strings.Contains(out, c.says) {
			t.Errorf("push to %s: %v, want %q:\n%s", c.name, err, c.says, out)
		}
	}
	w.git("-c", "http.extraHeader=Authorization: Bearer "+b.token, "push", b.url+"/git/hello", "main")
	if out, err := w.try("fetch", b.address("hello", "wrong"), "main"); err == nil {
		t.Errorf("fetched with a wrong token:\n%s", out)
	}
	if files, err := os.ReadDir(filepath.Join(b.config.Root, "prj_hello.git")); err != nil || len(files) == 0 {
		t.Errorf("no repository of hello: %v", err)
	}
}

func TestOnlySmartHTTPIsServed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	w.commit("a")
	w.git("push", b.address("hello", b.token), "main")
	for _, c := range []struct{ method, path string }{
		{"GET", "/git/hello"},
		{"GET", "/git/hello/HEAD"},
		{"GET", "/git/hello/config"},
		{"GET", "/git/hello/info/refs"},
		{"GET", "/git/hello/objects/info/packs"},
		{"POST", "/git/hello/info/refs?service=git-upload-pack"},
		{"GET", "/git/hello/git-upload-pack"},
		{"GET", "/git/../git/x"},
		{"GET", "/git//info/refs?service=git-upload-pack"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, b.url+c.path, nil)
		must(t, err)
		req.SetBasicAuth("x", b.token)
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		must(t, err)
		must(t, res.Body.Close())
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("%s %s: %s", c.method, c.path, res.Status)
		}
	}
}

func TestWhatCouldNotBeRecordedIsFoundInTheReflogs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	names := map[string]string{}
	address := b.address("hello", b.token)
	push := func(name string) string {
		names[w.commit(name)] = name
		return w.git("push", address, "main")
	}
	push("a")
	b.receiver.down.Store(true)
	for _, name := range []string{"b", "c"} {
		if out := push(name); !strings.Contains(out, "recorded later, by itself") {
			t.Errorf("git doesn't say that it is recorded later:\n%s", out)
		}
	}
	if err := b.remote.Reconcile(t.Context()); err == nil {
		t.Error("reconciled without the database")
	}
	b.stop() // as a crash: nothing in memory helps
	b.receiver.down.Store(false)
	b.start(t)
	want := []string{"received refs/heads/main →a", "received refs/heads/main a→b", "received refs/heads/main b→c"}
	must(t, b.remote.Reconcile(t.Context()))
	if diff := cmp.Diff(want, b.story(t, names)); diff != "" {
		t.Error(diff)
	}
	_, envelopes := b.recorded(t)
	for _, e := range envelopes {
		if e.Actor != b.actor {
			t.Errorf("%s of %s has the actor %s, want %s", e.Type, e.Stream, e.Actor, b.actor)
		}
	}
}

func TestEarlierPushIsRecordedBeforeTheNextOneOfItsBranch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	address := b.address("hello", b.token)
	names := map[string]string{w.commit("a"): "a"}
	b.receiver.down.Store(true)
	w.git("push", address, "main")
	names[w.commit("b")] = "b"
	b.receiver.down.Store(false)
	if out := w.git("push", address, "main"); strings.Count(out, "accepted, building") != 1 {
		t.Errorf("git tells of other pushes than this one:\n%s", out)
	}
	if diff := cmp.Diff([]string{"received refs/heads/main →a", "received refs/heads/main a→b"}, b.story(t, names)); diff != "" {
		t.Error(diff)
	}
}

func TestReflogIsComparedByItselfSoonAfterAFailure(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	names := map[string]string{w.commit("a"): "a"}
	b.receiver.down.Store(true)
	w.git("push", b.address("hello", b.token), "main")
	b.receiver.down.Store(false)
	waitFor(t, "the push to be recorded", func() bool { return len(b.story(t, names)) == 1 })
}

func TestBranchCannotBeDeletedBeforeItsPushesAreRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	address := b.address("hello", b.token)
	names := map[string]string{w.commit("a"): "a"}
	b.receiver.down.Store(true)
	w.git("push", address, "main:feature")
	if out, err := w.try("push", address, ":feature"); err == nil || !strings.Contains(out, "can't be deleted before earlier pushes to it are recorded") {
		t.Errorf("%v:\n%s", err, out)
	}
	b.receiver.down.Store(false)
	w.git("push", address, ":feature")
	w.git("push", address, "main:feature") // made anew
	want := []string{"ignored refs/heads/feature a: other-branch", "ignored refs/heads/feature : branch-deleted", "ignored refs/heads/feature a: other-branch"}
	if diff := cmp.Diff(want, b.story(t, names)); diff != "" {
		t.Error(diff)
	}
}

func TestForcedPushIsToldApartAndTheOldCommitCanStillBeFetched(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	address := b.address("hello", b.token)
	first := w.commit("a")
	lost := w.commit("b")
	w.git("push", address, "main")
	w.git("reset", "--quiet", "--hard", first)
	names := map[string]string{first: "a", lost: "b", w.commit("c"): "c"}
	if out, err := w.try("push", address, "main"); err == nil {
		t.Errorf("pushed over another history without force:\n%s", out)
	}
	w.git("push", "--force", address, "main")
	w.git("push", "--force", address, lost+":main")
	want := []string{"received refs/heads/main →b", "received refs/heads/main b→c, forced", "received refs/heads/main c→b, forced"}
	if diff := cmp.Diff(want, b.story(t, names)); diff != "" {
		t.Error(diff)
	}
	w.git("push", "--force", address, first+":main")
	other := newWork(t)
	other.git("fetch", "--quiet", "--depth=1", address, lost)
	if got := other.git("rev-parse", "FETCH_HEAD"); got != lost {
		t.Errorf("fetched %s, want %s", got, lost)
	}
}

func TestLargePushArrivesInChunks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	content := make([]byte, 8<<20)
	_, _ = rand.Read(content)
	must(t, os.WriteFile(filepath.Join(w.dir, "large"), content, 0o600))
	w.git("add", "large")
	commit := w.commit("large")
	w.git("push", b.address("hello", b.token), "main")
	other := newWork(t)
	other.git("fetch", "--quiet", b.address("hello", b.token), "main")
	if got := other.git("rev-parse", "FETCH_HEAD"); got != commit {
		t.Errorf("fetched %s, want %s", got, commit)
	}
	if got, err := other.try("cat-file", "blob", "FETCH_HEAD:large"); err != nil || got != string(content) {
		t.Errorf("the file came back with %d bytes: %v", len(got), err)
	}
}

func TestTooLargePushIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *gitremote.Config) { c.MaxPush = 100 << 10 })
	w := newWork(t)
	content := make([]byte, 300<<10)
	_, _ = rand.Read(content)
	must(t, os.WriteFile(filepath.Join(w.dir, "large"), content, 0o600))
	w.git("add", "large")
	w.commit("large")
	if out, err := w.try("push", b.address("hello", b.token), "main"); err == nil || !strings.Contains(out, "maximum allowed size") {
		t.Errorf("%v:\n%s", err, out)
	}
	if events, _ := b.recorded(t); len(events) > 0 {
		t.Errorf("%d events of a refused push", len(events))
	}
}

func TestConcurrentPushesAreEachRecordedOnceInTheOrderOfTheirRef(t *testing.T) {
	t.Parallel()
	b := setup(t)
	address := b.address("hello", b.token)
	base := newWork(t)
	base.commit("base")
	base.git("push", address, "main")
	var wg sync.WaitGroup
	const people, each = 5, 3
	for i := range people {
		w := newWork(t)
		wg.Go(func() {
			for n := range each {
				for { // somebody else may be faster
					w.git("fetch", "--quiet", address, "main")
					w.git("reset", "--quiet", "--hard", "FETCH_HEAD")
					w.commit(fmt.Sprintf("%d of %d", n, i))
					if _, err := w.try("push", address, "main", fmt.Sprintf("HEAD:refs/heads/person-%d-%d", i, n)); err == nil {
						break
					}
					if _, err := w.try("push", address, fmt.Sprintf(":refs/heads/person-%d-%d", i, n)); err != nil {
						continue // it wasn't made either
					}
				}
			}
		})
	}
	wg.Wait()
	events, _ := b.recorded(t)
	head, moved := "", 0
	for _, e := range events {
		if e, ok := e.(domain.RefMoved); ok {
			if e.Ref != "refs/heads/main" || e.Before != head {
				t.Errorf("%s moved %s→%s, it stood at %q", e.Ref, e.Before, e.After, head)
			}
			head = e.After
			moved++
		}
	}
	base.git("fetch", "--quiet", address, "main")
	if want := base.git("rev-parse", "FETCH_HEAD"); head != want || moved != 1+people*each {
		t.Errorf("main moved %d times and stands at %s; it moved %d times to %s", moved, head, 1+people*each, want)
	}
	before := len(events)
	must(t, b.remote.Reconcile(t.Context()))
	if events, _ = b.recorded(t); len(events) != before {
		t.Errorf("%d events recorded after all", len(events)-before)
	}
}

func TestPushAroundTheServerIsFoundToo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	a := w.commit("a")
	w.git("push", b.address("hello", b.token), "main")
	second := w.commit("b")
	path := filepath.Join(b.config.Root, "prj_hello.git")
	if out := w.git("push", path, "main"); !strings.Contains(out, "recorded within a minute") {
		t.Errorf("git said:\n%s", out)
	}
	// Back and forth within the same second gives equal lines: each counts.
	for range 2 {
		w.git("push", "--force", path, a+":main")
		w.git("push", path, second+":main")
	}
	must(t, b.remote.Reconcile(t.Context()))
	want := []string{"received refs/heads/main →a", "received refs/heads/main a→b"}
	for range 2 {
		want = append(want, "received refs/heads/main b→a, forced", "received refs/heads/main a→b")
	}
	if diff := cmp.Diff(want, b.story(t, map[string]string{a: "a", second: "b"})); diff != "" {
		t.Error(diff)
	}
	_, envelopes := b.recorded(t)
	if got, want := envelopes[2].Actor, b.keys.Actor("git", "ada@example.org"); got != want {
		t.Errorf("actor %s, want %s", got, want)
	}
}

func TestClientThatHangsUpInMidPushKeepsNothingRunning(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body, pack := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/git/hello/git-receive-pack", body)
	must(t, err)
	req.SetBasicAuth("x", b.token)
	req.Header.Set("Content-Type", "application/x-git-receive-pack-request")
	ended := make(chan error, 1)
	go func() {
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
		ended <- err
	}()
	zeros := strings.Repeat("0", 40)
	_, err = io.WriteString(pack, "0100"+zeros+" "+strings.Repeat("a", 40)+" refs/heads/main\x00 report-status side-band-64k")
	must(t, err)
	must(t, pack.CloseWithError(errors.New("the laptop was closed")))
	if err := <-ended; err == nil {
		t.Error("half a push was answered as a whole one")
	}
	b.stop() // returns when git has gone
	if events, _ := b.recorded(t); len(events) > 0 {
		t.Errorf("%d events of half a push", len(events))
	}
}

func TestServerThatDoesNotLeadSaysSo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.stop()
	remote, err := gitremote.New(b.config)
	must(t, err)
	w := &answer{header: http.Header{}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/git/hello/info/refs?service=git-upload-pack", nil)
	must(t, err)
	remote.ServeHTTP(w, req)
	if w.code != http.StatusServiceUnavailable || w.header.Get("Retry-After") == "" {
		t.Errorf("answer %d %v", w.code, w.header)
	}
}

func TestServerThatCannotLeadYetTriesAgainUntilItCan(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := newWork(t)
	w.commit("First")
	w.git("push", b.address("hello", b.token), "main")
	b.stop()
	blocked := filepath.Join(t.TempDir(), "blocked")
	must(t, os.WriteFile(blocked, nil, 0o600))
	empty := t.TempDir()
	for root, mend := range map[string]func(problem string) error{
		filepath.Join(blocked, "git"): func(string) error {
			return errors.Join(os.Remove(blocked), os.MkdirAll(filepath.Join(blocked, "git", "prj_hello.git"), 0o700))
		},
		empty: func(problem string) error {
			if !strings.Contains(problem, "begin-anew") {
				t.Errorf("the fix isn't told: %s", problem)
			}
			return os.WriteFile(filepath.Join(empty, "begin-anew"), nil, 0o600)
		},
	} {
		var problems []string
		b.config.Root, b.config.Leader = root, leader(func(ctx context.Context, run func(context.Context) error) error {
			err := run(ctx)
			for ; err != nil && context.Cause(ctx) == nil; err = run(ctx) {
				problems = append(problems, err.Error())
				if err := mend(err.Error()); err != nil {
					return err
				}
			}
			return nil
		})
		b.start(t) // returns when it leads
		b.stop()
		if len(problems) != 1 {
			t.Errorf("%s: got the problems %q, want one", root, problems)
		}
	}
}

// leader leads without a database.
type leader func(ctx context.Context, run func(context.Context) error) error

func (l leader) Lead(ctx context.Context, _ string, run func(context.Context) error) error {
	return l(ctx, run)
}
func (leader) Announce(context.Context, string, string) error    { return nil }
func (leader) Announced(context.Context, string) (string, error) { return "", nil }

func TestPushThroughAServerThatDoesNotLeadIsPassedOn(t *testing.T) {
	t.Parallel()
	leading := httptest.NewUnstartedServer(nil)
	b := setup(t, func(c *gitremote.Config) { c.Self = "http://" + leading.Listener.Addr().String() })
	leading.Config.Handler = b.remote
	leading.Start()
	t.Cleanup(leading.Close)
	other := b.config
	other.Self = "http://127.0.0.1:1"
	remote, err := gitremote.New(other)
	must(t, err)
	server := httptest.NewServer(remote)
	t.Cleanup(server.Close)
	b.url = server.URL
	w := newWork(t)
	w.commit("Through another door")
	out := w.git("push", b.address("hello", b.token), "main")
	if events, _ := b.recorded(t); len(events) != 2 {
		t.Errorf("%d events, want PushReceived and RefMoved; git said:\n%s", len(events), out)
	}
	w.git("ls-remote", b.address("hello", b.token))
}

type answer struct {
	code   int
	header http.Header
	bytes.Buffer
}

func (a *answer) Header() http.Header  { return a.header }
func (a *answer) WriteHeader(code int) { a.code = code }
