// Package replay receives the wish to run part of the past again from graph, runs it through the code of this version
// (read models through projections, deliveries through handlers/webhook and handlers/gitremote, policies through
// domain), and hands back what came of it beside what came of it then; effects: it reads the log and the deliveries, and
// records that it ran (domain.ReplayRun) through handlers/commands.
//
// It changes nothing else, but for read models that were to be rebuilt: no command that it decides is appended, no
// cursor moves, no message is sent. A replay that fails, or that is cut because whoever wants it leaves, is recorded as
// well, with what it had done until then.
//
//	result, err := replays.Policy(ctx, replay.Run{Actor: actor, Step: progress}, cursor, "")
package replay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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
type Replays struct {
	cfg Config

	underWay sync.RWMutex // read-locked by each replay, so that Run can wait for all
}

// New gives them.
func New(cfg Config) (*Replays, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Replays{cfg: cfg}, nil
}

// Run waits until ctx has ended, and then until the replays under way, which end with it, have recorded what they did: so
// whoever closes the store after it loses none of that.
func (r *Replays) Run(ctx context.Context) error {
	<-ctx.Done()
	r.underWay.Lock()
	defer r.underWay.Unlock()
	return nil
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
	Differences []Difference // the first of them
	Projections []domain.ReplayedProjection
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

// recordWithin is how long a replay that has ended waits to be recorded.
const recordWithin = 20 * time.Second

var errNotRecorded = errors.New("the log took too long to record the replay")

// EndedError says that a replay wasn't through. What led to it may name hosts and tables, so it is for the log of the
// server: on record are only the step and the number.
type EndedError struct {
	Step   string // "projection builds", "policy after 1.42" or "delivery"
	Number string // for the log and whoever wanted the replay, "err_…"; empty: it was cut

	err error
}

func (e *EndedError) Error() string { return "replay ended at " + e.Step + ": " + e.err.Error() }
func (e *EndedError) Unwrap() error { return e.err }

// recorded is what the record tells of it.
func (e *EndedError) recorded() string {
	if e.Number == "" {
		return "cut at " + e.Step + ": whoever wanted it left, or the server stopped"
	}
	return "failed at " + e.Step + ": internal error " + e.Number
}

// end records what a replay has found, and, where it failed at a step, what until then: also when whoever wanted it has
// left. Errors: *EndedError.
func (r *Replays) end(ctx context.Context, run Run, result Result, step string, failed error) (Result, error) {
	why := ""
	if failed != nil {
		ended := &EndedError{Step: step, err: failed}
		if context.Cause(ctx) == nil {
			ended.Number = r.cfg.NewID("err")
		}
		why, failed = ended.recorded(), ended
	}
	grace, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), recordWithin, errNotRecorded)
	defer cancel()
	cursor, err := r.record(grace, run, result, why)
	if err := errors.Join(failed, err); err != nil {
		return Result{}, err
	}
	result.Cursor = cursor
	return result, nil
}

// record appends what a replay has found: the only thing that it leaves.
func (r *Replays) record(ctx context.Context, run Run, result Result, ended string) (domain.Cursor, error) {
	now := r.cfg.Now()
	event := domain.ReplayRun{
		Kind: result.Kind, Subject: result.Subject, From: result.From, To: result.To, Counts: result.Counts, Different: result.Different,
		Projections: result.Projections, Ended: ended,
	}
	for _, d := range result.Differences {
		event.Differences = append(event.Differences, domain.ReplayDifference{Subject: d.Subject, What: d.What})
	}
	done, err := r.cfg.Commands.Execute(ctx, domain.RecordReplay{Replay: event, At: now},
		commands.Meta{CommandID: r.cfg.NewID("cmd"), Actor: run.Actor, At: now})
	if err != nil {
		return domain.Cursor{}, fmt.Errorf("record the replay: %w", err)
	}
	return done.Cursor(), nil
}

// Projections replays read models, all when none is named, each beside the one in use, and compares them; unless verify
// is wanted, the replay then takes its place. Errors: *projections.UnknownError, *projections.BusyError, *EndedError.
func (r *Replays) Projections(ctx context.Context, run Run, names []string, verify bool) (Result, error) {
	r.underWay.RLock()
	defer r.underWay.RUnlock()
	result := Result{Kind: "projections", Subject: strings.Join(names, ", "), Counts: []domain.ReplayCount{}}
	all := r.cfg.Projector.Names()
	if len(names) == 0 {
		names = all
	}
	for _, name := range names { // before any is replaced
		if !slices.Contains(all, name) {
			return Result{}, &projections.UnknownError{Name: name, Known: all}
		}
	}
	replay := r.cfg.Projector.Rebuild
	if verify {
		replay = r.cfg.Projector.Verify
	}
	for _, name := range names {
		got, err := replay(ctx, name, func(p projections.Replayed) { run.step(Step{name, p.Position, p.Goal}) })
		if err == nil || got.Replaced {
			result.made(got)
		}
		if _, busy := errors.AsType[*projections.BusyError](err); busy && len(result.Projections) == 0 {
			return Result{}, err // it hasn't begun
		}
		if err != nil {
			return r.end(ctx, run, result, "projection "+name, err)
		}
	}
	return r.end(ctx, run, result, "", nil)
}

// made adds a read model that was made again.
func (r *Result) made(got projections.Rebuilt) {
	if r.To.Position == 0 || got.Cursor.Position < r.To.Position {
		r.To = got.Cursor
	}
	r.count("projections", 1)
	r.count("rows", got.Rows)
	r.Projections = append(r.Projections, domain.ReplayedProjection{
		Name: got.Projection, Version: got.Version, Cursor: got.Cursor, Rows: got.Rows, Checksum: got.Checksum,
		InUse: got.InUse, Different: got.Different, Replaced: got.Replaced,
	})
	if got.Different > 0 {
		r.Differences = append(r.Differences, Difference{
			Subject: got.Projection, What: fmt.Sprintf("%d rows differ", got.Different), Was: quoted(got.InUse), Would: quoted(got.Checksum),
		})
		r.Different += got.Different
	}
}
