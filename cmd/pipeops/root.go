package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"

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
BUILDKIT_HOST, REGISTRY, KUBECONFIG, PIPEOPS_LISTEN, PIPEOPS_SLOTS,
PIPEOPS_BUILD_LOG_DAYS, PIPEOPS_CHECKPOINT_URL.`

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use: "pipeops", Short: "From git push to a running release", Long: about,
		SilenceErrors: true, SilenceUsage: true, Version: version,
	}
	cmd.SetVersionTemplate("{{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &coded{exitUsage, err} })
	defer strict(cmd)
	cmd.AddCommand(
		upCommand(), downCommand(), serveCommand(), runnerCommand(), deployerCommand(), migrateCommand(), doctorCommand(),
		projectCommand(), statusCommand(), whyCommand(), eventsCommand(), logsCommand(), deployCommand(), rollbackCommand(),
		projectionsCommand(), replayCommand(),
		auditCommand(), tokenCommand(), workerCommand(), hookCommand(), versionCommand(),
	)
	return cmd
}

// onlyGroup marks commands that do nothing themselves, though they can be run since strict.
const onlyGroup = "only-group"

// strict makes every fault of the command line an error with its exit code;
// cobra takes an unknown word after a group of commands for a cry for help.
func strict(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		strict(c)
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usage("%v; see: %s --help", err, cmd.CommandPath())
			}
			return nil
		}
	}
	if cmd.Runnable() {
		return
	}
	cmd.Args, cmd.SuggestionsMinimumDistance = cobra.ArbitraryArgs, 2
	cmd.Annotations = map[string]string{onlyGroup: "yes"}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		hint := "see: " + cmd.CommandPath() + " --help"
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "did you mean: " + strings.Join(near, ", ")
		}
		return usage("unknown command %q for %q; %s", args[0], cmd.CommandPath(), hint)
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err
		},
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
