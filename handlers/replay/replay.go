// Package replay receives the wish to run part of the past again from graph, runs it through the code of this version
// (read models through projections, deliveries through handlers/webhook and handlers/gitremote, policies through
// domain), and hands back what came of it beside what came of it then; effects: it reads the log and the deliveries, and
// records that it ran (domain.ReplayRun) through handlers/commands.
//
// It changes nothing else, but for read models that were to be rebuilt: no command that it decides is appended, no
// cursor moves, no message is sent.
//
//	result, err := replays.Policy(ctx, replay.Run{Actor: actor, Step: progress}, cursor, "")
package replay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/projections"
)

// Deliveries gives what came in from outside, opened. *records.Deliveries is one.
type Deliveries interface {
	Get(ctx context.Context, id string) (records.Delivery, error)
}

// Config of a Replays. All fields are required.
type Config struct {
	Store      *eventstore.Store
	Commands   *commands.Handler
	Projector  *projections.Projector
	Deliveries Deliveries
	Opener     projections.Opener // of personal fields
	Keyed      commands.Keyed     // as the doors have it
	NewID      domain.NewID
	Now        func() time.Time
}

// Validate says all that is missing.
func (c Config) Validate() error {
	var problems []error
	for _, required := range []struct {
		name    string
		missing bool
	}{
		{"Store", c.Store == nil},
		{"Commands", c.Commands == nil},
		{"Projector", c.Projector == nil},
		{"Deliveries", c.Deliveries == nil},
		{"Opener", c.Opener == nil},
		{"Keyed", c.Keyed.Subject == nil || c.Keyed.Fingerprint == nil},
		{"NewID", c.NewID == nil},
		{"Now", c.Now == nil},
	} {
		if required.missing {
			problems = append(problems, fmt.Errorf("replay: %s is missing", required.name))
		}
	}
	return errors.Join(problems...)
}

// Replays runs things again. Its methods may be called at the same time.
type Replays struct{ cfg Config }

// New gives them.
func New(cfg Config) (*Replays, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Replays{cfg}, nil
}

// Run is one replay's circumstances.
type Run struct {
	Actor string     // opaque id of who wants it
	Step  func(Step) // told how far it is; may be nil
}

// Step is how far a replay is.
type Step struct {
	Subject  string // a projection, or "policy"
	Position int64
	Goal     int64
}

func (r Run) step(s Step) {
	if r.Step != nil {
		r.Step(s)
	}
}

// Result is what a replay has found.
type Result struct {
	Kind        string // "projections", "delivery" or "policy"
	Subject     string
	From, To    domain.Cursor
	Counts      []domain.ReplayCount
	Different   int64
	Differences []Difference  // the first of them
	Cursor      domain.Cursor // of its own record in the log
}

// Difference is one thing that came out otherwise.
type Difference struct {
	Subject string // a projection, or the id of the event that was decided then
	What    string // names a field or a type, without what stands in it
	Was     string // JSON; personal fields aren't told
	Would   string
}

// maxDifferences is how many a result tells; it counts all.
const maxDifferences = 1000

func (r *Result) differ(all ...Difference) {
	r.Different += int64(len(all))
	r.Differences = append(r.Differences, all[:min(len(all), maxDifferences-len(r.Differences))]...)
}

func (r *Result) count(name string, n int64) {
	for i := range r.Counts {
		if r.Counts[i].Name == name {
			r.Counts[i].Count += n
			return
		}
	}
	r.Counts = append(r.Counts, domain.ReplayCount{Name: name, Count: n})
}

// record appends what the replay has found: the only thing that it leaves.
func (r *Replays) record(ctx context.Context, run Run, result Result) (Result, error) {
	now := r.cfg.Now()
	event := domain.ReplayRun{
		Kind: result.Kind, Subject: result.Subject, From: result.From, To: result.To, Counts: result.Counts, Different: result.Different,
	}
	for _, d := range result.Differences {
		event.Differences = append(event.Differences, domain.ReplayDifference{Subject: d.Subject, What: d.What})
	}
	done, err := r.cfg.Commands.Execute(ctx, domain.RecordReplay{Replay: event, At: now},
		commands.Meta{CommandID: r.cfg.NewID("cmd"), Actor: run.Actor, At: now})
	if err != nil {
		return Result{}, fmt.Errorf("record the replay: %w", err)
	}
	result.Cursor = done.Cursor()
	return result, nil
}

// Projections replays read models, all when none is named, each beside the one in use, and compares them; unless verify
// is wanted, the replay then takes its place. Errors: *projections.UnknownError, *projections.BusyError.
func (r *Replays) Projections(ctx context.Context, run Run, names []string, verify bool) (Result, error) {
	result := Result{Kind: "projections", Subject: strings.Join(names, ", ")}
	if len(names) == 0 {
		names = r.cfg.Projector.Names()
	}
	replay := r.cfg.Projector.Rebuild
	if verify {
		replay = r.cfg.Projector.Verify
	}
	for _, name := range names {
		got, err := replay(ctx, name, func(p projections.Replayed) { run.step(Step{name, p.Position, p.Goal}) })
		if err != nil {
			return Result{}, err
		}
		if result.To.Position == 0 || got.Cursor.Position < result.To.Position {
			result.To = got.Cursor
		}
		result.count("projections", 1)
		result.count("rows", got.Rows)
		if got.Different > 0 {
			result.Differences = append(result.Differences, Difference{
				Subject: name, What: fmt.Sprintf("%d rows differ", got.Different), Was: `"` + got.InUse + `"`, Would: `"` + got.Checksum + `"`,
			})
			result.Different += got.Different
		}
	}
	return r.record(ctx, run, result)
}
