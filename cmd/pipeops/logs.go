package main

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/spf13/cobra"
)

func logsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "logs BUILD", Short: "Print the output of a build", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			return c.printLog(cmd.Context(), cmd.OutOrStdout(), args[0], follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the build has ended")
	return cmd
}

// printLog prints a build's output so far, or to its end, through all attempts that follow.
func (c *client) printLog(ctx context.Context, w io.Writer, build string, follow bool) error {
	vars := map[string]any{"b": build, "after": 0}
	for {
		var out struct {
			BuildLog struct {
				Attempt, Text, NextAttempt string
				Next                       json.Number
				Done                       bool
			}
		}
		err := c.do(ctx, `query($b: ID!, $a: ID, $after: Int64!) {
			buildLog(build: $b, attempt: $a, after: $after) { attempt text next done nextAttempt } }`, vars, &out)
		if err != nil {
			return err
		}
		log := out.BuildLog
		if _, err := io.WriteString(w, log.Text); err != nil {
			return err
		}
		vars["after"] = log.Next
		if log.Attempt != "" {
			vars["a"] = log.Attempt
		}
		switch {
		case log.Done && log.NextAttempt != "":
			vars["a"], vars["after"] = log.NextAttempt, 0
		case log.Done || log.Text == "" && !follow:
			return nil
		case log.Text == "" && !waitFor(ctx, 500*time.Millisecond):
			return nil
		}
	}
}
