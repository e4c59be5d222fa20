package main

import (
	"encoding/json"
	"fmt"
	"maps"
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
			var at int64
			attempt := map[string]any{}
			for {
				var out struct {
					BuildLog struct {
						Attempt string
						Text    string
						Next    json.Number
						Done    bool
					}
				}
				vars := map[string]any{"b": args[0], "after": at}
				maps.Copy(vars, attempt)
				if err := c.do(cmd.Context(), `query($b: ID!, $a: ID, $after: Int64!) { buildLog(build: $b, attempt: $a, after: $after) { attempt text next done } }`, vars, &out); err != nil {
					return err
				}
				if at, err = out.BuildLog.Next.Int64(); err != nil {
					return err
				}
				if out.BuildLog.Attempt != "" {
					attempt["a"] = out.BuildLog.Attempt
				}
				fmt.Fprint(cmd.OutOrStdout(), out.BuildLog.Text)
				switch {
				case out.BuildLog.Done || (out.BuildLog.Text == "" && !follow):
					return nil
				case out.BuildLog.Text == "" && !waitFor(cmd.Context(), 500*time.Millisecond):
					return nil
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the build has ended")
	return cmd
}
