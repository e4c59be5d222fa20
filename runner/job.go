package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/worker"
	"github.com/pipeops/pipeops/runner/args"
	"github.com/pipeops/pipeops/runner/build"
	"github.com/pipeops/pipeops/runner/registry"
	"github.com/pipeops/pipeops/runner/source"
	"github.com/pipeops/pipeops/runner/workspace"
)

// Secrets of a build.
const (
	GitToken      = "git-token"      // opens the project's repository at our own remote, for this attempt
	GitCredential = "git-credential" //nolint:gosec // the name of one; opens a repository elsewhere: "user:token", or a token alone
)

// output is the stream that the log of a build has.
const output = "build"

var (
	errCloneTimeout = errors.New("fetching the source took too long")
	errBuildTimeout = errors.New("the build took too long")
)

// job is one attempt at a build.
type job struct {
	*Runner

	attempt *worker.Attempt
	request domain.BuildRequested
	mask    func(string) string
	began   time.Time
}

// do does one attempt; see worker.Config.
func (r *Runner) do(ctx context.Context, a *worker.Attempt) error {
	var c domain.BuildContext
	if err := json.Unmarshal(a.Grant.Context, &c); err != nil {
		return fmt.Errorf("read what to build: %w", err)
	}
	j := &job{Runner: r, attempt: a, request: c.Request, mask: newMask(hidden(a.Secrets())), began: time.Now()}
	digest, err := j.inWorkspace(ctx)
	if _, left := errors.AsType[*leftError](err); !left {
		a.Report(domain.WorkspaceRemoved{})
	}
	if err == nil {
		a.Report(domain.BuildSucceeded{Digest: digest, Duration: since(j.began)})
		return nil
	}
	if context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	d, ok := j.diagnose(err)
	if !ok {
		return errors.New(j.mask(err.Error()))
	}
	j.log("\n%s\n", d)
	a.Report(domain.BuildFailed{Diagnosis: d})
	return nil
}

// leftError says that a workspace couldn't be removed.
type leftError struct{ err error }

func (e *leftError) Error() string { return e.err.Error() }
func (e *leftError) Unwrap() error { return e.err }

// inWorkspace does the work in a workspace that is gone when it returns.
func (j *job) inWorkspace(ctx context.Context) (digest string, err error) {
	w, err := j.root.Make(string(j.attempt.ID))
	if err != nil {
		return "", err
	}
	defer func() {
		if problem := w.Remove(); problem != nil {
			err = &leftError{errors.Join(err, problem)}
		}
	}()
	digest = j.attempt.Grant.Digest
	if digest == "" {
		if digest, err = j.make(ctx, w); err != nil {
			return "", err
		}
	}
	return digest, j.tag(ctx, digest)
}

// make fetches, builds and pushes, until the image is accepted.
func (j *job) make(ctx context.Context, w *workspace.Workspace) (digest string, err error) {
	fetched, err := j.fetch(ctx, w)
	if err != nil {
		return "", err
	}
	made, err := open(fetched, w, j.request.Plan)
	if err != nil {
		return "", err
	}
	defer made.Close()
	filtered := made.dockerfile.Filter(j.request.Plan.Args, args.Own(j.request.Commit))
	j.attempt.Report(domain.BuildArgsFiltered{Passed: filtered.Names, Dropped: append([]string{}, filtered.Dropped...)})
	for _, name := range filtered.Dropped {
		j.log("build arg %s isn't passed on: no ARG of the Dockerfile declares it, or it is reserved\n", name)
	}

	building, cancel := context.WithTimeoutCause(ctx, j.cfg.BuildTimeout, errBuildTimeout)
	defer cancel()
	digest, err = j.builder.Build(building, build.Request{
		ID: string(j.attempt.ID), Project: string(j.request.Project), RootDir: j.request.Plan.RootDir,
		Context: made.context, Dockerfile: made.folder, Filename: made.filename, Args: filtered.Passed,
		Repository: j.request.Image, Mask: j.mask,
	}, j.watch(building))
	if err != nil {
		return "", err
	}
	image, err := j.registry.Describe(building, j.request.Image, digest)
	if err != nil {
		return "", because(building, err)
	}
	n := j.attempt.Report(domain.ImagePushed{Reference: image.Reference, Digest: image.Digest, Platforms: image.Platforms, SizeBytes: image.SizeBytes})
	return digest, j.attempt.Stored(ctx, n)
}

// watch reports what the builder tells.
func (j *job) watch(ctx context.Context) build.Watch {
	a := j.attempt
	return build.Watch{
		Step: func(s build.Step) {
			if s.Cached {
				a.Report(domain.LayerCached{Digest: s.Digest, Name: clip(s.Name)})
				return
			}
			a.Report(domain.LayerBuilt{Digest: s.Digest, Name: clip(s.Name), Duration: domain.Milliseconds(s.Duration.Milliseconds())})
		},
		Made: func(m build.Made) {
			a.Report(domain.ImageBuilt{Steps: m.Steps, Cached: m.Cached, Duration: domain.Milliseconds(m.Duration.Milliseconds())})
		},
		Retried: func(try int, reason string, in time.Duration) {
			a.Report(domain.ImagePushRetried{Try: try, Error: clip(reason), Wait: domain.Milliseconds(in.Milliseconds())})
		},
		Output: func(b []byte) { a.Log(output, b) },
		Effect: func() error { return a.Effect(ctx) },
	}
}

// fetch brings the commit into the workspace. Trouble with the connection is given time to pass, while the control plane
// is there: it may be the one that serves the repository.
func (j *job) fetch(ctx context.Context, w *workspace.Workspace) (source.Fetched, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, j.cfg.CloneTimeout, errCloneTimeout)
	defer cancel()
	// What opens our own remote goes nowhere else, and nothing else goes there.
	url, credential := j.request.Repository, j.attempt.Secret(GitCredential)
	if url == "" {
		url, credential = strings.TrimSuffix(j.cfg.GitRemote, "/")+"/"+j.request.ProjectName, j.attempt.Secret(GitToken)
	}
	began := time.Now()
	for wait := time.Second; ; wait *= 2 {
		if err := j.attempt.Effect(ctx); err != nil {
			return source.Fetched{}, err
		}
		fetched, err := source.Fetch(ctx, source.Request{
			URL: url, Ref: j.request.Ref, Commit: j.request.Commit, Credential: credential, OwnRemote: j.cfg.GitRemote, Workspace: w.Path(),
		})
		var failed *source.Error
		if errors.As(err, &failed) && failed.Code == source.Network && wait <= 16*time.Second {
			j.log("fetch of %s failed and is tried again: %s\n", url, failed.Message)
			if err := pause(ctx, wait); err != nil {
				return source.Fetched{}, err
			}
			continue
		}
		if err != nil {
			return source.Fetched{}, err
		}
		j.log("fetched commit %s of %s: %d files, %d bytes\n", j.request.Commit, url, fetched.Files, fetched.Bytes)
		j.attempt.Report(domain.SourceFetched{Commit: j.request.Commit, Files: fetched.Files, Bytes: fetched.Bytes, Duration: since(began)})
		return fetched, nil
	}
}

// tag lets the commit's tag name the accepted image, or, where that names another one, a tag of this build.
func (j *job) tag(ctx context.Context, digest string) error {
	own := string(j.request.Build)
	own = j.request.Tag + "-" + own[max(0, len(own)-12):]
	reference, err := j.name(ctx, j.request.Tag, digest)
	if taken, ok := errors.AsType[*registry.TakenError](err); ok {
		j.log("%v: this image gets the tag %s\n", taken, own)
		reference, err = j.name(ctx, own, digest)
	}
	if err != nil {
		return err
	}
	j.attempt.Report(domain.ImageTagged{Reference: reference, Digest: digest})
	return nil
}

// name tags once, and again while the registry is out of order.
func (j *job) name(ctx context.Context, tag, digest string) (reference string, err error) {
	for try := 0; ; try++ {
		if err := j.attempt.Effect(ctx); err != nil {
			return "", err
		}
		reference, err = j.registry.Tag(ctx, j.request.Image, tag, digest)
		var failed *registry.Error
		if !errors.As(err, &failed) || failed.Status != 0 && failed.Status != 429 && failed.Status < 500 || try == len(j.cfg.Again) {
			return reference, err
		}
		wait := j.cfg.Again[try]
		if err := pause(ctx, wait+rand.N(wait/4+1)); err != nil { //nolint:gosec // no secret
			return "", err
		}
	}
}

// log writes a line of PipeOps' own into the build's log.
func (j *job) log(format string, values ...any) {
	j.attempt.Log(output, []byte(j.mask(fmt.Sprintf(format, values...))))
}

// because prefers why ctx ended to what came of it.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func since(t time.Time) domain.Milliseconds { return domain.Milliseconds(time.Since(t).Milliseconds()) }

// pause waits, and returns why ctx ended if that comes first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// clip bounds what an event says of a name or a message.
func clip(text string) string {
	const limit = 2 << 10
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}
