package runner_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/local"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/internal/worker/workertest"
	"github.com/pipeops/pipeops/runner"
	"github.com/pipeops/pipeops/runner/internal/gittest"
)

// bed is a runner over real parts: BuildKit, a registry, git over HTTP. Only the control plane keeps its log in memory.
type bed struct {
	*workertest.ControlPlane
	t         *testing.T
	git       *gittest.Server
	registry  string
	workspace string
	project   domain.ProjectID
	stop      func()
}

func newBed(t *testing.T, change func(*bed, *runner.Config)) *bed {
	t.Helper()
	daemon := testenv.BuildKit(t)
	testenv.BaseImages(t, local.Busybox)
	b := &bed{
		ControlPlane: workertest.Start(t, bus.NewInProcess(bus.Config{}), bus.KindBuild), t: t, git: gittest.New(t),
		registry: testenv.Registry(t), workspace: filepath.Join(t.TempDir(), "workspaces"),
		project: domain.ProjectID("prj_" + uuid.NewString()),
	}
	c := runner.Config{
		Bus: b.Bus, Worker: b.Worker, Key: b.Key, Slots: 2, BuildKit: daemon, WorkspaceRoot: b.workspace, GitRemote: b.git.URL,
	}
	if change != nil {
		change(b, &c)
	}
	r, err := runner.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel(nil)
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(b.stop)
	return b
}

// want asks for a build of a commit of these files.
func (b *bed) want(files map[string]string, change func(*domain.BuildRequested)) domain.Stream {
	b.t.Helper()
	id := domain.BuildID("bld_" + uuid.NewString())
	r := domain.BuildRequested{
		Build: id, Project: b.project, ProjectName: "app", Ref: "refs/heads/main", Branch: "main",
		Plan: domain.BuildPlan{RootDir: ".", Dockerfile: "Dockerfile"}, Image: b.registry + "/runner-test/" + string(b.project),
	}
	if files != nil {
		r.Commit = b.git.Commit(b.t, "app", files)
	}
	if change != nil {
		change(&r)
	}
	r.Tag = r.Commit
	stream := domain.BuildStream(id)
	b.Given(stream, r)
	b.Offer(b.t, string(id))
	return stream
}

// build builds to the end, and sees that no workspace is left.
func (b *bed) build(files map[string]string, change func(*domain.BuildRequested)) []domain.Event {
	b.t.Helper()
	stream := b.want(files, change)
	log := b.Await(b.t, stream, over)
	b.noWorkspace()
	return log
}

func over(log []domain.Event) bool {
	return workertest.Has[domain.BuildSucceeded](log) || workertest.Has[domain.BuildFailed](log)
}

func (b *bed) noWorkspace() {
	b.t.Helper()
	left, err := filepath.Glob(b.workspace + "/*/*")
	if err != nil || len(left) > 0 {
		b.t.Errorf("workspaces left: %v, %v", left, err)
	}
}

// succeed builds and gives the image.
func (b *bed) succeed(files map[string]string, change func(*domain.BuildRequested)) (v1.Image, []domain.Event) {
	b.t.Helper()
	log := b.build(files, change)
	pushed := workertest.Last[domain.ImagePushed](log)
	if !workertest.Has[domain.BuildSucceeded](log) {
		b.t.Fatalf("not built: %v", workertest.Last[domain.BuildFailed](log).Diagnosis)
	}
	return b.image(pushed.Reference), log
}

func (b *bed) image(reference string) v1.Image {
	b.t.Helper()
	ref, err := name.ParseReference(reference)
	if err != nil {
		b.t.Fatal(err)
	}
	image, err := remote.Image(ref, remote.WithContext(b.t.Context()))
	if err != nil {
		b.t.Fatal(err)
	}
	return image
}

// content reads the files of an image.
func content(t *testing.T, image v1.Image) map[string]string {
	t.Helper()
	return untar(t, mutate.Extract(image))
}

// fail builds and wants it to fail with a diagnosis of that code.
func (b *bed) fail(code string, files map[string]string, change func(*domain.BuildRequested)) (domain.Diagnosis, []domain.Event) {
	b.t.Helper()
	log := b.build(files, change)
	if !workertest.Has[domain.BuildFailed](log) {
		b.t.Fatalf("did not fail: %v", workertest.Types(log))
	}
	d := workertest.Last[domain.BuildFailed](log).Diagnosis
	if d.Code != code || len(d.Fixes) == 0 || d.Error == "" || d.Reason == "" || d.Step == "" || d.Run == "" || len(d.Log) > 20 {
		b.t.Errorf("want %s, got %s\n%+v", code, d, d)
	}
	types := workertest.Types(log)
	if !slices.Equal(types[len(types)-2:], []string{"WorkspaceRemoved", "BuildFailed"}) {
		b.t.Errorf("ends with %v", types)
	}
	return d, log
}

func TestDockerfileIsBuiltPushedByDigestAndTagged(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	files := map[string]string{
		"Dockerfile":   "# syntax=docker/dockerfile:1\nFROM busybox:stable\nARG PIPEOPS_GIT_COMMIT\nARG GREETING\nCOPY greeting.txt /\nRUN echo \"$GREETING $PIPEOPS_GIT_COMMIT $UNDECLARED.\" > /said && echo made it\n",
		"greeting.txt": "hello\n",
	}
	change := func(r *domain.BuildRequested) { r.Plan.Args = map[string]string{"GREETING": "hi", "UNDECLARED": "x"} }
	image, log := b.succeed(files, change)
	commit := workertest.Last[domain.BuildRequested](log).Commit

	want := []string{"BuildRequested", "BuildStarted", "SourceFetched", "BuildArgsFiltered", "ImageBuilt", "ImagePushed", "ImageTagged", "WorkspaceRemoved", "BuildSucceeded"}
	types := slices.DeleteFunc(workertest.Types(log), func(s string) bool { return s == "LayerBuilt" || s == "LayerCached" })
	if diff := cmp.Diff(want, types); diff != "" {
		t.Error(diff)
	}
	if made := workertest.Last[domain.ImageBuilt](log); made.Steps != 3 {
		t.Errorf("%+v, want 3 steps", made)
	}
	if filtered := workertest.Last[domain.BuildArgsFiltered](log); !slices.Equal(filtered.Passed, []string{"GREETING", "PIPEOPS_GIT_COMMIT"}) || !slices.Equal(filtered.Dropped, []string{"UNDECLARED"}) {
		t.Errorf("%+v", filtered)
	}
	got := content(t, image)
	if got["greeting.txt"] != "hello\n" || got["said"] != "hi "+commit+" .\n" {
		t.Errorf("the image says %q and %q", got["greeting.txt"], got["said"])
	}
	pushed, tagged := workertest.Last[domain.ImagePushed](log), workertest.Last[domain.ImageTagged](log)
	if !slices.Equal(pushed.Platforms, []string{"linux/amd64"}) || pushed.SizeBytes < 100_000 || tagged.Digest != pushed.Digest || !strings.HasSuffix(tagged.Reference, ":"+commit) {
		t.Errorf("%+v, %+v", pushed, tagged)
	}
	if digest, err := b.image(tagged.Reference).Digest(); err != nil || digest.String() != pushed.Digest {
		t.Errorf("the tag names %v, %v", digest, err)
	}
	output := b.AwaitOutput(t, attempt(log), "build", "exporting to image")
	for _, part := range []string{"fetched commit " + commit, "] RUN echo", "made it", "UNDECLARED isn't passed on"} {
		if !strings.Contains(output, part) {
			t.Errorf("the log lacks %q:\n%s", part, output)
		}
	}

	// The same commit again: all cached, the same image, the tag stays.
	_, again := b.succeed(nil, func(r *domain.BuildRequested) { r.Commit = commit; change(r) })
	if made := workertest.Last[domain.ImageBuilt](again); made.Cached != 3 || workertest.Has[domain.LayerBuilt](again) {
		t.Errorf("second build: %+v, %v", made, workertest.Types(again))
	}
	if second := workertest.Last[domain.ImagePushed](again); second.Digest != pushed.Digest || workertest.Last[domain.ImageTagged](again).Reference != tagged.Reference {
		t.Errorf("second build: %+v", second)
	}
}

func attempt(log []domain.Event) domain.AttemptID {
	return workertest.Last[domain.BuildStarted](log).Attempt
}

func TestScratchImageOfASubfolder(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	image, _ := b.succeed(map[string]string{
		"services/api/docker/api.Dockerfile":              "FROM scratch\nCOPY . /app/\n",
		"services/api/docker/api.Dockerfile.dockerignore": "secret.txt\n",
		"services/api/main.txt":                           "main",
		"services/api/secret.txt":                         "no",
		"other.txt":                                       "outside",
	}, func(r *domain.BuildRequested) {
		r.Plan = domain.BuildPlan{RootDir: "services/api", Dockerfile: "docker/api.Dockerfile"}
	})
	got := content(t, image)
	if got["app/main.txt"] != "main" || got["app/secret.txt"] != "" || got["app/other.txt"] != "" {
		t.Errorf("image holds %v", got)
	}
}

func TestBrokenBuildsSpeak(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	for name, c := range map[string]struct {
		code       string
		dockerfile string
		error      string
		step       string
	}{
		"exit code with its line": {"STEP_FAILED", "FROM busybox:stable\n\nRUN echo before\nRUN echo the reason >&2; \\\n  exit 3\n", "Dockerfile:4", "RUN echo the reason"},
		"parse error":             {"DOCKERFILE_SYNTAX", "FROM busybox:stable\nRNU true\n", "Dockerfile:2", "dockerfile"},
		"copy of nothing":         {"COPY_SOURCE_MISSING", "FROM busybox:stable\nCOPY nope.txt /\n", "Dockerfile:2", "COPY nope.txt"},
		"no such base":            {"BASE_IMAGE_NOT_FOUND", "FROM " + b.registry + "/runner-test/none:1\n", "Dockerfile:1", "load metadata"},
		"other frontend":          {"SYNTAX_NOT_ALLOWED", "# syntax=evil.example/x\nFROM scratch\n", "Dockerfile:1", "dockerfile"},
		"command not found":       {"COMMAND_NOT_FOUND", "FROM busybox:stable\nRUN nosuchthing\n", "exit code: 127", "RUN nosuchthing"},
		"not executable":          {"NOT_EXECUTABLE", "FROM busybox:stable\nRUN touch /x && /x\n", "exit code: 126", "RUN touch"},
		"killed":                  {"OUT_OF_MEMORY", "FROM busybox:stable\nRUN sh -c 'kill -9 $$'; exit $?\n", "exit code: 137", "RUN sh"},
		"no shell":                {"NO_SHELL", "FROM scratch\nRUN true\n", "Dockerfile:2", "RUN true"},
	} {
		d, log := b.fail(c.code, map[string]string{"Dockerfile": c.dockerfile, "f": uuid.NewString()}, nil)
		if !strings.Contains(d.Error, c.error) || !strings.Contains(d.Step, c.step) {
			t.Errorf("%s: %s", name, d)
		}
		if c.code == "STEP_FAILED" && (!slices.Equal(d.Log, []string{"the reason"}) || !strings.Contains(d.Title, "exit code 3") || len(log) < 7) {
			t.Errorf("%s: %s\n%v", name, d, workertest.Types(log))
		}
		b.AwaitOutput(t, attempt(log), "build", d.Title)
	}
}

func TestDockerfileThatIsNotThereOrElsewhere(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("FROM scratch\nTOP-SECRET"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.fail("DOCKERFILE_MISSING", map[string]string{"dockerfile": "FROM scratch\n"}, nil)
	b.fail("DOCKERFILE_MISSING", map[string]string{"Dockerfile/x": "FROM scratch\n"}, nil)
	d, log := b.fail("DOCKERFILE_OUTSIDE", map[string]string{"Dockerfile": "-> " + secret}, nil)
	if strings.Contains(d.String()+b.AwaitOutput(t, attempt(log), "build", d.Title), "TOP-SECRET") {
		t.Errorf("a file of the runner is told: %s", d)
	}
	b.fail("DOCKERFILE_OUTSIDE", map[string]string{"Dockerfile": "FROM scratch\n", "app": "-> /etc"}, func(r *domain.BuildRequested) {
		r.Plan = domain.BuildPlan{RootDir: "app", Dockerfile: "../Dockerfile"}
	})
	b.fail("ROOT_DIR_MISSING", map[string]string{"Dockerfile": "FROM scratch\n"}, func(r *domain.BuildRequested) {
		r.Plan = domain.BuildPlan{RootDir: "app", Dockerfile: "../Dockerfile"}
	})
	// A link within the repository is fine.
	b.succeed(map[string]string{"Dockerfile": "-> docker/app", "docker/app": "FROM scratch\nCOPY x /\n", "x": "x"}, nil)
}

func TestCommitThatWasForcedAway(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	kept := b.git.Commit(t, "app", map[string]string{"Dockerfile": "FROM scratch\n"})
	gone := b.git.Commit(t, "app", map[string]string{"Dockerfile": "FROM busybox\n"})
	b.git.Forget(t, "app", kept)
	d, _ := b.fail("COMMIT_NOT_FOUND", nil, func(r *domain.BuildRequested) { r.Commit = gone })
	if !strings.Contains(d.Reason, "force-pushed") {
		t.Error(d)
	}
}

func TestSecretTokenFetchesAndIsNeverTold(t *testing.T) {
	t.Parallel()
	const token = "hush-hush-token"
	b := newBed(t, func(b *bed, _ *runner.Config) {
		b.git.Token = token
		b.Secrets = map[string]string{"git-token": token}
	})
	log := b.build(map[string]string{"Dockerfile": "FROM busybox:stable\nRUN echo leaked " + token + "; echo aHVzaC1odXNoLXRva2Vu; exit 1\n"}, nil)
	d := workertest.Last[domain.BuildFailed](log).Diagnosis
	if d.Code != "STEP_FAILED" || !slices.Contains(d.Log, "leaked ***") {
		t.Errorf("%s", d)
	}
	for _, e := range log {
		if text := fmt.Sprintf("%+v", e); strings.Contains(text, token) {
			t.Errorf("the secret is told: %s", text)
		}
	}
	if output := b.AwaitOutput(t, attempt(log), "build", d.Title); strings.Contains(output, token) || strings.Contains(output, "aHVzaC1odXNo") {
		t.Errorf("the secret is told:\n%s", output)
	}
}

func TestWhatOpensOurOwnRemoteGoesNowhereElse(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed, _ *runner.Config) {
		b.Secrets = map[string]string{"git-token": "our-own-token"} // more than such a build is granted
	})
	other := gittest.New(t)
	elsewhere := func(r *domain.BuildRequested) {
		r.Repository, r.Commit = other.URL+"/app", other.Commit(t, "app", map[string]string{"no": "Dockerfile"})
	}
	b.fail("DOCKERFILE_MISSING", nil, elsewhere)
	if got := slices.Compact(other.Logins()); len(got) != 1 || got[0] != "" {
		t.Errorf("a public repository got logins: %q", got)
	}
	b.fail("DOCKERFILE_MISSING", map[string]string{"no": "Dockerfile"}, nil)
	if got := slices.Compact(b.git.Logins()); len(got) != 1 || got[0] != "x-access-token:our-own-token" {
		t.Errorf("our own remote got logins: %q", got)
	}
}

func TestAPrivateRepositoryElsewhereGetsTheProjectsCredential(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed, _ *runner.Config) {
		b.Secrets = map[string]string{"git-credential": "ada:hush-hush-token"}
	})
	other := gittest.New(t)
	other.Token = "hush-hush-token"
	_, log := b.fail("STEP_FAILED", nil, func(r *domain.BuildRequested) {
		files := map[string]string{"Dockerfile": "FROM busybox:stable\nRUN echo leaked hush-hush-token; exit 1\n"}
		r.Repository, r.Commit = other.URL+"/app", other.Commit(t, "app", files)
	})
	if got := slices.Compact(other.Logins()); len(got) != 1 || got[0] != "ada:hush-hush-token" {
		t.Errorf("got logins %q", got)
	}
	if d := workertest.Last[domain.BuildFailed](log).Diagnosis; !slices.Contains(d.Log, "leaked ***") {
		t.Errorf("the token is told: %s", d)
	}
}

func TestGitServerThatIsAwayForAMomentIsAskedAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	b.git.Away.Store(2)
	b.succeed(map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}, nil)
}

func TestTakenTagIsLeftAloneAndTheBuildGetsItsOwn(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	commit := b.git.Commit(t, "app", map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	tag, err := name.NewTag(b.registry + "/runner-test/" + string(b.project) + ":" + commit)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, empty.Image, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	_, log := b.succeed(nil, func(r *domain.BuildRequested) { r.Commit = commit })
	id := string(workertest.Last[domain.BuildRequested](log).Build)
	if got := workertest.Last[domain.ImageTagged](log).Reference; got != tag.String()+"-"+id[len(id)-12:] {
		t.Errorf("tagged %s", got)
	}
	there, err := remote.Head(tag, remote.WithContext(t.Context()))
	if want, _ := empty.Image.Digest(); err != nil || there.Digest != want {
		t.Errorf("the taken tag was moved to %v, %v", there, err)
	}
}

func TestImageOfAnEarlierAttemptIsOnlyTagged(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	image, log := b.succeed(map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}, nil)
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	request := workertest.Last[domain.BuildRequested](log)
	request.Build, request.Tag = "bld_second", "second"
	stream := domain.BuildStream("bld_second")
	b.Given(stream, request, domain.BuildStarted{Attempt: "bld_second.1"}, workertest.Last[domain.ImagePushed](log), domain.AttemptLost{Attempt: "bld_second.1"})
	b.Offer(t, "bld_second")
	second := b.Await(t, stream, over)
	want := []string{"BuildRequested", "BuildStarted", "ImagePushed", "AttemptLost", "BuildStarted", "ImageTagged", "WorkspaceRemoved", "BuildSucceeded"}
	if diff := cmp.Diff(want, workertest.Types(second)); diff != "" {
		t.Error(diff)
	}
	if tagged := workertest.Last[domain.ImageTagged](second); tagged.Digest != digest.String() || !strings.HasSuffix(tagged.Reference, ":second") {
		t.Errorf("%+v", tagged)
	}
}

// One daemon keeps copies of contexts by their key, and compares size and time of files only.
func TestProjectsDoNotShareWhatTheDaemonKeeps(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dockerfile := "FROM busybox:stable\nCOPY f /f\nRUN --mount=type=cache,target=/cache cat /cache/* 2>/dev/null; cp /f /cache/f; true\n"
	for _, content1 := range []string{"one", "two"} {
		project := domain.ProjectID("prj_" + uuid.NewString())
		image, log := b.succeed(map[string]string{"Dockerfile": dockerfile, "f": content1}, func(r *domain.BuildRequested) { r.Project = project })
		if got := content(t, image)["f"]; got != content1 {
			t.Errorf("the image holds %q, want %q", got, content1)
		}
		if output := b.AwaitOutput(t, attempt(log), "build", "exporting to image"); content1 == "two" && strings.Contains(output, "one\n") {
			t.Errorf("the cache mount of another project was seen:\n%s", output)
		}
	}
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	mark := uuid.NewString()
	stream := b.want(map[string]string{"Dockerfile": "FROM busybox:stable\nRUN echo " + mark + "; sleep 1000\n"}, nil)
	log := b.Await(t, stream, workertest.Has[domain.BuildArgsFiltered])
	b.AwaitOutput(t, attempt(log), "build", " "+mark+"\n")
	if err := b.Execute(domain.LoseBuildAttempt{Attempt: attempt(log), Reason: "given up"}); err != nil {
		t.Fatal(err)
	}
	b.AwaitBeat(t, func(h bus.Heartbeat) bool { return len(h.Running) == 0 })
	b.noWorkspace()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for began := time.Now(); running(t, mark); <-ticker.C {
		if time.Since(began) > 20*time.Second {
			t.Fatal("the step still runs")
		}
	}
}

// running says whether a process of this machine has the mark in its command line.
func running(t *testing.T, mark string) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		text, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(text), mark)
	})
}

func TestStoppedRunnerGivesItsBuildBackAndCleansUp(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	stream := b.want(map[string]string{"Dockerfile": "FROM busybox:stable\nRUN echo " + uuid.NewString() + "; sleep 1000\n"}, nil)
	b.Await(t, stream, workertest.Has[domain.BuildArgsFiltered])
	b.stop()
	types := workertest.Types(b.Log(stream))
	if !slices.Equal(types[len(types)-2:], []string{"WorkspaceRemoved", "AttemptLost"}) {
		t.Errorf("ends with %v", types)
	}
	if left, err := os.ReadDir(b.workspace); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestDaemonThatIsAwayLosesTheAttemptNotTheBuild(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(_ *bed, c *runner.Config) {
		c.BuildKit = "unix://" + filepath.Join(t.TempDir(), "none.sock")
		c.ConnectTimeout = 1
	})
	stream := b.want(map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}, nil)
	lost := workertest.Last[domain.AttemptLost](b.Await(t, stream, workertest.Has[domain.AttemptLost]))
	if !strings.Contains(lost.Reason, "BuildKit") || workertest.Has[domain.BuildFailed](b.Log(stream)) {
		t.Errorf("%+v", lost)
	}
	b.noWorkspace()
}

func TestBuildTimeOutNamesItsStep(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(_ *bed, c *runner.Config) { c.BuildTimeout = 5e9 })
	d, _ := b.fail("BUILD_TIMEOUT", map[string]string{"Dockerfile": "FROM busybox:stable\nRUN echo " + uuid.NewString() + " so far; sleep 1000\n"}, nil)
	if !strings.Contains(d.Step, "sleep 1000") || len(d.Log) != 1 || !strings.Contains(d.Log[0], "so far") {
		t.Errorf("%s", d)
	}
}

func TestParallelBuildsOfOneProject(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(_ *bed, c *runner.Config) { c.Slots = 4 })
	var streams []domain.Stream
	for i := range 6 {
		streams = append(streams, b.want(map[string]string{"Dockerfile": "FROM busybox:stable\nCOPY f /f\nRUN cat /f\n", "f": strconv.Itoa(i)}, nil))
	}
	for i, stream := range streams {
		log := b.Await(t, stream, over)
		if got := content(t, b.image(workertest.Last[domain.ImagePushed](log).Reference))["f"]; got != strconv.Itoa(i) {
			t.Errorf("image %d holds %q", i, got)
		}
	}
	b.noWorkspace()
}

func TestConfigProblemsAreToldAtOnce(t *testing.T) {
	t.Parallel()
	_, err := runner.New(runner.Config{})
	for _, want := range []string{"bus", "BUILDKIT_HOST", "workspaces"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v doesn't tell of %s", err, want)
		}
	}
}
