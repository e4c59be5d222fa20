package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/domain"
)

type gqlProjection struct {
	Name       string       `json:"name"`
	Version    int          `json:"version"`
	Cursor     string       `json:"cursor"`
	Behind     int64        `json:"behind"`
	BehindMs   int64        `json:"behindMs"`
	MovedAt    *domain.Time `json:"movedAt"`
	CaughtUpAt *domain.Time `json:"caughtUpAt"`
	Skipped    []string     `json:"skipped"`
	Stopped    *struct {
		Position string       `json:"position"`
		Event    string       `json:"event"`
		Type     string       `json:"type"`
		Error    string       `json:"error"`
		At       *domain.Time `json:"at"`
	} `json:"stopped"`
}

const projectionFields = `{ name version cursor behind behindMs movedAt caughtUpAt skipped stopped { position event type error at } }`

func projectionsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "projections", Short: "Look after the read models, which are made from the log"}
	cmd.AddCommand(
		projectionsList(),
		projectionsDecide("retry NAME", "Let a stopped read model try its event again, at once", "retryProjection",
			"  pipeops projections retry builds --reason \"upgraded to 1.4\"", "it tries again"),
		projectionsDecide("skip NAME", "Let a stopped read model go on without its event, for ever", "skipProjection",
			"  pipeops projections skip builds --reason \"written by a faulty build of 1.3\"", "it goes on without the event"),
	)
	return cmd
}

func projectionsList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "How the read models stand: how far behind the log, and what they can't get over", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			var out struct {
				Projections []gqlProjection `json:"projections"`
			}
			if err := c.do(cmd.Context(), `{ projections `+projectionFields+` }`, nil, &out); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out.Projections)
			}
			rows := make([][]string, len(out.Projections))
			for i, p := range out.Projections {
				rows[i] = []string{p.Name, strconv.Itoa(p.Version), p.state(), p.Cursor, strconv.FormatInt(p.Behind, 10), p.age()}
			}
			if err := table(cmd.OutOrStdout(), "NAME VERSION STATE CURSOR BEHIND FOR", rows); err != nil {
				return err
			}
			for _, p := range out.Projections {
				if p.Stopped != nil {
					fmt.Fprintf(cmd.OutOrStdout(), "\n%s can't get over event %s (%s) at position %s:\n  %s\nUpgrade this server, or: pipeops projections retry|skip %s --reason …\n",
						p.Name, p.Stopped.Event, p.Stopped.Type, p.Stopped.Position, p.Stopped.Error, p.Name)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func (p gqlProjection) state() string {
	switch {
	case p.Stopped != nil:
		return "stopped"
	case p.CaughtUpAt == nil:
		return "building"
	}
	return "current"
}

func (p gqlProjection) age() string {
	return (time.Duration(p.BehindMs) * time.Millisecond).Round(100 * time.Millisecond).String()
}

func projectionsDecide(use, short, mutation, example, done string) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: use, Short: short, Example: example, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usage("--reason says why, for the record: %s", strings.TrimSpace(example))
			}
			c, err := newClient()
			if err != nil {
				return err
			}
			var out map[string]struct {
				Cursor string `json:"cursor"`
			}
			err = c.do(cmd.Context(), `mutation($in: StoppedProjectionInput!) { `+mutation+`(input: $in) { cursor } }`,
				map[string]any{"in": map[string]any{"name": args[0], "reason": reason}}, &out)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s (recorded at %s)\n", args[0], done, out[mutation].Cursor)
			return err
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why; recorded for ever, so no secrets and no names (required)")
	return cmd
}
