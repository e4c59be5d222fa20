package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/deploy"
	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/local"
	"github.com/pipeops/pipeops/runner"
)

func runnerCommand() *cobra.Command {
	return &cobra.Command{
		Use: "runner", Short: "Run a build worker (needs AMQP_URL, BUILDKIT_HOST and PIPEOPS_URL)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig("AMQP_URL", "BUILDKIT_HOST")
			if err != nil {
				return err
			}
			return work(cmd.Context(), cfg, bus.KindBuild, func(b bus.Bus, id identity, log *slog.Logger) (service, error) { return newRunner(cfg, b, id, log) })
		},
	}
}

func deployerCommand() *cobra.Command {
	return &cobra.Command{
		Use: "deployer", Short: "Run a delivery worker (needs AMQP_URL and KUBECONFIG)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig("AMQP_URL", "KUBECONFIG")
			if err != nil {
				return err
			}
			return work(cmd.Context(), cfg, bus.KindDeploy, func(b bus.Bus, id identity, log *slog.Logger) (service, error) {
				return newDeployer(cfg, cfg.Kubeconfig, b, id, log)
			})
		},
	}
}

// service runs until ctx ends.
type service interface {
	Run(ctx context.Context) error
}

// work runs one worker of its own process.
func work(ctx context.Context, cfg config.Config, class bus.Kind, open func(bus.Bus, identity, *slog.Logger) (service, error)) error {
	log := logger()
	id, release, err := loadIdentity(identityFile(cfg.Home, class), class)
	if err != nil {
		return err
	}
	defer release()
	b, err := bus.NewAMQP(ctx, bus.AMQPConfig{URL: cfg.AMQPURL, Name: "pipeops " + string(class) + " " + string(id.Worker), Log: log})
	if err != nil {
		return fmt.Errorf("connect to the broker: %w", err)
	}
	defer b.Close()
	w, err := open(b, id, log)
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "working", "worker", id.Worker, "class", class)
	return w.Run(ctx)
}

func newRunner(cfg config.Config, b bus.Bus, id identity, log *slog.Logger) (service, error) {
	return runner.New(runner.Config{
		Bus: b, Worker: id.Worker, Key: id.Key, Slots: cfg.Slots, BuildKit: cfg.BuildKit,
		WorkspaceRoot: filepath.Join(cfg.Home, "workspaces"), GitRemote: cfg.URL + "/git", Log: log,
	})
}

func newDeployer(cfg config.Config, kubeconfig string, b bus.Bus, id identity, log *slog.Logger) (service, error) {
	return deploy.New(deploy.Config{Bus: b, Worker: id.Worker, Key: id.Key, Slots: cfg.Slots, Kubeconfig: kubeconfig, Log: log})
}

// startWorkers runs a runner and, where there is a cluster, a deployer and the
// forwarders in this process.
func startWorkers(ctx context.Context, g *errgroup.Group, cfg config.Config, c *core, b bus.Bus, p parts, log *slog.Logger) error {
	id, err := enroll(ctx, c.commands, identityFile(cfg.Home, bus.KindBuild), bus.KindBuild)
	if err != nil {
		return fmt.Errorf("enroll the runner: %w", err)
	}
	r, err := newRunner(cfg, b, id, log)
	if err != nil {
		return err
	}
	g.Go(func() error { return wrap("runner", r.Run(ctx)) })
	if p.kubeconfig == "" {
		return nil
	}
	if id, err = enroll(ctx, c.commands, identityFile(cfg.Home, bus.KindDeploy), bus.KindDeploy); err != nil {
		return fmt.Errorf("enroll the deployer: %w", err)
	}
	d, err := newDeployer(cfg, p.kubeconfig, b, id, log)
	if err != nil {
		return err
	}
	g.Go(func() error { return wrap("deployer", d.Run(ctx)) })
	g.Go(func() error { return forwardApps(ctx, g, cfg, c.store, p.kubeconfig, log) })
	return nil
}

// forwardApps gives every service that was ever deployed a loopback port.
func forwardApps(ctx context.Context, g *errgroup.Group, cfg config.Config, store *eventstore.Store, kubeconfig string, log *slog.Logger) error {
	if err := os.Remove(appsFile(cfg.Home)); err != nil && !os.IsNotExist(err) {
		return err
	}
	var apps []app
	known := map[string]bool{}
	for batch, err := range store.Subscribe(ctx, domain.Cursor{}, eventstore.Filter{Types: []string{"DeploymentRequested"}}) {
		if context.Cause(ctx) != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("follow deployments: %w", err)
		}
		for _, r := range batch.Events {
			e, err := r.Decode()
			if err != nil {
				return err
			}
			d, ok := e.(domain.DeploymentRequested)
			key := d.Namespace + "/" + d.ServiceName
			if !ok || known[key] {
				continue
			}
			known[key] = true
			address, err := local.Address(ctx, localConfig(cfg, log), "app/"+key)
			if err != nil {
				return err
			}
			g.Go(func() error {
				// A port that somebody else has taken isn't worth all the rest.
				if err := deploy.Forward(ctx, kubeconfig, d.Namespace, d.ServiceName, address); err != nil && context.Cause(ctx) == nil {
					log.ErrorContext(ctx, "service isn't reached from this machine", "service", key, "address", address, "err", err)
				}
				return nil
			})
			apps = append(apps, app{d.Namespace, d.ServiceName, address})
			if err := writePrivate(appsFile(cfg.Home), apps); err != nil {
				return err
			}
		}
	}
	return nil
}
