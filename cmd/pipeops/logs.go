package main

import (
	"fmt"
	"strconv"
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
			next := "0"
			for {
				var out struct {
					BuildLog struct {
						Text string
						Next any
						Done bool
					}
				}
				at, err := strconv.ParseInt(next, 10, 64)
				if err != nil {
					return err
				}
				if err := c.do(cmd.Context(), `query($b: ID!, $after: Int64!) { buildLog(build: $b, after: $after) { text next done } }`,
					map[string]any{"b": args[0], "after": at}, &out); err != nil {
					return err
				}
				fmt.Fprint(cmd.OutOrStdout(), out.BuildLog.Text)
				next = fmt.Sprintf("%.0f", out.BuildLog.Next)
				if s, ok := out.BuildLog.Next.(string); ok {
					next = s
				}
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
