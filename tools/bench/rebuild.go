package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/projections"
)

// measureRebuild rebuilds the read model of builds, which has a history row for each step of each build, beside the one
// in use. A rebuild is all that `pipeops projections rebuild` waits for: replay, indexes, comparison with the rows in
// use, exchange. Only events of builds count, which are four in five; the others are never read.
func measureRebuild(ctx context.Context, b *bench) error {
	l, err := b.openLog(ctx, "rebuild")
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.simulate(ctx, 1, 200, 300_000, nil); err != nil {
		return err
	}
	p, stop, err := l.buildReadModels(ctx)
	if err != nil {
		return err
	}
	stop()
	events, err := l.count(ctx, "SELECT count(*) FROM pipeops.events WHERE stream LIKE 'build/%'")
	if err != nil {
		return err
	}
	var rates []float64
	var versions int64
	for round := -1; round < b.rounds; round++ {
		began := time.Now()
		rebuilt, err := p.Rebuild(ctx, projections.OfBuilds, nil)
		if err != nil {
			return err
		}
		if rebuilt.Different != 0 || rebuilt.Checksum != rebuilt.InUse {
			return fmt.Errorf("the rebuilt read model isn't what was in use: %+v", rebuilt)
		}
		if versions = rebuilt.Rows; round >= 0 {
			rates = append(rates, float64(events)/time.Since(began).Seconds())
		}
	}
	b.atLeast(fmt.Sprintf("rebuild of builds, %d rows with history, events of builds", versions), rates, "events/s", 40_000)
	return nil
}

// count gives a number that the database knows.
func (l *log) count(ctx context.Context, query string) (n int64, err error) {
	conn, err := pgx.Connect(ctx, l.owner)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is in flight
	err = conn.QueryRow(ctx, query).Scan(&n)
	return n, err
}

// buildReadModels builds all of them from the whole log, and keeps them current until stop is called.
func (l *log) buildReadModels(ctx context.Context) (p *projections.Projector, stop func(), err error) {
	p, err = projections.New(projections.Config{
		Store: l.store, Leader: records.NewLeaders(l.store.Pool(), slog.Default()), Log: slog.Default(), Patience: 12 * time.Hour,
		Opener: func(context.Context, string, string, string, string) (string, bool, error) { return "", false, nil },
	})
	if err != nil {
		return nil, nil, err
	}
	running, end := context.WithCancelCause(ctx)
	ended := make(chan error, 1) // 1: nobody may wait for it
	go func() { ended <- p.Run(running) }()
	stop = func() {
		end(nil)
		_ = <-ended // it returns nil
	}
	began, told := time.Now(), time.Now()
	for {
		status, err := p.Status(ctx)
		if err != nil {
			stop()
			return nil, nil, err
		}
		slowest := status[0]
		for _, s := range status {
			if s.CaughtUpAt.IsZero() && (!slowest.CaughtUpAt.IsZero() || s.Behind > slowest.Behind) {
				slowest = s
			}
		}
		head := slowest.Cursor.Position + slowest.Behind
		if !slowest.CaughtUpAt.IsZero() {
			fmt.Fprintf(os.Stderr, "   all read models of %d events in %s\n", head, time.Since(began).Round(time.Second))
			return p, stop, nil
		}
		if time.Since(told) > 15*time.Second {
			told = time.Now()
			fmt.Fprintf(os.Stderr, "   read models: %s is at %d of %d\n", slowest.Name, slowest.Cursor.Position, head)
		}
		select {
		case <-ctx.Done():
			stop()
			return nil, nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
