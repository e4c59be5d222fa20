package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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
	b.atMost(fmt.Sprintf("offline verification of an export of %d events, per million", head.Size), took.Seconds()*1e6/float64(head.Size), "s", 10)
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

// measurePast builds the read models and asks them at random positions.
func (b *bench) measurePast(ctx context.Context, l *log) error {
	p, stop, err := l.buildReadModels(ctx)
	if err != nil {
		return err
	}
	defer stop()
	head, err := l.store.Head(ctx)
	if err != nil {
		return err
	}
	q := p.Queries()
	all, err := q.Projects(ctx, projections.At{AtLeast: head})
	if err != nil {
		return err
	}
	if err := vacuum(ctx, l.owner); err != nil {
		return err
	}
	return b.askThePast(ctx, q, all, head)
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

func (b *bench) askThePast(ctx context.Context, q *projections.Queries, all []projections.Project, head domain.Cursor) error {
	dice := rand.New(rand.NewPCG(5, 5)) //nolint:gosec // a benchmark's dice
	queries := []struct {
		name string
		ask  func(p projections.Project, at projections.At) error
	}{
		{"project", func(p projections.Project, at projections.At) error { _, err := q.Project(ctx, p.Name, at); return err }},
		{"status", func(p projections.Project, at projections.At) error { _, err := q.Status(ctx, p.Name, at); return err }},
		{"builds", func(p projections.Project, at projections.At) error {
			_, err := q.Builds(ctx, p.ID, "", projections.Page{First: 20}, at)
			return err
		}},
		{"deployments", func(p projections.Project, at projections.At) error {
			_, err := q.Deployments(ctx, p.ID, "", "", projections.Page{First: 20}, at)
			return err
		}},
		{"pushes", func(p projections.Project, at projections.At) error {
			_, err := q.Pushes(ctx, p.ID, true, projections.Page{First: 20}, at)
			return err
		}},
		{"timeline", func(p projections.Project, at projections.At) error {
			_, err := q.Timeline(ctx, p.ID, "", at)
			return err
		}},
	}
	for _, query := range queries {
		var took []time.Duration
		for range 500 {
			at := domain.Cursor{LogEpoch: head.LogEpoch, Position: 1 + dice.Int64N(head.Position)}
			began := time.Now()
			if err := query.ask(all[dice.IntN(len(all))], projections.At{AsOf: &at}); err != nil {
				return fmt.Errorf("%s as of %s: %w", query.name, at, err)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		b.atMost(fmt.Sprintf("%s asOf, %d events in the store: p99", query.name, head.Position), ms(percentile(took, 99)), "ms", 50)
	}
	return nil
}
