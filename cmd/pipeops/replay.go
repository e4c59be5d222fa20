package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/domain"
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
	Projections []struct {
		Name      string `json:"name"`
		Version   int    `json:"version"`
		Cursor    string `json:"cursor"`
		Rows      int64  `json:"rows"`
		Checksum  string `json:"checksum"`
		InUse     string `json:"inUse"`
		Different int64  `json:"different"`
		Replaced  bool   `json:"replaced"`
	} `json:"projections"`
	Cursor string `json:"cursor"`
}

const replayFields = `{ kind subject from to counts { name count } different differences { subject what was would }
	projections { name version cursor rows checksum inUse different replaced } cursor }`

func replayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "replay", Short: "Run the past through this version again, and compare",
		Long: "Nothing happens: no build, no deployment, no message. Only that the replay ran is recorded, with what it found, also when it failed or was cut.\nExit code 4: something came out otherwise than then.",
	}
	cmd.AddCommand(replayProjections(), replayDelivery(), replayPolicy())
	return cmd
}

func replayProjections() *cobra.Command {
	var verify, asJSON bool
	cmd := &cobra.Command{
		Use: "projections [NAME…]", Short: "Make read models from the log again, beside the ones in use, and put them in their place",
		Long:    "Prints the checksum of each: the same log gives the same one anywhere, as of the same cursor, so that two sites can be compared.",
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
		Example: "  pipeops replay policy --since 24h --project shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			vars := map[string]any{}
			if since != "" {
				after, err := replaySince(since, time.Now())
				if err != nil {
					return err
				}
				vars["since"] = after
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
	cmd.Flags().StringVar(&since, "since", "", "only what was decided from then on: 24h, 2026-11-24, 2026-11-24T08:00:00Z, or behind a cursor (default: all of the log)")
	cmd.Flags().StringVar(&project, "project", "", "only of this project, by name or id")
	cmd.Flags().BoolVar(&asJSON, "json", false, "the result as JSON")
	return cmd
}

// replaySince gives the moment for what --since says: a cursor as it is, or a time.
func replaySince(since string, now time.Time) (string, error) {
	if _, err := domain.ParseCursor(since); err == nil {
		return since, nil
	}
	at, err := sinceWhen(since, now)
	return at.Format(time.RFC3339Nano), err
}

func replayDelivery() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "delivery PUSH|DELIVERY", Short: "Read a webhook, as it came in, with this version, and say what it would lead to", Args: cobra.ExactArgs(1),
		Long:    "Takes the id of the push, or the one that the git host gave its delivery: GitHub's X-GitHub-Delivery.",
		Example: "  pipeops replay delivery psh_0190a1b2-3c4d-7e5f-8a9b-0c1d2e3f4a5b\n  pipeops replay delivery 72d3162e-cc78-11e3-81ab-4c9367dc0958",
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
	defer func() { bar.end(err == nil) }()
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
	} else if err := r.print(w); err != nil {
		return err
	}
	if r.Different > 0 {
		return &coded{exitVerdict, fmt.Errorf("%d differences", r.Different)}
	}
	return nil
}

func (r *gqlReplay) print(w io.Writer) error {
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
	if len(r.Projections) > 0 {
		rows := make([][]string, len(r.Projections))
		for i, p := range r.Projections {
			state := "compared"
			if p.Replaced {
				state = "replaced"
			}
			rows[i] = []string{p.Name, strconv.Itoa(p.Version), strconv.FormatInt(p.Rows, 10), p.Checksum, p.Cursor, state}
		}
		if err := table(w, "NAME VERSION ROWS CHECKSUM AS-OF STATE", rows); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "Recorded at %s.\n", r.Cursor)
	return err
}

// gauge tells how far something is: a bar for each subject on a terminal, else a line now and then.
type gauge struct {
	w       io.Writer
	moving  bool
	subject string
	goal    int64
	said    time.Time
}

const barWidth = 30

func (g *gauge) show(subject string, position, goal int64) {
	fresh := g.subject != subject
	if fresh {
		g.end(true)
	}
	g.subject, g.goal = subject, goal
	if g.moving {
		g.draw(position)
	} else if now := time.Now(); fresh || now.Sub(g.said) > 5*time.Second {
		fmt.Fprintf(g.w, "%s: %d of %d\n", subject, position, goal)
		g.said = now
	}
}

// draw writes the bar over the one that stands there.
func (g *gauge) draw(position int64) {
	done := int64(1)
	whole := max(g.goal, 1)
	if g.goal > 0 {
		done = min(position, g.goal)
	}
	full := int(barWidth * done / whole)
	fmt.Fprintf(g.w, "\r%-14s [%s%s] %3d %%  %d of %d\x1b[K",
		g.subject, strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*done/whole, min(position, g.goal), g.goal)
}

// end leaves the bar where it is: full, when its subject is through. Not every step was told.
func (g *gauge) end(through bool) {
	if !g.moving || g.subject == "" {
		return
	}
	if through {
		g.draw(g.goal)
	}
	fmt.Fprintln(g.w)
	g.subject = ""
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
