package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/domain"
)

const eventFields = `{ cursor position epoch id stream version project type schemaVersion data actor attempt attemptSeq correlationId causationId occurredAt recordedAt trace }`

func eventsCommand() *cobra.Command {
	var follow, asJSON bool
	var after, until, project string
	var types []string
	cmd := &cobra.Command{
		Use: "events", Short: "Print the log, or follow it", Args: cobra.NoArgs,
		Example: "  pipeops events --follow --project shop\n  pipeops events --json --after 1.42 --until 2026-11-24T03:00:00Z",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			filter := map[string]any{}
			if project != "" {
				filter["project"] = project
			}
			if len(types) > 0 {
				filter["types"] = types
			}
			p := printer{w: cmd.OutOrStdout(), asJSON: asJSON}
			if follow && until != "" {
				return usage("--until ends the log, and --follow goes on with it: leave one out")
			}
			if follow {
				return c.follow(cmd.Context(), after, filter, p.print)
			}
			if until != "" {
				filter["until"] = until
			}
			return c.pages(cmd.Context(), after, filter, p.print)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on with what is recorded from now on; a lost connection is taken up where it was")
	f.BoolVar(&asJSON, "json", false, "one JSON object a line")
	f.StringVar(&after, "after", "", "cursor to begin behind, for example 1.42")
	f.StringVar(&until, "until", "", "cursor or time to end with, for example 1.42 or 2026-11-24T03:00:00Z (default: the newest event)")
	f.StringVar(&project, "project", "", "only of this project")
	f.StringSliceVar(&types, "type", nil, "only of these types")
	return cmd
}

// gqlEvent is an event as GraphQL tells it: positions are text there.
type gqlEvent struct {
	domain.Line
	Position string `json:"position"`
}

func (g gqlEvent) line() (domain.Line, error) {
	l := g.Line
	var err error
	l.Position, err = strconv.ParseInt(g.Position, 10, 64)
	l.Data = stored(l.Data)
	return l, err
}

// escaped is what Go's encoder makes of &, < and > unless told otherwise, as
// the server's JSON has them; a backslash that is escaped itself goes first.
var escaped = regexp.MustCompile(`\\\\|\\u0026|\\u003c|\\u003e`)

// stored gives a body's bytes as the log keeps them (domain.Encode never
// escapes for HTML), so that its hash can be checked.
func stored(data []byte) []byte {
	return escaped.ReplaceAllFunc(data, func(b []byte) []byte {
		switch string(b) {
		case `\u0026`:
			return []byte("&")
		case `\u003c`:
			return []byte("<")
		case `\u003e`:
			return []byte(">")
		}
		return b
	})
}

type batch struct {
	Events []gqlEvent `json:"events"`
	Cursor string     `json:"cursor"`
	More   bool       `json:"more"`
}

// pages reads the log up to its head.
func (c *client) pages(ctx context.Context, after string, filter map[string]any, each func(domain.Line) error) error {
	vars := map[string]any{"first": 500}
	maps.Copy(vars, filter)
	for {
		if after != "" {
			vars["after"] = after
		}
		var out struct {
			Events batch `json:"events"`
		}
		err := c.do(ctx, `query($after: Cursor, $until: Moment, $project: ID, $types: [String!], $first: Int!) {
			events(after: $after, until: $until, project: $project, types: $types, first: $first) { events `+eventFields+` cursor more } }`, vars, &out)
		if err != nil {
			return err
		}
		if err := deliver(out.Events, each); err != nil {
			return err
		}
		if after = out.Events.Cursor; !out.Events.More {
			return nil
		}
	}
}

// follow reads the log and goes on, over lost connections, until ctx ends or
// each gives an error (errEnough is none).
func (c *client) follow(ctx context.Context, after string, filter map[string]any, each func(domain.Line) error) error {
	var broken error // what each said
	for told := false; ; {
		vars := map[string]any{"filter": filter}
		if after != "" {
			vars["after"] = after
		}
		err := c.subscribe(ctx, `subscription($after: Cursor, $filter: EventFilter) {
			events(after: $after, filter: $filter) { events `+eventFields+` cursor } }`, vars, func(data json.RawMessage) error {
			var out struct {
				Events batch `json:"events"`
			}
			if err := json.Unmarshal(data, &out); err != nil {
				return err
			}
			after, told = out.Events.Cursor, false
			broken = deliver(out.Events, each)
			return broken
		})
		var final *coded
		switch {
		case errors.Is(err, errEnough), context.Cause(ctx) != nil:
			return nil //nolint:nilerr // the end that was wanted
		case errors.As(err, &final):
			return err
		case broken != nil:
			return broken
		}
		if !told {
			fmt.Fprintf(os.Stderr, "pipeops: not connected, and trying again: %v\n", err)
			told = true
		}
		if !waitFor(ctx, time.Second) {
			return nil
		}
	}
}

func deliver(b batch, each func(domain.Line) error) error {
	for _, e := range b.Events {
		l, err := e.line()
		if err == nil {
			err = each(l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type printer struct {
	w      io.Writer
	asJSON bool
}

func (p printer) print(l domain.Line) error {
	if p.asJSON {
		enc := json.NewEncoder(p.w)
		enc.SetEscapeHTML(false) // the body stays as it is stored
		return enc.Encode(l)
	}
	subject := l.Stream[strings.LastIndex(l.Stream, "/")+1:]
	_, err := fmt.Fprintf(p.w, "%8s  %s  %-20s %s%s\n", l.Cursor, l.OccurredAt.Local().Format("15:04:05.000"), l.Type, subject, gist(l.Data))
	return err
}

// gist is what a body says in a few words.
func gist(data json.RawMessage) string {
	var d struct {
		Name      string     `json:"name"`
		Commit    string     `json:"commit"`
		Reference string     `json:"reference"`
		Reason    string     `json:"reason"`
		Ended     string     `json:"ended"` // before it was through
		Diagnosis *diagnosis `json:"diagnosis"`
	}
	_ = json.Unmarshal(data, &d) // a field of that name with another shape says nothing here
	switch {
	case d.Diagnosis != nil:
		return "  " + d.Diagnosis.Title + ": " + d.Diagnosis.Error
	case d.Name != "":
		return "  " + d.Name
	case d.Reference != "":
		return "  " + d.Reference
	case d.Reason != "":
		return "  " + d.Reason
	case d.Ended != "":
		return "  " + d.Ended
	case d.Commit != "":
		return "  " + short(d.Commit)
	}
	return ""
}
