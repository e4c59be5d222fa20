package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/projections"
)

// measureScale compares appends to a small log with appends to a large one, and asks the large one about its past.
func measureScale(ctx context.Context, b *bench) error {
	l, err := b.openLog(ctx, "scale")
	if err != nil {
		return err
	}
	defer l.close()
	projects := min(2000, max(64, b.events/100))
	const small = 10_000
	if err := l.simulate(ctx, 1, 64, small, nil); err != nil {
		return err
	}
	before, err := l.appendTimes(ctx, "before")
	if err != nil {
		return err
	}
	if err := b.grow(ctx, l, projects); err != nil {
		return err
	}
	after, err := l.appendTimes(ctx, "after")
	if err != nil {
		return err
	}
	b.noMoreThan(fmt.Sprintf("time of an append, %d events in the store", b.events), after, before, "µs", "at 10,000", 1.5)
	if err := b.prove(ctx, l); err != nil {
		return err
	}
	return b.measurePast(ctx, l)
}

// grow appends until the log is large.
func (b *bench) grow(ctx context.Context, l *log, projects int) error {
	from, err := l.store.Head(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	told, last := began, from.Position
	err = l.simulate(ctx, 2, projects, b.events, func(n int64) {
		if since := time.Since(told); since > 15*time.Second {
			fmt.Fprintf(os.Stderr, "   %d events, %.0f/s\n", n, float64(n-last)/since.Seconds())
			told, last = time.Now(), n
		}
	})
	if err != nil {
		return err
	}
	head, err := l.store.Head(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "   %d events in %s\n", head.Position, time.Since(began).Round(time.Second))
	b.atLeast(fmt.Sprintf("simulated histories appended up to %d events, 64 in flight", head.Position),
		[]float64{float64(head.Position-from.Position) / time.Since(began).Seconds()}, "events/s", 15_000)
	return nil
}

// prove exports the log and verifies the export.
func (b *bench) prove(ctx context.Context, l *log) error {
	x, err := l.openExporter(ctx)
	if err != nil {
		return err
	}
	defer x.close()
	began := time.Now()
	head, err := x.signer.Sign(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "   %d events are signed after %s\n", head.Size, time.Since(began).Round(time.Second))
	began = time.Now()
	dir := filepath.Join(b.home, "large-export")
	defer os.RemoveAll(dir) //nolint:errcheck // the folder that it is in goes too
	if err := x.write(ctx, dir); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "   %d events are exported after %s\n", head.Size, time.Since(began).Round(time.Second))
	took, err := verifyExport(dir, head.Size)
	if err != nil {
		return err
	}
	b.under(fmt.Sprintf("offline verification of an export of %d events, per million", head.Size), took.Seconds()*1e6/float64(head.Size), "s", 10)
	return nil
}

// appendTimes gives medians of single appends by one writer, in µs, of five runs.
func (l *log) appendTimes(ctx context.Context, name string) (medians []float64, err error) {
	for run := range 5 {
		var took []float64
		for n := range 400 {
			began := time.Now()
			if _, err := l.store.Append(ctx, eventstore.Append{Writes: []eventstore.Write{{
				Stream: domain.Stream(fmt.Sprintf("worker/%s-%d-%d", name, run, n)), Expected: 0, Events: []eventstore.NewEvent{ignored()},
			}}}); err != nil {
				return nil, err
			}
			took = append(took, float64(time.Since(began).Microseconds()))
		}
		medians = append(medians, median(took))
	}
	return medians, nil
}

// ignored is an event that no read model looks at.
func ignored() eventstore.NewEvent {
	e := newEvent()
	e.Type, e.ProjectID = "WorkerEnrolled", ""
	return e
}

// measurePast builds the read models and asks them at random positions, as the users of a whole `pipeops serve` do.
func (b *bench) measurePast(ctx context.Context, l *log) error {
	p, stop, err := l.buildReadModels(ctx)
	if err != nil {
		return err
	}
	past, err := b.samples(ctx, p.Queries(), l)
	stop()
	if err != nil {
		return err
	}
	if err := l.caughtUp(ctx); err != nil {
		return err
	}
	if err := vacuum(ctx, l.owner); err != nil {
		return err
	}
	s, end, err := b.serve(ctx, l)
	if err != nil {
		return err
	}
	defer end()
	return b.askThePast(ctx, s, past)
}

// caughtUp moves the cursors of what follows the log to where a serve that was there while it grew has them.
func (l *log) caughtUp(ctx context.Context) error {
	head, err := l.store.Head(ctx)
	if err != nil {
		return err
	}
	var queue domain.Queue
	for r, err := range l.store.Read(ctx, eventstore.Query{Types: domain.ScheduleTypes()}) {
		if err != nil {
			return err
		}
		e, err := r.Decode()
		if err != nil {
			return err
		}
		queue.Fold(r, e)
	}
	open := domain.Cursor{LogEpoch: head.LogEpoch, Position: queue.Begin(head.Position)}
	fmt.Fprintf(os.Stderr, "   %d builds and deployments are not over, so the scheduler begins after position %d\n", len(queue.Works), open.Position)
	for name, to := range map[string]domain.Cursor{"policies": head, "relay": head, "schedule": open} {
		at, err := l.store.LoadCursor(ctx, name)
		if err == nil && at != to {
			_, err = l.store.Append(ctx, eventstore.Append{Move: &eventstore.CursorMove{Name: name, From: at, To: to}})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// past is what can be asked for, and the positions at which each was there.
type past struct {
	head     domain.Cursor
	projects []projections.Project
	pushes   []projections.Push
}

// samples picks some pushes of each project, and counts what the log is wanted to hold.
func (b *bench) samples(ctx context.Context, q *projections.Queries, l *log) (s past, err error) {
	if s.head, err = l.store.Head(ctx); err != nil {
		return s, err
	}
	if s.projects, err = q.Projects(ctx, projections.Names{}, projections.At{AtLeast: s.head}); err != nil {
		return s, err
	}
	for _, p := range s.projects {
		pushes, err := q.Pushes(ctx, p.ID, false, projections.Page{First: 5}, projections.At{})
		if err != nil {
			return s, err
		}
		for _, push := range pushes {
			if len(push.Builds) > 0 && len(push.Deployments) > 0 {
				s.pushes = append(s.pushes, push)
			}
		}
	}
	builds, err := l.count(ctx, "SELECT count(*) FROM pipeops.events WHERE type = 'BuildRequested'")
	if err == nil && b.events >= 10_000_000 {
		b.atLeast("projects in the store", []float64{float64(len(s.projects))}, "projects", 2000)
		b.atLeast("builds in the store", []float64{float64(builds)}, "builds", 100_000)
	}
	return s, err
}

func vacuum(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is in flight
	_, err = conn.Exec(ctx, "VACUUM ANALYZE")
	return err
}

// askThePast asks each query that takes asOf, and events behind a filter, 500 times, one after the other, through GraphQL.
func (b *bench) askThePast(ctx context.Context, s *served, of past) error {
	const (
		diagnosis  = "{ code title step error reason fixes run docs log }"
		deployment = "{ id phase diagnosis " + diagnosis + " rollbackDiagnosis " + diagnosis + " }"
		status     = "{ projectName environmentName serviceName digest commit address activatedAt phase release { id build commit image } latest " + deployment + " }"
		build      = "{ id commit branch phase attempts }"
		push       = "{ id commit branch status reason diagnosis " + diagnosis + " builds " + build + " deployments " + deployment + " position }"
		project    = "{ id name branch registry version services { id name } environments { id name namespace } }"
	)
	dice := rand.New(rand.NewPCG(5, 5)) //nolint:gosec // a benchmark's dice
	for _, query := range []struct{ name, text string }{
		{"project asOf", "project(id: $project, asOf: $asOf) " + project},
		{"projects, a page of 100 asOf", "projects(after: $name, asOf: $asOf) " + project},
		{"status of a project asOf", "status(project: $project, asOf: $asOf) " + status},
		{"status, a page of 50 projects asOf", "status(after: $name, asOf: $asOf) " + status},
		{"build asOf", "build(id: $build, asOf: $asOf) " + build},
		{"builds asOf", "builds(project: $project, asOf: $asOf) " + build},
		{"builds of a commit asOf", "builds(project: $project, commit: $commit, asOf: $asOf) " + build},
		{"deployment asOf", "deployment(id: $deployment, asOf: $asOf) " + deployment},
		{"deployments asOf", "deployments(project: $project, asOf: $asOf) " + deployment},
		{"deployments to an environment asOf", "deployments(project: $project, environment: $environment, asOf: $asOf) " + deployment},
		{"push asOf", "push(id: $push, asOf: $asOf) " + push},
		{"pushes asOf", "pushes(project: $project, asOf: $asOf) " + push},
		{"timeline asOf", "timeline(project: $project, asOf: $asOf) { push { id } entries { id type severity text at } }"},
		{"why asOf", "why(project: $project, environment: $environment, asOf: $asOf) { projectName asOf }"},
		{"events of a project after a cursor", "events(project: $project, after: $after) { events { id } }"},
		{"events of a type after a cursor", "events(types: [\"PushReceived\"], after: $after) { events { id } }"},
	} {
		var took []time.Duration
		const times = 500
		answered := 0 // what is asked for may not have begun by then
		for range times {
			one := of.pushes[dice.IntN(len(of.pushes))]
			environment := ""
			p := of.projects[slices.IndexFunc(of.projects, func(p projections.Project) bool { return p.ID == one.Project })]
			if len(p.Environments) > 0 {
				environment = string(p.Environments[0].ID)
			}
			at := domain.Cursor{LogEpoch: of.head.LogEpoch, Position: one.Position + dice.Int64N(of.head.Position-one.Position+1)}
			before := domain.Cursor{LogEpoch: of.head.LogEpoch, Position: dice.Int64N(one.Position)}
			variables := map[string]any{
				"asOf": at.String(), "after": before.String(), "project": one.Project, "name": p.Name, "build": one.Builds[0].ID, "deployment": one.Deployments[0].ID,
				"environment": environment, "push": one.ID, "commit": one.Commit,
			}
			began := time.Now()
			found, err := s.ask(ctx, query.text, variables)
			if err != nil {
				return fmt.Errorf("%s, asOf %s, after %s: %w", query.name, at, before, err)
			}
			if found {
				answered++
			}
			took = append(took, time.Since(began))
		}
		if answered < times/2 {
			return fmt.Errorf("%s: only %d of %d questions were answered", query.name, answered, times)
		}
		slices.Sort(took)
		b.under(fmt.Sprintf("%s over GraphQL, %d events in the store: p99", query.name, of.head.Position), ms(percentile(took, 99)), "ms", 50)
	}
	return nil
}

// ask sends one query, and says whether there was something; an answer with errors is an error.
func (s *served) ask(ctx context.Context, field string, variables map[string]any) (found bool, err error) {
	types := map[string]string{"asOf": "Moment", "after": "Cursor", "project": "ID!", "name": "String", "build": "ID!", "deployment": "ID!", "environment": "ID!", "push": "ID!", "commit": "String"}
	var declared []string
	used := map[string]any{}
	for name, value := range variables {
		if strings.Contains(field, "$"+name) {
			declared = append(declared, "$"+name+": "+types[name])
			used[name] = value
		}
	}
	slices.Sort(declared)
	text, err := json.Marshal(map[string]any{"query": "query(" + strings.Join(declared, ", ") + ") { " + field + " }", "variables": used})
	if err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/graphql", bytes.NewReader(text))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+s.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err
	}
	var got struct {
		Data   map[string]json.RawMessage
		Errors json.RawMessage
	}
	if err := json.Unmarshal(answer, &got); err != nil || got.Errors != nil {
		return false, fmt.Errorf("%.500s", answer)
	}
	for _, value := range got.Data {
		found = found || !slices.Contains([]string{"null", "[]", `{"events":[]}`}, string(value))
	}
	return found, nil
}
