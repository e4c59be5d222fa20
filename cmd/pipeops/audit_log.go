package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore/verify"
)

func auditLog() *cobra.Command {
	var project, actor, since string
	var types []string
	var all, asJSON bool
	cmd := &cobra.Command{
		Use: "log", Short: "Print who did what", Args: cobra.NoArgs,
		Long:    "Prints what people, policies and the scheduler did, oldest first. What workers report is left out unless --all is given.",
		Example: "  pipeops audit log --since 24h --project shop\n  pipeops audit log --type SubjectErased --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			query := url.Values{"type": types}
			if !all {
				query.Set("reports", "no")
			}
			if since != "" {
				at, err := sinceWhen(since, time.Now())
				if err != nil {
					return err
				}
				query.Set("since", at.Format(time.RFC3339Nano))
			}
			for name, value := range map[string]string{"project": project, "actor": actor} {
				if value != "" {
					query.Set(name, value)
				}
			}
			return c.auditLog(cmd.Context(), cmd.OutOrStdout(), query, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&project, "project", "", "only of this project")
	f.StringVar(&actor, "actor", "", "only what this actor did, as the log shows it (token:…, act_…, policy)")
	f.StringVar(&since, "since", "", "only from then on: 24h, 2026-11-24, or 2026-11-24T08:00:00Z")
	f.StringSliceVar(&types, "type", nil, "only of these types")
	f.BoolVar(&all, "all", false, "also what workers report")
	f.BoolVar(&asJSON, "json", false, "one JSON object a line, as `pipeops events --json` prints them")
	return cmd
}

// sinceWhen reads a --since that isn't empty: so long ago, a day, or a time.
func sinceWhen(since string, now time.Time) (time.Time, error) {
	ago, err := time.ParseDuration(since)
	at := now.Add(-ago)
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if err != nil {
			at, err = time.Parse(form, since)
		}
	}
	if err != nil {
		return at, usage("--since %q: want for example 24h, 2026-11-24 or 2026-11-24T08:00:00Z", since)
	}
	return at.UTC(), nil
}

// auditLog prints the events that the query picks as they come, in constant memory.
func (c *client) auditLog(ctx context.Context, w io.Writer, query url.Values, asJSON bool) error {
	names, err := c.names(ctx)
	if err != nil {
		return err
	}
	body, err := c.fetch(ctx, http.MethodGet, "events", query)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // it was read
	lines := bufio.NewReaderSize(body, 1<<20)
	out := bufio.NewWriter(w)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return out.Flush()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("read the log of %s: %w", c.url, err), out.Flush())
		}
		e, err := verify.ReadLine(line[:len(line)-1])
		if err == nil && asJSON {
			err = printer{w: out, asJSON: true}.print(e.Line())
		} else if err == nil {
			_, err = fmt.Fprintln(out, sentence(e, names))
		}
		if err != nil {
			return errors.Join(err, out.Flush())
		}
		if lines.Buffered() == 0 { // nothing more for now: show it
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
}

// names gives what people call projects and tokens, by id.
func (c *client) names(ctx context.Context) (map[string]string, error) {
	projects, _, err := c.projects(ctx, "", "{ id name }")
	if err != nil {
		return nil, err
	}
	text, err := c.fetchAll(ctx, http.MethodGet, "actors", nil)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	if err := json.Unmarshal(text, &names); err != nil {
		return nil, fmt.Errorf("read the names of actors: %w", err)
	}
	for _, text := range projects {
		var p project
		if err := json.Unmarshal(text, &p); err != nil {
			return nil, fmt.Errorf("read the names of projects: %w", err)
		}
		names[p.ID] = p.Name
	}
	return names, nil
}

// sentence is an event in a line: when, who, what, of which project, and what about it.
func sentence(e domain.Recorded, names map[string]string) string {
	who := e.Actor
	if name := names[e.Actor]; name != "" {
		who = name + " (" + shortID(e.Actor) + ")"
	}
	where := string(e.ProjectID)
	if name := names[where]; name != "" {
		where = name
	}
	if where == "" {
		where = "-"
	}
	subject := string(e.Stream[strings.LastIndexByte(string(e.Stream), '/')+1:])
	line := fmt.Sprintf("%s  %-8s  %-28s  %-24s  %-16s  %s%s",
		e.RecordedAt.Local().Format(time.DateTime), e.Cursor, who, words(e.Type), where, subject, gist(e.Body))
	return strings.Map(func(r rune) rune { // what others wrote must not steer the terminal
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, line)
}

// shortID is enough of a token's id to tell it from others.
func shortID(actor string) string {
	kind, id, ok := strings.Cut(actor, ":")
	if !ok || len(id) < 8 {
		return actor
	}
	return kind + " " + id[:8]
}

// words splits the name of an event type: "ProjectCreated" is "project created".
func words(eventType string) string {
	var b strings.Builder
	for i, r := range eventType {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte(' ')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
