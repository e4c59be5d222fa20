package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/graph"
	"github.com/pipeops/pipeops/handlers/audit"
	"github.com/pipeops/pipeops/handlers/claims"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/handlers/gitremote"
	"github.com/pipeops/pipeops/handlers/ingest"
	"github.com/pipeops/pipeops/handlers/janitor"
	"github.com/pipeops/pipeops/handlers/policies"
	"github.com/pipeops/pipeops/handlers/relay"
	"github.com/pipeops/pipeops/handlers/replay"
	"github.com/pipeops/pipeops/handlers/schedule"
	"github.com/pipeops/pipeops/handlers/webhook"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/projections"
)

func serveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Run the control plane; any number of copies (needs DATABASE_URL and AMQP_URL)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig("DATABASE_URL", "AMQP_URL")
			if err != nil {
				return err
			}
			log, ctx := logger(), cmd.Context()
			core, err := openCore(ctx, cfg, log)
			if err != nil {
				return err
			}
			defer core.store.Close()
			b, err := bus.NewAMQP(ctx, bus.AMQPConfig{URL: cfg.AMQPURL, Name: "pipeops serve", Log: log})
			if err != nil {
				return fmt.Errorf("connect to the broker: %w", err)
			}
			defer b.Close()
			l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
			if err != nil {
				return fmt.Errorf("listen on PIPEOPS_LISTEN: %w", err)
			}
			log.InfoContext(ctx, "serving", "url", cfg.URL, "address", l.Addr().String()) // the address tells a port that was chosen
			return serve(ctx, cfg, core, b, l, log)
		},
	}
}

// collectAt is how much garbage, in percent of what is in use, serve lets come together. Most of what it holds is there
// for its subscribers: with Go's 100 each one costs half as much again, with 50 a tenth more.
const collectAt = 40

// serve runs the control plane until ctx ends.
func serve(ctx context.Context, cfg config.Config, c *core, b bus.Bus, l net.Listener, log *slog.Logger) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	a := access{c}
	remote, err := gitremote.New(gitremote.Config{
		Root: filepath.Join(cfg.Home, "git"), Store: c.store, Receiver: c.commands, Projects: a, Access: a, Leader: c.leaders,
		Seal: c.deliveries.Seal, Fingerprint: c.keys.Fingerprint, Subject: a.actorID, NewID: newID, Log: log, Self: "http://" + reachableAt(l.Addr()),
	})
	if err != nil {
		return fmt.Errorf("git remote: %w", err)
	}
	hooks, err := webhook.New(webhook.Config{Receiver: c.commands, Secrets: a, Seal: c.deliveries.Seal, Fingerprint: c.keys.Fingerprint, Subject: a.actorID, NewID: newID, Log: log})
	if err != nil {
		return err
	}
	projector, err := projections.New(projections.Config{Store: c.store, Opener: c.subjects.OpenField, Leader: c.leaders, Log: log})
	if err != nil {
		return err
	}
	granting := claims.New(claims.Config{Bus: b, Commands: c.commands, Leases: c.claims, Keys: c.keys, Secrets: a.jobSecrets, Now: now, Log: log})
	replays, err := replay.New(replay.Config{
		Store: c.store, Commands: c.commands, Projector: projector, Deliveries: c.deliveries, Opener: c.subjects.OpenField,
		Keyed: commands.Keyed{Subject: a.actorID, Fingerprint: c.keys.Fingerprint}, NewID: newID, Now: now,
	})
	if err != nil {
		return err
	}
	in := ingest.New(ingest.Config{Bus: b, Commands: c.commands, Keys: c.keys, Logs: c.logs, Now: now, Log: log})
	api, err := graph.New(graph.Config{
		Queries: projector.Queries(), Commands: c.commands, Tokens: a, Secrets: c.secrets, Logs: c.logs, Workers: c.claims,
		Replays: replays, Erasures: records.NewErasures(c.keys, c.subjects, c.deliveries),
		NewID: newID, Log: log, URL: cfg.URL, Registry: cfg.Registry, KeepLogs: cfg.KeepLogs,
	})
	if err != nil {
		return err
	}
	auditor, err := audit.New(audit.Config{
		Store: c.store, Signer: c.signer, Keys: c.keys, Tokens: a, Project: a.projectID, Actors: a.tokenNames, Log: log,
	})
	if err != nil {
		return err
	}
	handler := routes(doors{api: api, hooks: hooks, remote: remote, audit: auditor, health: &health{core: c, bus: b, projector: projector, late: projections.Late, ingest: in, claims: granting}})

	g, ctx := errgroup.WithContext(ctx)
	run := func(name string, f func(context.Context) error) {
		g.Go(func() error {
			if err := f(ctx); err != nil && context.Cause(ctx) == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	run("event store", c.store.Run)
	run("projections", projector.Run)
	run("git remote", remote.Run)
	run("ingest", in.Run)
	run("claims", granting.Run)
	run("policies", policies.New(policies.Config{Store: c.store, Commands: c.commands, Leader: c.leaders, NewID: newID, Now: now, Log: log}).Run)
	run("schedule", schedule.New(schedule.Config{Store: c.store, Commands: c.commands, Bus: b, Leader: c.leaders, Leases: c.claims, Now: now, Log: log}).Run)
	run("replays", replays.Run)
	run("relay", relay.New(relay.Config{Store: c.store, Bus: b, Leader: c.leaders, Log: log}).Run)
	cleaning, err := janitor.New(janitor.Config{Logs: c.logs, Leader: c.leaders, KeepLogs: cfg.KeepLogs, Now: now, Log: log})
	if err != nil {
		return err
	}
	run("janitor", cleaning.Run)
	run("tree heads", c.signer.Run)
	run("checkpoint in the home", c.witness.run)
	if cfg.CheckpointURL != "" {
		poster, err := audit.NewPoster(audit.PosterConfig{Store: c.store, Leader: c.leaders, URL: cfg.CheckpointURL, Log: log})
		if err != nil {
			return fmt.Errorf("PIPEOPS_CHECKPOINT_URL: %w", err)
		}
		run("checkpoints off the machine", poster.Run)
	}
	run("http", func(ctx context.Context) error { return serveHTTP(ctx, l, handler) })
	return g.Wait()
}

// serveHTTP serves until ctx ends, then lets requests finish for a while.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return graph.Until(ctx) },
	}
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), shutdownGrace, errors.New("requests took too long to end"))
		defer cancel()
		done <- server.Shutdown(grace)
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done
}

// reachableAt is where other processes reach a listener: its own address, or
// this host's name when it listens on all of them.
func reachableAt(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return a.String()
	}
	host, err := os.Hostname()
	if err != nil {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}
