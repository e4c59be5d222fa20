package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

type gqlReplay struct {
	Kind    string `json:"kind"`
	Subject string `json:"subject"`
	From    string `json:"from"`
	To      string `json:"to"`
	Counts  []struct {
		Name  string `json:"name"`
		Count int64  `json:"count"`
	} `json:"counts"`
	Different   int64 `json:"different"`
	Differences []struct {
		Subject string `json:"subject"`
		What    string `json:"what"`
		Was     string `json:"was"`
		Would   string `json:"would"`
	} `json:"differences"`
	Cursor string `json:"cursor"`
}

const replayFields = `{ kind subject from to counts { name count } different differences { subject what was would } cursor }`

func replayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "replay", Short: "Run the past through this version again, and compare",
		Long: "Nothing happens: no build, no deployment, no message. Only that the replay ran is recorded, with what it found.\nExit code 4: something came out otherwise than then.",
	}
	cmd.AddCommand(replayProjections(), replayDelivery(), replayPolicy())
	return cmd
}

func replayProjections() *cobra.Command {
	var verify, asJSON bool
	cmd := &cobra.Command{
		Use: "projections [NAME…]", Short: "Make read models from the log again, beside the ones in use, and put them in their place",
		Example: "  pipeops replay projections --verify\n  pipeops replay projections builds timeline",
		RunE: func(cmd *cobra.Command, args []string) error {
			vars := map[string]any{"verify": verify}
			if len(args) > 0 {
				vars["names"] = args
			}
			result, err := replayed(cmd, `subscription($names: [String!], $verify: Boolean!) {
				replayProjections(names: $names, verify: $verify) { subject position goal result `+replayFields+` } }`, vars)
			if err != nil {
				return err
			}
			return result.tell(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().BoolVar(&verify, "verify", false, "only compare, and leave those in use where they are")
	cmd.Flags().BoolVar(&asJSON, "json", false, "the result as JSON")
	return cmd
}

func replayPolicy() *cobra.Command {
	var asJSON bool
	var since, project string
	cmd := &cobra.Command{
		Use: "policy", Short: "Ask this version what it would have decided: which builds of a push, which deployments of a build", Args: cobra.NoArgs,
		Example: "  pipeops replay policy --since 2026-11-01T00:00:00Z --project shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			vars := map[string]any{}
			if since != "" {
				vars["since"] = since
			}
			if project != "" {
				vars["project"] = project
			}
			result, err := replayed(cmd, `subscription($since: Moment, $project: ID) {
				replayPolicy(since: $since, project: $project) { subject position goal result `+replayFields+` } }`, vars)
			if err != nil {
				return err
			}
			return result.tell(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "cursor or time to begin behind (default: the beginning of the log)")
	cmd.Flags().StringVar(&project, "project", "", "only of this project, by name or id")
	cmd.Flags().BoolVar(&asJSON, "json", false, "the result as JSON")
	return cmd
}

func replayDelivery() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "delivery PUSH", Short: "Read a webhook, as it came in, with this version, and say what it would lead to", Args: cobra.ExactArgs(1),
		Example: "  pipeops replay delivery psh_0190a1b2-3c4d-7e5f-8a9b-0c1d2e3f4a5b",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			var out struct {
				ReplayDelivery gqlReplay `json:"replayDelivery"`
			}
			err = c.do(cmd.Context(), `mutation($push: ID!) { replayDelivery(input: {push: $push}) `+replayFields+` }`, map[string]any{"push": args[0]}, &out)
			if err != nil {
				return err
			}
			return out.ReplayDelivery.tell(cmd.OutOrStdout(), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "the result as JSON")
	return cmd
}

// replayed follows a replay to its result, and shows how far it is.
func replayed(cmd *cobra.Command, query string, vars map[string]any) (result *gqlReplay, err error) {
	c, err := newClient()
	if err != nil {
		return nil, err
	}
	bar := &gauge{w: cmd.ErrOrStderr(), moving: isTerminal(cmd.ErrOrStderr())}
	err = c.subscribe(cmd.Context(), query, vars, func(data json.RawMessage) error {
		var out map[string]struct {
			Subject  string     `json:"subject"`
			Position int64      `json:"position"`
			Goal     int64      `json:"goal"`
			Result   *gqlReplay `json:"result"`
		}
		if err := json.Unmarshal(data, &out); err != nil {
			return err
		}
		for _, step := range out {
			if result = step.Result; result != nil {
				return errEnough
			}
			bar.show(step.Subject, step.Position, step.Goal)
		}
		return nil
	})
	bar.end()
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err == nil && result == nil {
		err = errors.New("the replay ended without a result")
	}
	return result, err
}

// tell prints a result; differences are an error with an exit code of its own.
func (r *gqlReplay) tell(w io.Writer, asJSON bool) error {
	if asJSON {
		if err := printJSON(w, r); err != nil {
			return err
		}
	} else {
		r.print(w)
	}
	if r.Different > 0 {
		return &coded{exitVerdict, fmt.Errorf("%d differences", r.Different)}
	}
	return nil
}

func (r *gqlReplay) print(w io.Writer) {
	fmt.Fprintf(w, "Replayed %s", r.Kind)
	if r.Subject != "" {
		fmt.Fprintf(w, " %s", r.Subject)
	}
	fmt.Fprintf(w, ", from %s to %s:", r.From, r.To)
	for i, c := range r.Counts {
		if i > 0 {
			fmt.Fprint(w, ",")
		}
		fmt.Fprintf(w, " %d %s", c.Count, c.Name)
	}
	if r.Different == 0 {
		fmt.Fprintf(w, ". All as it was.\n")
	} else {
		fmt.Fprintf(w, ". %d differences:\n", r.Different)
	}
	for _, d := range r.Differences {
		fmt.Fprintf(w, "  %s: %s\n", d.Subject, d.What)
		if d.Was != "" || d.Would != "" {
			fmt.Fprintf(w, "    was:   %s\n    would: %s\n", d.Was, d.Would)
		}
	}
	fmt.Fprintf(w, "Recorded at %s.\n", r.Cursor)
}

// gauge is a line that tells how far something is: rewritten on a terminal, else printed now and then.
type gauge struct {
	w       io.Writer
	moving  bool
	subject string
	said    time.Time
	open    bool
}

func (p *gauge) show(subject string, position, goal int64) {
	percent := int64(100)
	if goal > 0 {
		percent = min(100, 100*position/goal)
	}
	if p.moving {
		fmt.Fprintf(p.w, "\r%-14s %3d %%  %d of %d\x1b[K", subject, percent, position, goal)
		p.open = true
		return
	}
	if now := time.Now(); p.subject != subject || now.Sub(p.said) > 5*time.Second {
		fmt.Fprintf(p.w, "%s: %d of %d\n", subject, position, goal)
		p.subject, p.said = subject, now
	}
}

func (p *gauge) end() {
	if p.open {
		fmt.Fprintln(p.w)
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
