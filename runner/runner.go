// Package runner receives granted builds from internal/worker, and hands back what became of them, step by step: the
// commit fetched, the image built and pushed by digest, tagged once that was accepted, or a Diagnosis; effects.
//
//	grant → workspace → source → args → build → ImagePushed, stored → tag → workspace removed → BuildSucceeded
//
// The flow of one attempt stands in job.go. A build that fails by itself is reported as failed and not tried again; one
// whose daemon was lost ends as AttemptLost, and the control plane hands it out again. Nothing of an attempt stays behind:
// what a killed runner left is swept by the next start over the same folder.
package runner

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/worker"
	"github.com/pipeops/pipeops/runner/build"
	"github.com/pipeops/pipeops/runner/registry"
	"github.com/pipeops/pipeops/runner/workspace"
)

// Config sets a runner up. Bus, Worker, Key, BuildKit and WorkspaceRoot are required.
type Config struct {
	Bus           bus.Bus
	Worker        domain.WorkerID
	Key           ed25519.PrivateKey
	Slots         int            // builds at once; default 2
	BuildKit      string         // address of the daemon: "unix:///…", "tcp://host:port"
	WorkspaceRoot string         // folder for workspaces; runners may share it
	RegistryAuth  authn.Keychain // logins of registries; default: the Docker configuration of this user
	GitRemote     string         // base URL of our own git remote, for projects without a repository URL
	Log           *slog.Logger   // default: discarded

	ConnectTimeout time.Duration   // that BuildKit may be away until a build is handed back; default 60 s
	CloneTimeout   time.Duration   // default 5 min
	BuildTimeout   time.Duration   // for steps and push together; default 30 min
	PushTimeout    time.Duration   // of BuildTimeout; default 10 min
	Again          []time.Duration // waits before a registry is asked again; default 2, 8, 30 s
	Grace          time.Duration   // that running builds get to end when the runner is stopped; default none
}

func (c Config) withDefaults() Config {
	if c.RegistryAuth == nil {
		c.RegistryAuth = authn.DefaultKeychain
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.CloneTimeout == 0 {
		c.CloneTimeout = 5 * time.Minute
	}
	if c.BuildTimeout == 0 {
		c.BuildTimeout = 30 * time.Minute
	}
	if c.Slots == 0 {
		c.Slots = 2
	}
	if c.Again == nil {
		c.Again = []time.Duration{2 * time.Second, 8 * time.Second, 30 * time.Second}
	}
	return c
}

// Runner builds. Use New, and Run once.
type Runner struct {
	cfg      Config
	worker   *worker.Worker
	builder  *build.Builder
	registry registry.Registry
	root     *workspace.Root
}

// New gives a runner that isn't running yet. It tells every problem of c at once.
func New(c Config) (*Runner, error) {
	r := &Runner{cfg: c.withDefaults()}
	w, err := worker.New(worker.Config{
		Bus: c.Bus, Kind: bus.KindBuild, Worker: c.Worker, Key: c.Key, Slots: r.cfg.Slots, Do: r.do, Log: r.cfg.Log, Grace: c.Grace,
	})
	problems := []error{err}
	if c.BuildKit == "" {
		problems = append(problems, errors.New("runner: address of BuildKit is missing; for example BUILDKIT_HOST=unix:///run/buildkit/buildkitd.sock"))
	}
	if c.WorkspaceRoot == "" {
		problems = append(problems, errors.New("runner: folder for workspaces is missing"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	r.worker = w
	r.builder = build.New(build.Config{
		Address: c.BuildKit, Connect: c.ConnectTimeout, Keychain: r.cfg.RegistryAuth, PushWithin: c.PushTimeout, PushAgain: r.cfg.Again, Log: r.cfg.Log,
	})
	r.registry = registry.Registry{Keychain: r.cfg.RegistryAuth}
	return r, nil
}

// Run sweeps what dead runners left in the folder, and builds until ctx ends.
func (r *Runner) Run(ctx context.Context) error {
	root, swept, err := workspace.Open(r.cfg.WorkspaceRoot)
	if err != nil {
		return fmt.Errorf("run builds: %w", err)
	}
	if len(swept) > 0 {
		r.cfg.Log.WarnContext(ctx, "workspaces of runners that died were removed", "attempts", swept)
	}
	r.root = root
	return errors.Join(r.worker.Run(ctx), root.Close())
}
