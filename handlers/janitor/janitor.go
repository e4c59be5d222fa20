// Package janitor receives the age of what is not an event from internal/records, hands back what has had its time to be
// deleted there, and hands nothing on; effects (PostgreSQL).
//
// It keeps: output of builds goes only once it is older than it is kept for, in one process at a time; events never go.
// A janitor that was frozen and deposed does no harm: what it deletes late was to go anyway.
//
//	j, err := janitor.New(janitor.Config{Logs: logs, Leader: leaders, Log: log, KeepLogs: 90 * 24 * time.Hour})
//	go j.Run(ctx)
package janitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Logs is the output of builds; see records.LogChunks.
type Logs interface {
	// DropBefore forgets output received before t, and says how many chunks went, also when it didn't get to the end.
	DropBefore(ctx context.Context, t time.Time) (int64, error)
}

// Leader runs a function in one process at a time; see records.Leaders.
type Leader interface {
	Lead(ctx context.Context, name string, run func(context.Context) error) error
}

// Config says what to keep for how long.
type Config struct {
	Logs   Logs         // required
	Leader Leader       // required
	Log    *slog.Logger // required

	KeepLogs time.Duration    // how long output of builds is kept; 0: for ever
	Interval time.Duration    // between two rounds; default 1 h
	Now      func() time.Time // default time.Now
}

// Janitor deletes what has had its time. Use New.
type Janitor struct{ config Config }

// New gives a janitor.
func New(config Config) (*Janitor, error) {
	var problems []error
	if config.Logs == nil {
		problems = append(problems, errors.New("the Logs are missing"))
	}
	if config.Leader == nil {
		problems = append(problems, errors.New("the Leader is missing"))
	}
	if config.Log == nil {
		problems = append(problems, errors.New("the Log is missing"))
	}
	if min(config.KeepLogs, config.Interval) < 0 {
		problems = append(problems, errors.New("KeepLogs or Interval is negative: 0 means for ever, or its default"))
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("janitor: %w", errors.Join(problems...))
	}
	config.Interval = cmp.Or(config.Interval, time.Hour)
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Janitor{config}, nil
}

// Run deletes at once, and then every while until ctx ends. A round that fails is tried again with the next one.
func (j *Janitor) Run(ctx context.Context) error {
	return j.config.Leader.Lead(ctx, "janitor", func(ctx context.Context) error {
		tick := time.NewTicker(j.config.Interval)
		defer tick.Stop()
		for {
			if err := j.RunOnce(ctx); err != nil && context.Cause(ctx) == nil {
				j.config.Log.WarnContext(ctx, "what has had its time can't be deleted yet", "err", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
}

// RunOnce deletes what has had its time now.
func (j *Janitor) RunOnce(ctx context.Context) error {
	if j.config.KeepLogs == 0 {
		return nil
	}
	before := j.config.Now().Add(-j.config.KeepLogs)
	dropped, err := j.config.Logs.DropBefore(ctx, before)
	if dropped > 0 {
		j.config.Log.InfoContext(ctx, "output of builds was removed", "chunks", dropped, "before", before)
	}
	return err
}
