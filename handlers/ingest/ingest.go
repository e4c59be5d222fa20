// Package ingest receives workers' reports, log chunks and dead letters from
// the bus, hands the reports' items to handlers/commands, and
// answers what is stored; effects. A message is acknowledged after the append
// has committed.
//
// Stale and forged reports are counted, acknowledged and dropped: nothing that
// a worker sends is ever requeued because of what it says.
package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
)

// Config of the ingest. All fields are required.
type Config struct {
	Bus      bus.Bus
	Commands *commands.Handler
	Keys     *seal.Keyring
	Logs     *records.LogChunks
	Now      func() time.Time
	Log      *slog.Logger
}

// Ingest stores what workers report. Use New.
type Ingest struct {
	cfg     Config
	Stale   atomic.Int64 // reports of attempts that are over
	Forged  atomic.Int64 // reports with a wrong token or that the worker's class may not send
	Refused atomic.Int64 // items that the domain refused
}

// New gives the ingest.
func New(cfg Config) *Ingest { return &Ingest{cfg: cfg} }

// Run stores until ctx ends.
func (i *Ingest) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return i.cfg.Bus.ConsumeReports(ctx, i.Report) })
	g.Go(func() error { return i.cfg.Bus.ConsumeLogChunks(ctx, i.LogChunk) })
	g.Go(func() error { return i.cfg.Bus.ConsumeDead(ctx, i.Dead) })
	return g.Wait()
}

// Report stores the items of one report and answers how far the attempt is.
func (i *Ingest) Report(ctx context.Context, r bus.Report) error {
	if _, _, err := r.Attempt.Split(); err != nil || r.First < 1 || !i.cfg.Keys.CheckAttemptToken(r.Attempt, r.Incarnation, r.Token) {
		i.Forged.Add(1)
		i.cfg.Log.WarnContext(ctx, "report with a wrong token is dropped", "attempt", r.Attempt)
		return nil //nolint:nilerr // said above, and the sender gets no answer
	}
	cancel, err := i.items(ctx, r)
	if err != nil {
		return err
	}
	sequence, over, err := i.cfg.Commands.Progress(ctx, r.Attempt)
	if err != nil {
		return bus.Later(fmt.Errorf("progress of %s: %w", r.Attempt, err))
	}
	if over == "" {
		over = cancel
	}
	answer := bus.Answer{Heartbeat: &bus.HeartbeatAnswer{Running: []bus.Stored{{Attempt: r.Attempt, Stored: sequence, Cancel: over}}}}
	if err := i.cfg.Bus.PublishAnswer(ctx, r.Incarnation, answer); err != nil {
		// It is stored; the answer to the next heartbeat says so too.
		i.cfg.Log.DebugContext(ctx, "answer to a report was not sent", "attempt", r.Attempt, "err", err)
	}
	return nil
}

// items stores items until one isn't accepted. The text says why the worker
// shall stop. An attempt whose item can never be stored is given up at once,
// with the reason: nothing that it does later could be stored either.
func (i *Ingest) items(ctx context.Context, r bus.Report) (cancel string, err error) {
	class := "build"
	if r.Attempt.Stream().Kind() == "deployment" {
		class = "deploy"
	}
	items := make([]commands.Item, 0, len(r.Items))
	var forged error
	for _, item := range r.Items {
		var e domain.Event
		if e, forged = domain.WorkerItem(class, item.Type, item.Data); forged != nil {
			break // those before it are good
		}
		items = append(items, commands.Item{Event: e, At: item.At.Time})
	}
	n, err := i.cfg.Commands.Report(ctx, r.Attempt, r.First, items, "worker")
	var refusal *domain.Refusal
	var gap *domain.GapError
	switch {
	case err == nil && forged != nil:
		i.Forged.Add(1)
		i.cfg.Log.WarnContext(ctx, "report item is dropped", "attempt", r.Attempt, "err", forged)
		return forged.Error(), i.lose(ctx, r.Attempt, forged)
	case errors.As(err, &gap):
		return "", nil // the answer tells what is stored; the worker sends again what follows
	case errors.As(err, &refusal) && refusal.Code == "STALE":
		i.Stale.Add(1)
		return refusal.Message, nil
	case errors.As(err, &refusal):
		i.Refused.Add(1)
		i.cfg.Log.WarnContext(ctx, "report item is refused", "attempt", r.Attempt, "err", refusal)
		return refusal.Message, i.lose(ctx, r.Attempt, refusal)
	case commands.Unwritable(err):
		i.Refused.Add(1)
		i.cfg.Log.WarnContext(ctx, "report item can't be stored", "attempt", r.Attempt, "err", err)
		return "item " + r.Items[n].Type + " can't be stored", i.lose(ctx, r.Attempt, err)
	case err != nil:
		return "", bus.Later(fmt.Errorf("store items of %s from %d on: %w", r.Attempt, r.First, err))
	}
	return "", nil
}

// lose gives up an attempt because of what its worker reported.
func (i *Ingest) lose(ctx context.Context, a domain.AttemptID, why error) error {
	reason := "its worker reported what can't be accepted: " + why.Error()
	err := i.cfg.Commands.LoseAttempt(ctx, a, reason, i.cfg.Now())
	if _, unknown := errors.AsType[*domain.Refusal](err); unknown {
		return nil // the log was restored to before the attempt
	}
	if err != nil {
		return bus.Later(fmt.Errorf("give up %s: %w", a, err))
	}
	return nil
}

// maxLog bounds where a chunk of output may begin; workers stop long before it.
const maxLog = 1 << 32

var streamName = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

// LogChunk keeps one chunk of output.
func (i *Ingest) LogChunk(ctx context.Context, c bus.LogChunk) error {
	wrong := c.Offset < 0 || c.Offset > maxLog || len(c.Bytes) > bus.MaxBody || !streamName.MatchString(c.Stream)
	if wrong || !i.cfg.Keys.CheckAttemptToken(c.Attempt, c.Incarnation, c.Token) {
		i.Forged.Add(1)
		return nil
	}
	if err := i.cfg.Logs.Append(ctx, c.Attempt, c.Stream, c.Offset, c.Bytes); err != nil {
		return bus.Later(fmt.Errorf("keep log of %s at %d: %w", c.Attempt, c.Offset, err))
	}
	return nil
}

// Dead turns a message that nobody could handle into a failure of its subject.
func (i *Ingest) Dead(ctx context.Context, d bus.Dead) error {
	i.cfg.Log.ErrorContext(ctx, "message ended in the dead letters", "queue", d.Queue, "err", d.Reason)
	subject, reason := deadSubject(d.Message.Body)
	if subject == "" {
		return i.deadReport(ctx, d)
	}
	err := i.cfg.Commands.Fail(ctx, d.Message.ID, subject, domain.Diagnosis{
		Code: "DEAD_LETTER", Title: "Not started: its message could not be handled", Step: d.Queue,
		Error: d.Reason, Reason: reason,
		Fixes: []string{"Look at the log of `pipeops serve` and of the workers for the cause", again(subject)},
		Run:   "pipeops doctor",
	}, i.cfg.Now())
	if _, unknown := errors.AsType[*domain.Refusal](err); unknown {
		return nil
	}
	return bus.Later(err)
}

// deadReport gives up the attempt whose report nobody could handle: its worker
// would send it again for ever.
func (i *Ingest) deadReport(ctx context.Context, d bus.Dead) error {
	var r bus.Report
	if err := json.Unmarshal(d.Message.Body, &r); err != nil || len(r.Items) == 0 || !i.cfg.Keys.CheckAttemptToken(r.Attempt, r.Incarnation, r.Token) {
		return nil //nolint:nilerr // whatever it was, it is about no attempt of ours
	}
	return i.lose(ctx, r.Attempt, errors.New("its report could not be handled: "+d.Reason))
}

// deadSubject finds what a dead job or claim was about.
func deadSubject(body []byte) (subject, reason string) {
	var job bus.Job
	if json.Unmarshal(body, &job) == nil && job.Subject != "" {
		return job.Subject, "The job was delivered again and again, and every worker failed on it before it could begin"
	}
	var signed bus.Signed
	var claim bus.Claim
	if json.Unmarshal(body, &signed) == nil && json.Unmarshal(signed.Claim, &claim) == nil && claim.Subject != "" {
		return claim.Subject, "A worker claimed the work, and the claim could not be answered"
	}
	return "", ""
}

// again says how the same work is asked for once more.
func again(subject string) string {
	if domain.AttemptID(subject+".1").Stream().Kind() == "deployment" {
		return "Once the cause is gone, deploy again: pipeops deploy PROJECT"
	}
	return "Once the cause is gone, " + domain.PushAgain
}
