package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/migrations"
)

// log is a database with our schema and a store on it.
type log struct {
	url   string // of the application's login
	owner string // of the owner
	store *eventstore.Store
	close func()
}

func (b *bench) openLog(ctx context.Context, name string) (*log, error) {
	owner, drop, err := b.database(ctx, name)
	if err != nil {
		return nil, err
	}
	l := &log{owner: owner, close: drop}
	if l.url, err = migrations.Up(ctx, owner, slog.New(slog.DiscardHandler)); err == nil {
		l.store, err = eventstore.Open(ctx, eventstore.Config{URL: l.url, Log: slog.Default()})
	}
	if err != nil {
		drop()
		return nil, err
	}
	running, end := context.WithCancelCause(ctx)
	var background errgroup.Group
	background.Go(func() error { return l.store.Run(running) })
	l.close = func() {
		end(nil)
		_ = background.Wait() // it returns nil
		l.store.Close()
		drop()
	}
	return l, nil
}

// perPush is about how many events a simulated push leads to.
const perPush = 100

// simulate appends histories of so many projects of a world, until there are so many events: each project's appends in
// order, 64 projects at a time, through the append API.
func (l *log) simulate(ctx context.Context, world, projects, events int, told func(n int64)) error {
	const writers = 64
	var mu sync.Mutex
	var done int64
	group, ctx := errgroup.WithContext(ctx)
	for w := range writers {
		group.Go(func() error {
			s := newSimulator(uint64(world*writers + w)) //nolint:gosec // small
			send := func(appends ...eventstore.Append) error {
				for _, a := range appends {
					got, err := l.store.Append(ctx, a)
					if err != nil {
						return err
					}
					mu.Lock()
					if done = max(done, got.Last.Position); told != nil {
						told(done)
					}
					mu.Unlock()
				}
				return nil
			}
			var mine []*simulated
			for n := w; n < projects; n += writers {
				p, a := s.project(fmt.Sprintf("app-%d-%d", world, n))
				if err := send(a); err != nil {
					return err
				}
				mine = append(mine, p)
			}
			for len(mine) > 0 {
				for _, p := range mine {
					if mu.Lock(); done >= int64(events) {
						mu.Unlock()
						return nil
					}
					mu.Unlock()
					if err := send(s.push(p, perPush-32)...); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// measureReads compares reading the whole log with COPY of the same rows.
func measureReads(ctx context.Context, b *bench) error {
	l, err := b.openLog(ctx, "read")
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.simulate(ctx, 1, 200, 300_000, nil); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, l.owner)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is in flight
	if _, err := conn.Exec(ctx, "VACUUM ANALYZE pipeops.events"); err != nil {
		return err
	}
	head, err := l.store.Head(ctx)
	if err != nil {
		return err
	}
	events := float64(head.Position)
	read := func(each func(domain.Recorded) error) (float64, error) {
		began := time.Now()
		for e, err := range l.store.Read(ctx, eventstore.Query{}) {
			if err == nil {
				err = each(e)
			}
			if err != nil {
				return 0, err
			}
		}
		return events / time.Since(began).Seconds(), nil
	}
	var raw, typed, copied []float64
	for round := -1; round < b.rounds; round++ {
		began := time.Now()
		if _, err := conn.PgConn().CopyTo(ctx, io.Discard, "COPY (SELECT * FROM pipeops.events ORDER BY position) TO STDOUT"); err != nil {
			return err
		}
		c := events / time.Since(began).Seconds()
		r, err := read(func(domain.Recorded) error { return nil })
		if err != nil {
			return err
		}
		t, err := read(func(e domain.Recorded) error { _, err := e.Decode(); return err })
		if err != nil {
			return err
		}
		if round >= 0 {
			raw, typed, copied = append(raw, r), append(typed, t), append(copied, c)
		}
	}
	b.compare("full read by cursor: envelope and raw body", raw, copied, "events/s", "COPY", 0.4)
	b.atLeast("full read by cursor: typed Go values", typed, "events/s", 100_000)
	return nil
}
