package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/local"
	"github.com/pipeops/pipeops/internal/local/registry"
	"github.com/pipeops/pipeops/internal/records"
)

// upFlags are those of `pipeops up`.
type upFlags struct {
	detach       bool
	localCluster bool
	sample       string
}

func upCommand() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use: "up", Short: "Run all of PipeOps on this machine", Args: cobra.NoArgs,
		Long: `Runs the control plane, a runner and a deployer in one process, with private parts for what isn't given:
PostgreSQL (DATABASE_URL), an in-process bus (AMQP_URL), buildkitd (BUILDKIT_HOST), an image registry (REGISTRY) and,
with --with-local-cluster, a one-node Kubernetes (KUBECONFIG). Without a cluster it builds and pushes images only.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			if f.sample != "" && !f.detach {
				return usage("--sample goes with --detach")
			}
			if f.detach {
				return detach(cmd, cfg, f)
			}
			return up(cmd.Context(), cfg, f, logger())
		},
	}
	cmd.Flags().BoolVar(&f.detach, "detach", false, "run in the background and return once it is ready")
	cmd.Flags().BoolVar(&f.localCluster, "with-local-cluster", false, "run a one-node Kubernetes when there is no other cluster (root; built by tools/install)")
	cmd.Flags().StringVar(&f.sample, "sample", "", "folder of an app to push, wait until it serves, and print where")
	return cmd
}

func downCommand() *cobra.Command {
	var forget bool
	cmd := &cobra.Command{
		Use: "down", Short: "Stop all that `pipeops up` started on this machine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			if err := stopUp(cmd.Context(), cfg.Home); err != nil {
				return err
			}
			if err := local.Down(cmd.Context(), localConfig(cfg, slog.New(slog.DiscardHandler))); err != nil {
				return err
			}
			if !forget {
				return nil
			}
			return forgetHome(cfg.Home)
		},
	}
	cmd.Flags().BoolVar(&forget, "forget", false, "forget the data too")
	return cmd
}

func localConfig(cfg config.Config, log *slog.Logger) local.Config {
	return local.Config{Home: cfg.Home, Log: log, Progress: func(text string) { progress("%s", text) }}
}

// progress tells a person what takes time.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, progressMark+format+"\n", args...)
}

// progressMark begins the lines of the log that `up --detach` shows.
const progressMark = "up: "

// parts are the addresses of what `up` runs or was given.
type parts struct {
	postgres   bool               // false: DATABASE_URL is somebody else's
	registry   *registry.Registry // nil: REGISTRY is somebody else's
	listener   net.Listener
	kubeconfig string // empty: no cluster
}

// up runs everything until ctx ends, then stops what it started.
func up(ctx context.Context, cfg config.Config, f upFlags, log *slog.Logger) error {
	release, err := exclusive(filepath.Join(cfg.Home, "up.lock"))
	if err != nil {
		return fmt.Errorf("pipeops runs already in %s: %w", cfg.Home, err)
	}
	defer release()
	if err := os.Chmod(cfg.Home, 0o755); err != nil { // PostgreSQL enters as another user
		return err
	}
	if err := writePrivate(filepath.Join(cfg.Home, "up.pid"), os.Getpid()); err != nil {
		return err
	}
	if err := os.Remove(reachedFile(cfg.Home)); err != nil && !os.IsNotExist(err) { // it tells of an earlier one
		return err
	}
	lc := localConfig(cfg, log)
	defer func() {
		stop := context.WithoutCancel(ctx)
		if err := local.Down(stop, lc); err != nil {
			log.ErrorContext(stop, "parts were left running; type: pipeops down", "err", err)
		}
	}()
	g, ctx := errgroup.WithContext(ctx)
	p, err := startParts(ctx, g, &cfg, f, lc)
	if err != nil {
		return err
	}
	core, err := openCore(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer core.store.Close()
	b, err := openBus(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := writeReached(ctx, cfg, core, p.postgres); err != nil {
		return err
	}
	g.Go(func() error {
		return outlive(ctx, func(ctx context.Context) error { return serve(ctx, cfg, core, b, p.listener, log) }, func(ctx context.Context) error {
			g, ctx := errgroup.WithContext(ctx)
			g.Go(func() error {
				if err := startWorkers(ctx, g, cfg, core, b, p, log); err != nil {
					return err
				}
				progress("PipeOps runs at %s", cfg.URL)
				return nil
			})
			return g.Wait()
		})
	})
	err = g.Wait()
	if context.Cause(ctx) != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// outlive runs both until ctx ends or one of them fails, and serves until the work has ended: what workers say last is
// stored, so that a restart costs what they were at no try.
func outlive(ctx context.Context, serve, work func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	serving, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	g.Go(func() error { return serve(serving) })
	g.Go(func() error {
		defer stop(errors.New("the workers have ended"))
		return work(ctx)
	})
	return g.Wait()
}

func openBus(ctx context.Context, cfg config.Config, log *slog.Logger) (bus.Bus, error) {
	if cfg.AMQPURL == "" {
		return bus.NewInProcess(bus.Config{Log: log}), nil
	}
	b, err := bus.NewAMQP(ctx, bus.AMQPConfig{URL: cfg.AMQPURL, Name: "pipeops up", Log: log})
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	return b, nil
}

// startParts starts what isn't given, side by side, and fills cfg with the addresses.
func startParts(ctx context.Context, g *errgroup.Group, cfg *config.Config, f upFlags, lc local.Config) (parts, error) {
	var p parts
	var err error
	if p.listener, err = listen(ctx, cfg, lc); err != nil {
		return p, err
	}
	if cfg.Registry == "" {
		if p.registry, err = registry.New(ctx, lc); err != nil {
			return p, fmt.Errorf("start the image registry: %w", err)
		}
		cfg.Registry = p.registry.Address
		g.Go(func() error { return p.registry.Run(ctx) })
	}
	start, sctx := errgroup.WithContext(ctx)
	if cfg.DatabaseURL == "" {
		p.postgres = true
		start.Go(func() (err error) {
			progress("starting PostgreSQL")
			cfg.DatabaseURL, err = local.StartPostgres(sctx, lc)
			cfg.MigrateURL = cfg.DatabaseURL
			return wrap("start PostgreSQL", err)
		})
	}
	if cfg.BuildKit == "" {
		start.Go(func() (err error) {
			progress("starting buildkitd")
			if cfg.BuildKit, err = local.StartBuildkitd(sctx, lc, cfg.Registry); err != nil || p.registry == nil {
				return wrap("start buildkitd", err)
			}
			return wrap("make base images", local.EnsureBaseImages(sctx, lc, cfg.Registry, local.Busybox, local.Golang, local.Debian))
		})
	}
	start.Go(func() (err error) {
		p.kubeconfig, err = cluster(sctx, *cfg, f, lc)
		return err
	})
	return p, start.Wait()
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// listen takes PIPEOPS_LISTEN, or a loopback port that is chosen once.
func listen(ctx context.Context, cfg *config.Config, lc local.Config) (net.Listener, error) {
	if os.Getenv("PIPEOPS_LISTEN") == "" {
		address, err := local.Address(ctx, lc, "http")
		if err != nil {
			return nil, err
		}
		cfg.Listen = address
		if os.Getenv("PIPEOPS_URL") == "" {
			cfg.URL = "http://" + address
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	return l, wrap("listen on "+cfg.Listen, err)
}

// cluster finds a kubeconfig: the given one, that of a k3s, kind or minikube
// on this machine, or a cluster of our own; "" for none.
func cluster(ctx context.Context, cfg config.Config, f upFlags, lc local.Config) (string, error) {
	if cfg.Kubeconfig != "" {
		return cfg.Kubeconfig, nil
	}
	if found := foundCluster(); found != "" {
		progress("using the cluster of %s", found)
		return found, nil
	}
	if !f.localCluster {
		progress("no cluster: images are built and pushed, and not deployed; set KUBECONFIG, or add --with-local-cluster")
		return "", nil
	}
	progress("starting Kubernetes")
	kubeconfig, err := local.StartCluster(ctx, lc, cfg.Registry)
	return kubeconfig, wrap("start Kubernetes", err)
}

// foundCluster looks where k3s, kind and minikube leave their kubeconfig.
func foundCluster() string {
	if _, err := os.Stat("/etc/rancher/k3s/k3s.yaml"); err == nil {
		return "/etc/rancher/k3s/k3s.yaml"
	}
	own := filepath.Join(os.Getenv("HOME"), ".kube", "config")
	b, err := os.ReadFile(own)
	if err == nil && (strings.Contains(string(b), "current-context: kind-") || strings.Contains(string(b), "current-context: minikube")) {
		return own
	}
	return ""
}

// ownPostgres gives a command that was given no database the one that `up` keeps in the home, if the last one did.
func ownPostgres(ctx context.Context, cfg *config.Config) error {
	if cfg.MigrateURL != "" {
		return nil
	}
	if r, err := readReached(cfg.Home); err != nil || !r.OwnPostgres {
		return nil //nolint:nilerr // what can't be read tells of none
	}
	url, err := local.RunningPostgres(ctx, localConfig(*cfg, slog.New(slog.DiscardHandler)))
	if err != nil {
		return fmt.Errorf("reach the PostgreSQL that pipeops up keeps in %s (type pipeops up first, or set DATABASE_URL): %w", cfg.Home, err)
	}
	cfg.DatabaseURL, cfg.MigrateURL = url, url
	return nil
}

// startOwnPostgres runs the PostgreSQL of a home in which `up` isn't running, for a command that needs nothing else.
func startOwnPostgres(ctx context.Context, cfg *config.Config) (stop func(), err error) {
	release, err := exclusive(filepath.Join(cfg.Home, "up.lock"))
	if err != nil {
		return nil, fmt.Errorf("pipeops runs in %s (type pipeops down first): %w", cfg.Home, err)
	}
	lc := localConfig(*cfg, slog.New(slog.DiscardHandler))
	stop = func() {
		if err := local.StopPostgres(context.WithoutCancel(ctx), lc); err != nil {
			progress("PostgreSQL was left running, type pipeops down: %v", err)
		}
		release()
	}
	if cfg.MigrateURL, err = local.StartPostgres(ctx, lc); err != nil {
		stop()
		return nil, wrap("start PostgreSQL", err)
	}
	return stop, nil
}

// writeReached leaves the address and a token for the other commands.
func writeReached(ctx context.Context, cfg config.Config, c *core, ownPostgres bool) error {
	file := filepath.Join(cfg.Home, "token")
	b, err := os.ReadFile(file)
	token := strings.TrimSpace(string(b))
	switch {
	case errors.Is(err, os.ErrNotExist):
		token = records.NewToken()
		if err := writeFile(file, []byte(token+"\n")); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := os.Chmod(file, 0o600); err != nil { // whoever brought it here
			return err
		}
	}
	made, err := c.tokens.Register(ctx, "up", token)
	if errors.Is(err, records.ErrBadToken) {
		return fmt.Errorf("the token in %s was revoked: delete this file, and `pipeops up` makes a new one", file)
	}
	if err == nil {
		err = c.recordToken(ctx, made)
	}
	if err != nil {
		return fmt.Errorf("register the token of %s: %w", file, err)
	}
	return writePrivate(reachedFile(cfg.Home), reached{URL: cfg.URL, TokenFile: file, OwnPostgres: ownPostgres})
}

// forgetHome removes all data. Only a folder that PipeOps has used goes.
func forgetHome(home string) error {
	if _, err := os.Stat(filepath.Join(home, "up.lock")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	progress("forgetting %s", home)
	return os.RemoveAll(home)
}

// app is a service that `up` forwards a loopback port to.
type app struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Address   string `json:"address"` // host:port on this machine
}

func appsFile(home string) string { return filepath.Join(home, "apps.json") }

func readApps(home string) (apps []app) {
	b, err := os.ReadFile(appsFile(home))
	if err != nil || json.Unmarshal(b, &apps) != nil {
		return nil
	}
	return apps
}
