package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/local"
)

const about = `PipeOps turns a Git push into a running release on your own Kubernetes, and
remembers every step for ever.

Exit codes: 0 done, 1 something went wrong, 2 the command line is at fault,
3 refused (the message says why), 4 what was waited for has failed.

Environment: PIPEOPS_URL and PIPEOPS_TOKEN (default: what "pipeops up" wrote),
PIPEOPS_HOME, PIPEOPS_CACHE, DATABASE_URL, PIPEOPS_MIGRATE_URL, AMQP_URL,
BUILDKIT_HOST, REGISTRY, KUBECONFIG, PIPEOPS_LISTEN, PIPEOPS_SLOTS.`

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use: "pipeops", Short: "From git push to a running release", Long: about,
		SilenceErrors: true, SilenceUsage: true, Version: version,
	}
	cmd.SetVersionTemplate("{{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &coded{exitUsage, err} })
	cmd.AddCommand(
		upCommand(), downCommand(), serveCommand(), runnerCommand(), deployerCommand(), migrateCommand(), doctorCommand(),
		projectCommand(), statusCommand(), eventsCommand(), logsCommand(), deployCommand(), rollbackCommand(),
		tokenCommand(), workerCommand(), hookCommand(), versionCommand(),
	)
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { cmd.Println(version) },
	}
}

// loadConfig reads the environment and checks that what a command needs is set.
func loadConfig(needs ...string) (config.Config, error) {
	c, err := config.Load(os.Getenv, local.DefaultHome())
	if err == nil {
		err = c.Need(needs...)
	}
	if err != nil {
		return c, &coded{exitUsage, err}
	}
	return c, nil
}

// logger writes lines of key=value to stderr; PIPEOPS_LOG=debug tells more.
func logger() *slog.Logger {
	level := slog.LevelInfo
	if os.Getenv("PIPEOPS_LOG") == "debug" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
