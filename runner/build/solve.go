// Package build receives a context and a Dockerfile in a workspace, and hands back the digest of the image that BuildKit
// made of them and pushed; effects. Nobody else talks to BuildKit.
//
// One daemon serves many projects, so whatever it would share between them is named by the project: local sources, cache
// mounts, registry tokens. Only its built-in Dockerfile frontend is used: nothing is pulled that would then run with what
// the daemon is told. Images are pushed by digest, without a tag; a push that failed for now is the same solve again, of
// which everything but the push is there already.
package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/tonistiigi/fsutil"
)

// Config of a Builder. Address is required.
type Config struct {
	Address  string         // of the daemon: "unix:///…", "tcp://host:port"
	Keychain authn.Keychain // logins of registries; default: none
	Log      *slog.Logger   // default: discarded

	Connect    time.Duration   // how long the daemon may be away before a build is lost; default 60 s
	Guard      time.Duration   // between two looks whether the daemon answers; it is lost after three misses; default 10 s
	PushWithin time.Duration   // default 10 min
	PushAgain  []time.Duration // waits before the push is tried again; default 2, 8, 30 s, and some jitter
}

// Builder builds images. Use New; it may be used concurrently.
type Builder struct{ cfg Config }

// New gives a builder. It connects for each build.
func New(c Config) *Builder {
	if c.Keychain == nil {
		c.Keychain = authn.NewMultiKeychain()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Connect == 0 {
		c.Connect = time.Minute
	}
	if c.Guard == 0 {
		c.Guard = 10 * time.Second
	}
	if c.PushWithin == 0 {
		c.PushWithin = 10 * time.Minute
	}
	if c.PushAgain == nil {
		c.PushAgain = []time.Duration{2 * time.Second, 8 * time.Second, 30 * time.Second}
	}
	return &Builder{cfg: c}
}

// Request is what to build.
type Request struct {
	ID         string            // used once: the attempt
	Project    string            // names what the daemon keeps between builds
	Context    *os.Root          // what COPY sees
	Dockerfile *os.Root          // folder that holds Filename, and perhaps <Filename>.dockerignore
	Filename   string            // "Dockerfile"
	RootDir    string            // of the context within the repository; with the project it names the daemon's copy
	Args       map[string]string // declared build args
	Repository string            // to push to, "ghcr.io/acme/shop"

	Mask func(string) string // masks secrets in all that is told; default: nothing is secret
}

var (
	errSolved = errors.New("solved")
	// ErrPushTimeout is why a build fails whose push took too long.
	ErrPushTimeout = errors.New("the push took too long")
)

// Build builds and pushes, and gives the digest of what the registry has now. Errors: *Error for what is wrong with the
// build or the push, *LostError when it wasn't the build's fault, or why ctx ended.
func (b *Builder) Build(ctx context.Context, r Request, w Watch) (digest string, err error) {
	if r.Mask == nil {
		r.Mask = func(s string) string { return s }
	}
	if w.Effect == nil {
		w.Effect = func() error { return nil }
	}
	p := newProgress(w, r.Mask, time.Now)
	defer p.end()
	for try := 0; ; try++ {
		if err := w.Effect(); err != nil {
			return "", err
		}
		digest, err := b.try(ctx, r, p, try)
		var failed *Error
		if !errors.As(err, &failed) || failed.Stage != Push || !failed.Again || try == len(b.cfg.PushAgain) {
			return digest, err
		}
		wait := b.cfg.PushAgain[try]
		wait += rand.N(wait/4 + 1) //nolint:gosec // no secret
		if w.Retried != nil {
			w.Retried(try+1, failed.Message, wait)
		}
		p.again()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return "", context.Cause(ctx)
		}
	}
}

// try solves once.
func (b *Builder) try(ctx context.Context, r Request, p *progress, n int) (string, error) {
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	daemon, err := b.connect(ctx)
	if err != nil {
		return "", err
	}
	defer daemon.Close() //nolint:errcheck // nothing is in flight
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel(errSolved)
	beside.Go(func() { b.guard(ctx, cancel) })

	statuses := make(chan *client.SolveStatus)
	folded := make(chan struct{})
	pushing := make(chan struct{})
	go func() {
		defer close(folded)
		begun := sync.OnceFunc(func() { close(pushing) })
		for s := range statuses { // to the end, or the solve never returns
			if p.take(s); p.export != nil {
				begun()
			}
		}
	}()
	beside.Go(func() { b.limitPush(ctx, cancel, pushing) })
	response, err := daemon.Solve(ctx, nil, b.options(r, n), statuses)
	<-folded
	switch {
	case err == nil:
		p.tellMade()
		return response.ExporterResponse["containerimage.digest"], nil
	case context.Cause(outer) != nil:
		return "", p.stopped(context.Cause(outer))
	default:
		return "", p.explain(err, context.Cause(ctx), r.Mask)
	}
}

// limitPush gives the solve up when the push takes too long.
func (b *Builder) limitPush(ctx context.Context, cancel context.CancelCauseFunc, pushing <-chan struct{}) {
	select {
	case <-pushing:
	case <-ctx.Done():
		return
	}
	timer := time.NewTimer(b.cfg.PushWithin)
	defer timer.Stop()
	select {
	case <-timer.C:
		cancel(ErrPushTimeout)
	case <-ctx.Done():
	}
}

// options are made anew for each solve: the client writes into them.
func (b *Builder) options(r Request, try int) client.SolveOpt {
	attrs := map[string]string{
		"filename": r.Filename,
		// With it the daemon's frontend doesn't look for a syntax line, which would have it run another frontend.
		"cmdline": "pipeops",
	}
	for name, value := range r.Args {
		attrs["build-arg:"+name] = value
	}
	attrs["build-arg:BUILDKIT_CACHE_MOUNT_NS"] = r.Project
	export := map[string]string{
		"name": r.Repository, "push": "true", "push-by-digest": "true", "name-canonical": "true", "oci-mediatypes": "true",
	}
	if loopback(r.Repository) {
		export["registry.insecure"] = "true"
	}
	return client.SolveOpt{
		Ref: r.ID + "-" + strconv.Itoa(try+1), Frontend: "dockerfile.v0", FrontendAttrs: maps.Clone(attrs),
		SharedKey: r.Project + "/" + r.RootDir,
		LocalMounts: map[string]fsutil.FS{
			"context": fsutil.NewRootFS(fsutil.NewRoot(r.Context)), "dockerfile": fsutil.NewRootFS(fsutil.NewRoot(r.Dockerfile)),
		},
		Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: export}},
		Session: []session.Attachable{&authority{keychain: b.cfg.Keychain, project: r.Project, repository: r.Repository}},
	}
}

// loopback says whether a repository's registry is on this machine, and so speaks http.
func loopback(repository string) bool {
	host, _, _ := strings.Cut(repository, "/")
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

var errConnect = errors.New("no answer")

// connect waits for the daemon.
func (b *Builder) connect(ctx context.Context) (*client.Client, error) {
	daemon, err := client.New(ctx, b.cfg.Address)
	if err != nil {
		return nil, &LostError{fmt.Sprintf("BuildKit at %s: %v", b.cfg.Address, err)}
	}
	waiting, cancel := context.WithTimeoutCause(ctx, b.cfg.Connect, errConnect)
	defer cancel()
	if err := daemon.Wait(waiting); err != nil {
		_ = daemon.Close() // it never was connected
		if context.Cause(ctx) != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &LostError{fmt.Sprintf("BuildKit at %s doesn't answer within %v", b.cfg.Address, b.cfg.Connect)}
	}
	return daemon, nil
}

// errFrozen is why a solve is given up whose daemon stopped to answer.
var errFrozen = errors.New("BuildKit stopped answering")

const guardMisses = 3

// guard gives the solve up when the daemon doesn't answer on a connection of its own: one that is frozen keeps the
// solve's connection open.
func (b *Builder) guard(ctx context.Context, cancel context.CancelCauseFunc) {
	daemon, err := client.New(ctx, b.cfg.Address)
	if err != nil {
		return // the solve says it better
	}
	defer daemon.Close() //nolint:errcheck // nothing is in flight
	ticker := time.NewTicker(b.cfg.Guard)
	defer ticker.Stop()
	for misses := 0; misses < guardMisses; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		asking, done := context.WithTimeoutCause(ctx, b.cfg.Guard/2, errConnect)
		if _, err := daemon.Info(asking); err != nil {
			misses++
		} else {
			misses = 0
		}
		done()
	}
	cancel(errFrozen)
}
