package projections_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/projections"
)

// Sizes of the read models that BenchmarkAsOf asks: what about 10 M events make of them. The first project is a large
// one: a quarter of all builds, deployments and pushes are its.
const (
	manyProjects = 2_000
	manyBuilds   = 80_000
	manyEvents   = 10_000_000
)

// fill writes rows and history rows in the form that a projection flushes: counted from 1 by i, each row with versions
// replaced ones, its life beginning at begin and taking span positions.
type fill struct {
	table, key, project, lookup, begin string // SQL of i
	rows, versions, span               int
	value                              any // with KEY for the key
}

const ofProject = "'prj_' || CASE WHEN i % 4 = 0 THEN 1 ELSE 1 + i % 2000 END"

func fills() []fill {
	at := time.Date(2026, 11, 24, 2, 0, 0, 0, time.UTC)
	release := domain.Release{ID: "rel_1", Build: "bld_1", Commit: strings.Repeat("c", 40), Image: "reg/app@sha256:" + strings.Repeat("d", 64)}
	return []fill{
		{"projects_v1", "'prj_' || i", "'prj_' || i", "'app-' || i", "i", manyProjects, 50, manyEvents - manyProjects, projections.Project{
			Project: domain.Project{
				ID: "KEY", Name: "app", Services: []domain.Service{{ID: "svc_1", Name: "app", Spec: domain.DefaultSpec()}},
				Environments: []domain.Environment{{ID: "env_1", Name: "production"}},
			},
		}},
		{"environments_v1", "'env_' || i || '/svc_1'", "'prj_' || i", "'env_' || i", "manyProjects + i", manyProjects, 100, manyEvents - 2*manyProjects, projections.Slot{
			Project: "prj_1", Environment: "env_1", Service: "svc_1", Release: &release, Deployment: "dep_8", Latest: "dep_9",
		}},
		{"builds_v2", "'bld_' || i", ofProject, "md5(i::text)", "i * 120", manyBuilds, 12, 600_000, projections.Build{
			ID: "KEY", Project: "prj_1", ProjectName: "app", Commit: strings.Repeat("c", 40), Phase: domain.Succeeded, Image: "reg/app",
			Reference: release.Image, Step: "[2/5] RUN make", RequestedAt: at, StartedAt: at, FinishedAt: at,
		}},
		{"deployments_v2", "'dep_' || i", ofProject, "'env_' || (CASE WHEN i % 4 = 0 THEN 1 ELSE 1 + i % 2000 END) || '/svc_1'", "i * 120 + 50", manyBuilds, 10, 600_000, projections.Deployment{
			ID: "KEY", Project: "prj_1", ProjectName: "app", EnvironmentName: "production", ServiceName: "app", Release: release, Reason: "push",
			Phase: domain.Succeeded, Address: "app.svc:80", RequestedAt: at, StartedAt: at, FinishedAt: at,
		}},
		{"pushes_v1", "'psh_' || i", ofProject, "CASE WHEN i % 5 = 0 THEN 'ignored' ELSE '' END", "i * 120 - 10", manyBuilds, 12, 600_000, projections.Push{
			ID: "KEY", Project: "prj_1", Source: "github", Ref: "refs/heads/main", Branch: "main", Commit: strings.Repeat("c", 40), Status: projections.PushLive,
			Builds: []projections.PushBuild{{ID: "bld_1", Phase: domain.Succeeded}}, Deployments: []projections.PushDeployment{{ID: "dep_1"}},
		}},
		{"timeline_v1", "i", ofProject, "'psh_' || (i / 25)", "(i / 25) * 120 + i % 25", 25 * 10_000, 1, 1000, projections.Entry{
			ID: "KEY", Push: "psh_1", Type: "LayerBuilt", Text: "Built: [2/5] RUN make (1.2 s)", At: at,
		}},
	}
}

func (f fill) write(ctx context.Context, w *world) error {
	doc, err := json.Marshal(f.value)
	if err != nil {
		return err
	}
	begin := strings.ReplaceAll(f.begin, "manyProjects", strconv.Itoa(manyProjects))
	step := f.span / (f.versions + 1)
	_, err = w.owner.Exec(ctx, fmt.Sprintf(`INSERT INTO projections.%s_history (key, project, lookup, place, from_position, to_position, row)
		SELECT %s, %s, %s, %s, %[5]s + (v - 1) * %[6]d, %[5]s + v * %[6]d, replace($1, 'KEY', (%[2]s)::text)::json
		FROM generate_series(1, %[7]d) i, generate_series(1, %[8]d) v`, f.table, f.key, f.project, f.lookup, begin, step, f.rows, f.versions), string(doc))
	if err == nil {
		_, err = w.owner.Exec(ctx, fmt.Sprintf(`INSERT INTO projections.%s (key, project, lookup, place, from_position, row)
			SELECT %s, %s, %s, %s, %[5]s + %[6]d, replace($1, 'KEY', (%[2]s)::text)::json FROM generate_series(1, %[7]d) i`,
			f.table, f.key, f.project, f.lookup, begin, step*f.versions, f.rows), string(doc))
	}
	if err == nil {
		_, err = w.owner.Exec(ctx, fmt.Sprintf("VACUUM ANALYZE projections.%[1]s, projections.%[1]s_history", f.table))
	}
	if err != nil {
		return fmt.Errorf("fill %s: %w", f.table, err)
	}
	return nil
}

// BenchmarkAsOf asks read models of the size that 10 M events give them, as of random moments, one query at a time; it
// reports the median and the 99th percentile, and fails over 50 ms.
func BenchmarkAsOf(b *testing.B) {
	w := newWorld(b)
	p := w.projector(w.store)
	stop := running(b, p.Run)
	w.project("first")
	ask(b, p.Queries(), projections.At{AtLeast: w.head()})
	stop()
	for _, statement := range []string{
		"TRUNCATE projections.projects_v1, projections.projects_v1_history",
		fmt.Sprintf(`INSERT INTO pipeops.events SELECT %d, log_epoch, 'build/last', 1, gen_random_uuid(), project_id, type, schema_version, body, occurred_at,
			recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace FROM pipeops.events WHERE position = 1`, manyEvents),
		fmt.Sprintf("UPDATE projections.checkpoints SET position = %d, epoch = 1", manyEvents),
	} {
		_, err := w.owner.Exec(b.Context(), statement)
		must(b, err)
	}
	for _, f := range fills() {
		must(b, f.write(b.Context(), w))
	}
	p = w.projector(w.store) // that knows of no checkpoint yet
	q := p.Queries()
	r := rand.New(rand.NewPCG(1, 2))
	project := func() domain.ProjectID {
		if r.IntN(4) == 0 {
			return "prj_1"
		}
		return domain.ProjectID(fmt.Sprint("prj_", 1+r.IntN(manyProjects)))
	}
	page := projections.Page{First: 20}
	for _, query := range []struct {
		name   string
		models []string
		ask    func(context.Context, projections.At) (any, error)
	}{
		{"project", []string{projections.OfProjects}, func(ctx context.Context, at projections.At) (any, error) {
			return q.Project(ctx, string(project()), at)
		}},
		{"status", []string{projections.OfProjects, projections.OfEnvironments, projections.OfDeployments}, func(ctx context.Context, at projections.At) (any, error) {
			return q.Status(ctx, string(project()), at)
		}},
		{"status of 100 projects", []string{projections.OfProjects, projections.OfEnvironments, projections.OfDeployments}, func(ctx context.Context, at projections.At) (any, error) {
			found, err := q.Projects(ctx, projections.Names{First: 100, After: fmt.Sprintf("app-%d", r.IntN(manyProjects))}, at)
			if err != nil {
				return nil, err
			}
			return q.StatusOf(ctx, found, at)
		}},
		{"build", []string{projections.OfBuilds}, func(ctx context.Context, at projections.At) (any, error) {
			return q.Build(ctx, domain.BuildID(fmt.Sprint("bld_", 1+r.IntN(manyBuilds))), at)
		}},
		{"builds", []string{projections.OfBuilds}, func(ctx context.Context, at projections.At) (any, error) {
			return q.Builds(ctx, project(), "", page, at)
		}},
		{"builds of a commit", []string{projections.OfBuilds}, func(ctx context.Context, at projections.At) (any, error) {
			return q.Builds(ctx, project(), fmt.Sprintf("%07x", r.IntN(1<<28)), page, at)
		}},
		{"deployment", []string{projections.OfDeployments}, func(ctx context.Context, at projections.At) (any, error) {
			return q.Deployment(ctx, domain.DeploymentID(fmt.Sprint("dep_", 1+r.IntN(manyBuilds))), at)
		}},
		{"deployments", []string{projections.OfDeployments}, func(ctx context.Context, at projections.At) (any, error) {
			return q.Deployments(ctx, project(), "", "", page, at)
		}},
		{"deployments of a service", []string{projections.OfDeployments}, func(ctx context.Context, at projections.At) (any, error) {
			n := r.IntN(manyProjects)
			return q.Deployments(ctx, domain.ProjectID(fmt.Sprint("prj_", 1+n)), domain.EnvironmentID(fmt.Sprint("env_", 1+n)), "svc_1", page, at)
		}},
		{"deployments of an environment without any", []string{projections.OfDeployments}, func(ctx context.Context, at projections.At) (any, error) {
			return q.Deployments(ctx, "prj_1", "env_none", "", page, at)
		}},
		{"pushes", []string{projections.OfTimeline}, func(ctx context.Context, at projections.At) (any, error) {
			return q.Pushes(ctx, project(), false, page, at)
		}},
		{"timeline", []string{projections.OfTimeline}, func(ctx context.Context, at projections.At) (any, error) {
			return q.Timeline(ctx, "", domain.PushID(fmt.Sprint("psh_", 1+r.IntN(9_000))), at)
		}},
	} {
		b.Run(query.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				cursor := domain.Cursor{LogEpoch: 1, Position: 1 + r.Int64N(manyEvents)}
				begun := time.Now()
				at, err := q.Pin(b.Context(), projections.At{AsOf: &cursor}, query.models...)
				must(b, err)
				_, err = query.ask(b.Context(), at)
				must(b, err)
				took = append(took, time.Since(begun))
			}
			slices.Sort(took)
			p99 := took[len(took)*99/100]
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(p99.Microseconds())/1000, "p99-ms")
			if len(took) > 100 && p99 > 50*time.Millisecond {
				b.Errorf("as of any moment: p99 is %s, want under 50 ms", p99)
			}
		})
	}
}
