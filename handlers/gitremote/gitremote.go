// Package gitremote receives `git push` over smart HTTP into repositories of
// its own (git's http-backend), and hands each moved ref to handlers/commands
// as a push to be recorded; effects.
//
// Invariants it keeps: a push is appended before git answers (post-receive);
// what couldn't be appended then stands in the reflogs, which are compared
// with the log at start and each minute, line by line and in order, so that
// the middle of A→B→C isn't lost and no older push is ever recorded after a
// newer one; a ref whose reflog isn't recorded yet can't be deleted. Hook and
// comparison derive the same command from the same line of a reflog.
//
//	git remote add pipeops http://127.0.0.1:7070/git/shop   # password: the API token
//	git push pipeops main
//	remote: pipeops: push psh_0190… accepted, building 4f2a91c
package gitremote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
)

// Receiver records pushes. *commands.Handler is one.
type Receiver interface {
	Receive(ctx context.Context, cmd domain.ReceivePush, m commands.Meta, opts ...commands.Option) (commands.Received, error)
}

// Project is what the remote needs to know of one.
type Project struct {
	ID     domain.ProjectID // empty: no such project
	Name   string
	Branch string // pushes to it are built
}

// Projects finds a project by its name or id; the zero Project when there is none.
type Projects interface {
	GitProject(ctx context.Context, nameOrID string) (Project, error)
}

// Access says whose token may do what. Both give the opaque id of that
// somebody, "" when the token is no good or may not. project is empty when
// there is no such project: then any good token will do.
type Access interface {
	MayPush(ctx context.Context, token string, project domain.ProjectID) (actor string, err error)
	MayFetch(ctx context.Context, token string, project domain.ProjectID) (actor string, err error)
}

// Leader runs a function in one process at a time, and tells the others where that one is.
type Leader interface {
	Lead(ctx context.Context, name string, run func(context.Context) error) error
	Announce(ctx context.Context, name, address string) error
	Announced(ctx context.Context, name string) (address string, err error)
}

// Config of a Remote.
type Config struct {
	Root     string // folder of the repositories; made when missing; required
	Receiver Receiver
	Projects Projects
	Access   Access
	Leader   Leader
	Store    *eventstore.Store // read only, at taking over
	// Seal encrypts a raw delivery under a key of its own, for the place that id names.
	Seal func(id string, raw []byte) (keyID string, sealed []byte, err error)
	// Fingerprint tells equal lines of reflogs from different ones, for ever: a MAC, because lines name people; 64 hex digits.
	Fingerprint func(project domain.ProjectID, raw []byte) string
	Subject     func(provider, person string) string // opaque id of a person, an HMAC
	NewID       domain.NewID
	Now         func() time.Time // default time.Now
	Log         *slog.Logger     // default: none

	Self        string        // base URL at which the other servers reach this one; default: it can't be reached, and they answer 503
	HookProgram string        // run as "<program> hook <name>", it calls RunHook; default: this program
	MaxPush     int64         // bytes of one push; default 512 MiB
	MaxAtOnce   int           // requests handled at the same time; default 16
	Within      time.Duration // for one request; default 15 minutes
	Every       time.Duration // between comparisons of reflogs and log; default 1 minute
}

// Validate says all that is wrong.
func (c Config) Validate() error {
	var problems []error
	for _, required := range []struct {
		name    string
		missing bool
	}{
		{"Root", c.Root == ""},
		{"Receiver", c.Receiver == nil},
		{"Projects", c.Projects == nil},
		{"Access", c.Access == nil},
		{"Leader", c.Leader == nil},
		{"Store", c.Store == nil},
		{"Seal", c.Seal == nil},
		{"Fingerprint", c.Fingerprint == nil},
		{"Subject", c.Subject == nil},
		{"NewID", c.NewID == nil},
	} {
		if required.missing {
			problems = append(problems, fmt.Errorf("git remote: %s is missing", required.name))
		}
	}
	if c.MaxPush < 0 || c.MaxAtOnce < 0 || c.Within < 0 || c.Every < 0 {
		problems = append(problems, errors.New("git remote: a bound is negative: 0 means its default"))
	}
	return errors.Join(problems...)
}

func (c Config) withDefaults() (Config, error) {
	var err error
	if c.Root, err = filepath.Abs(c.Root); err != nil {
		return c, fmt.Errorf("git remote: folder %s: %w", c.Root, err)
	}
	if c.HookProgram == "" {
		if c.HookProgram, err = os.Executable(); err != nil {
			return c, fmt.Errorf("git remote: find this program, which git's hooks shall run: %w", err)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.MaxPush = orDefault(c.MaxPush, 512<<20)
	c.MaxAtOnce = orDefault(c.MaxAtOnce, 16)
	c.Within = orDefault(c.Within, 15*time.Minute)
	c.Every = orDefault(c.Every, time.Minute)
	return c, nil
}

func orDefault[T int | int64 | time.Duration](value, standard T) T {
	if value == 0 {
		return standard
	}
	return value
}

// Remote serves /git/{project name or id} while it leads, and compares reflogs
// with the log. Its methods may be called at the same time.
type Remote struct {
	cfg     Config
	backend string        // path of git-http-backend
	gate    chan struct{} // as many requests as may be handled at once
	wake    chan struct{} // 1: something couldn't be recorded, compare soon
	session atomic.Pointer[session]

	mu           sync.Mutex
	repositories map[domain.ProjectID]*repository
	pushes       map[string]*push // under way, by id
}

// New gives a remote; Run makes it serve.
func New(cfg Config) (*Remote, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	backend, err := findBackend()
	if err != nil {
		return nil, err
	}
	return &Remote{
		cfg: cfg, backend: backend,
		gate: make(chan struct{}, cfg.MaxAtOnce), wake: make(chan struct{}, 1),
		repositories: map[domain.ProjectID]*repository{}, pushes: map[string]*push{},
	}, nil
}

// findBackend asks git where its http-backend is.
func findBackend() (string, error) {
	out, err := exec.Command("git", "--exec-path").Output() //nolint:noctx // answers at once, at start only
	if err != nil {
		return "", fmt.Errorf("git remote: ask git for its programs (install git): %w", err)
	}
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		return "", fmt.Errorf("git remote: git's http-backend is missing (install the package that has it): %w", err)
	}
	return backend, nil
}

// leaderName names the lease on the repositories.
const leaderName = "gitremote"

// Run serves until ctx ends, in one process at a time; requests under way are
// finished first. Where this process can't, the lease goes round until one can.
func (r *Remote) Run(ctx context.Context) error {
	return r.cfg.Leader.Lead(ctx, leaderName, r.lead)
}

func (r *Remote) lead(ctx context.Context) error {
	if err := r.prepare(); err != nil {
		return err
	}
	if err := r.present(ctx); err != nil {
		return err
	}
	s, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	if r.cfg.Self != "" {
		if err := r.cfg.Leader.Announce(ctx, leaderName, r.cfg.Self); err != nil {
			return err
		}
	}
	r.session.Store(s)
	defer r.session.Store(nil)
	r.follow(ctx)
	return context.Cause(ctx)
}

// retryAfter is how soon a comparison that failed is tried again, at first.
const retryAfter = 2 * time.Second

// follow compares now, each Every, and soon after something couldn't be recorded.
func (r *Remote) follow(ctx context.Context) {
	pause := retryAfter
	for {
		wait := r.cfg.Every
		if err := r.Reconcile(ctx); err != nil && context.Cause(ctx) == nil {
			r.cfg.Log.WarnContext(ctx, "reflogs are not all recorded yet", "err", err)
			wait = min(pause, r.cfg.Every)
			pause *= 2
		} else {
			pause = retryAfter
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-r.wake:
			timer.Stop()
		}
	}
}
