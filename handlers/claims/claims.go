// Package claims receives workers' claims and heartbeats from the bus, hands
// the claims to handlers/commands, and answers with a grant (secrets sealed to
// the claim's own key), a refusal, or what is stored of each attempt; effects.
//
// Invariants it keeps: only an enrolled worker whose signature holds gets a
// grant, and only of its class; the same claim id gets the same attempt; a
// token is an HMAC and so is checked without being stored; a heartbeat counts only
// with the signature of its worker.
package claims

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
)

// Secrets gives the secrets of one job, by name.
type Secrets func(ctx context.Context, attempt domain.AttemptID, project domain.ProjectID, kind bus.Kind) (map[string]string, error)

// Config of the claims. All fields are required.
type Config struct {
	Bus      bus.Bus
	Commands *commands.Handler
	Leases   *records.Claims
	Keys     *seal.Keyring
	Secrets  Secrets
	Now      func() time.Time
	Log      *slog.Logger
}

// Claims answers workers. Use New.
type Claims struct {
	cfg      Config
	Unsigned atomic.Int64 // heartbeats that no enrolled worker of their class has signed
}

// New gives the claims.
func New(cfg Config) *Claims { return &Claims{cfg: cfg} }

// Run answers claims and heartbeats until ctx ends.
func (c *Claims) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx) // one alone would be half a control plane
	g.Go(func() error { return c.cfg.Bus.ConsumeClaims(ctx, c.Claim) })
	g.Go(func() error { return c.cfg.Bus.ConsumeHeartbeats(ctx, c.Heartbeat) })
	return g.Wait()
}

// Claim answers one claim. An error means that it shall be delivered again;
// what can't be a claim is told to nobody and dropped.
func (c *Claims) Claim(ctx context.Context, signed bus.Signed) error {
	var claim bus.Claim
	if err := json.Unmarshal(signed.Claim, &claim); err != nil || claim.ClaimID == "" || claim.Incarnation == "" {
		c.cfg.Log.WarnContext(ctx, "claim cannot be read and is dropped", "err", err)
		return nil
	}
	grant, err := c.decide(ctx, claim, signed)
	var refusal *domain.Refusal
	switch {
	case errors.As(err, &refusal):
		return c.cfg.Bus.PublishAnswer(ctx, claim.Incarnation, bus.Answer{Refusal: &bus.Refusal{ClaimID: claim.ClaimID, Reason: refusal.Error()}})
	case err != nil:
		return bus.Later(fmt.Errorf("claim %s of %s %s: %w", claim.ClaimID, claim.Kind, claim.Subject, err))
	}
	return c.cfg.Bus.PublishAnswer(ctx, claim.Incarnation, bus.Answer{Grant: &grant})
}

func (c *Claims) decide(ctx context.Context, claim bus.Claim, signed bus.Signed) (bus.Grant, error) {
	if err := c.verify(ctx, claim, signed); err != nil {
		return bus.Grant{}, err
	}
	var cmd domain.Command
	switch claim.Kind {
	case bus.KindBuild:
		cmd = domain.ClaimBuild{Build: domain.BuildID(claim.Subject), Worker: claim.Worker, Incarnation: claim.Incarnation}
	case bus.KindDeploy:
		cmd = domain.ClaimDeployment{Deployment: domain.DeploymentID(claim.Subject), Worker: claim.Worker, Incarnation: claim.Incarnation, At: c.cfg.Now()}
	default:
		return bus.Grant{}, &domain.Refusal{Code: "BAD_KIND", Field: "kind", Message: "unknown kind of work " + string(claim.Kind)}
	}
	origin, err := c.cfg.Commands.Origin(ctx, cmd.Reads(nil)[0])
	if err != nil {
		return bus.Grant{}, err
	}
	result, err := c.cfg.Commands.Execute(ctx, cmd, commands.Meta{
		CommandID: domain.Derive("claim", claim.ClaimID), Actor: string(claim.Worker), At: c.cfg.Now(),
		Project: origin.ProjectID, CorrelationID: origin.CorrelationID, CausationID: origin.ID, Trace: origin.Trace,
	})
	if err != nil {
		return bus.Grant{}, err
	}
	return c.grant(ctx, claim, cmd, result)
}

// verify holds a claim against the enrolment of its worker.
func (c *Claims) verify(ctx context.Context, claim bus.Claim, signed bus.Signed) error {
	w, err := c.enrolled(ctx, claim.Worker)
	if err != nil {
		return err
	}
	switch {
	case len(w.PublicKey) != ed25519.PublicKeySize || !ed25519.Verify(w.PublicKey, signed.Claim, signed.Signature):
		return &domain.Refusal{Code: "NOT_ENROLLED", Field: "worker", Message: "worker " + string(claim.Worker) + " isn't enrolled with this key", Fix: "enroll it: pipeops worker enroll --class " + string(claim.Kind)}
	case w.Class != string(claim.Kind):
		return &domain.Refusal{Code: "WRONG_CLASS", Field: "kind", Message: "a " + w.Class + " worker may not claim a " + string(claim.Kind)}
	case len(claim.EphemeralKey) != 32:
		return &domain.Refusal{Code: "BAD_KEY", Field: "ephemeralKey", Message: "an X25519 public key has 32 bytes"}
	}
	return nil
}

// enrolled is what is known of a worker; nothing of one that isn't.
func (c *Claims) enrolled(ctx context.Context, id domain.WorkerID) (*domain.Worker, error) {
	state, _, err := c.cfg.Commands.Load(ctx, domain.EnrollWorker{Worker: id})
	return domain.Of[domain.Worker](state, domain.WorkerStream(id)), err
}

// grant tells the worker what was decided; for a claim id that was granted
// before, the same attempt again.
func (c *Claims) grant(ctx context.Context, claim bus.Claim, cmd domain.Command, result commands.Result) (bus.Grant, error) {
	state, _, err := c.cfg.Commands.Load(ctx, cmd)
	if err != nil {
		return bus.Grant{}, err
	}
	g := bus.Grant{ClaimID: claim.ClaimID}
	var granted domain.AttemptID
	var project domain.ProjectID
	var context any
	holds := func(worker domain.WorkerID, incarnation string) bool {
		return worker == claim.Worker && incarnation == claim.Incarnation
	}
	for _, r := range result.Events {
		e, err := r.Decode()
		if err != nil {
			return bus.Grant{}, err
		}
		switch e := e.(type) {
		case domain.BuildStarted:
			granted = e.Attempt
			b := domain.Of[domain.Build](state, r.Stream)
			project, context = b.Request.Project, domain.BuildContext{Request: b.Request}
			g.Sequence = b.Sequence
			if b.Pushed != nil {
				g.Digest = b.Pushed.Digest
			}
			if b.Attempt() != granted || !b.Running || !holds(e.Worker, e.Incarnation) {
				return bus.Grant{}, overtaken(granted)
			}
		case domain.DeploymentStarted:
			granted = e.Attempt
			d := domain.Of[domain.Deployment](state, r.Stream)
			project, context = d.Request.Project, domain.DeployContext{Request: d.Request, Previous: e.Previous, Deadline: e.Deadline}
			g.FencingEpoch, g.Sequence, g.Rollback = e.FencingEpoch, d.Sequence, d.Undoing
			if d.Attempt() != granted || !d.Running || !holds(e.Worker, e.Incarnation) {
				return bus.Grant{}, overtaken(granted)
			}
		}
	}
	if granted == "" {
		return bus.Grant{}, fmt.Errorf("claim %s decided nothing", claim.ClaimID)
	}
	if err := c.cfg.Leases.Grant(ctx, granted, claim.Worker, claim.Incarnation); err != nil {
		return bus.Grant{}, fmt.Errorf("begin lease of %s: %w", granted, err)
	}
	g.Attempt, g.Token = granted, c.cfg.Keys.AttemptToken(granted, claim.Incarnation)
	if g.Context, err = json.Marshal(context); err != nil {
		return bus.Grant{}, err
	}
	g.Sealed, err = c.sealed(ctx, claim, granted, project)
	return g, err
}

func overtaken(a domain.AttemptID) *domain.Refusal {
	return &domain.Refusal{Code: "STALE", Message: "attempt " + string(a) + " isn't the current one any more, or isn't this worker's"}
}

func (c *Claims) sealed(ctx context.Context, claim bus.Claim, attempt domain.AttemptID, project domain.ProjectID) ([]byte, error) {
	secrets, err := c.cfg.Secrets(ctx, attempt, project, claim.Kind)
	if err != nil {
		return nil, fmt.Errorf("secrets of %s: %w", attempt, err)
	}
	if len(secrets) == 0 {
		return nil, nil
	}
	plain, err := json.Marshal(secrets)
	if err != nil {
		return nil, err
	}
	return seal.To(claim.EphemeralKey, plain)
}

// Heartbeat renews leases and answers with what is stored. One that its worker
// didn't sign is counted and dropped: it could end the attempts of others.
func (c *Claims) Heartbeat(ctx context.Context, signed bus.SignedHeartbeat) error {
	var h bus.Heartbeat
	if err := json.Unmarshal(signed.Heartbeat, &h); err != nil || h.Worker == "" || h.Incarnation == "" {
		return c.unsigned(ctx, "", err)
	}
	w, err := c.enrolled(ctx, h.Worker)
	if err != nil {
		return fmt.Errorf("heartbeat of %s: %w", h.Worker, err)
	}
	if !signed.SignedBy(w.PublicKey) || w.Class != string(h.Class) {
		return c.unsigned(ctx, h.Worker, nil)
	}
	beat := records.Beat{Worker: h.Worker, Incarnation: h.Incarnation, Class: string(h.Class), Slots: h.Slots, Stopping: h.Stopping}
	answer := bus.HeartbeatAnswer{Beat: h.Beat, Running: []bus.Stored{}}
	for _, r := range h.Running {
		if !c.cfg.Keys.CheckAttemptToken(r.Attempt, h.Incarnation, r.Token) {
			c.cfg.Log.WarnContext(ctx, "heartbeat with a wrong token", "attempt", r.Attempt)
			continue
		}
		stored, err := c.Stored(ctx, r.Attempt)
		if err != nil {
			return err
		}
		if stored.Cancel == "" {
			beat.Running = append(beat.Running, r.Attempt)
		}
		answer.Running = append(answer.Running, stored)
	}
	orphans, err := c.cfg.Leases.Beat(ctx, beat)
	if err != nil {
		return fmt.Errorf("heartbeat of %s: %w", h.Worker, err)
	}
	for _, a := range orphans {
		if err := c.cfg.Commands.LoseAttempt(ctx, a, "the worker was started again", c.cfg.Now()); err != nil {
			return err
		}
	}
	return c.cfg.Bus.PublishAnswer(ctx, h.Incarnation, bus.Answer{Heartbeat: &answer})
}

func (c *Claims) unsigned(ctx context.Context, worker domain.WorkerID, err error) error {
	c.Unsigned.Add(1)
	c.cfg.Log.WarnContext(ctx, "heartbeat that no enrolled worker has signed is dropped", "worker", worker, "err", err)
	return nil
}

// Stored tells how far an attempt is in the store, and whether it shall stop.
func (c *Claims) Stored(ctx context.Context, a domain.AttemptID) (bus.Stored, error) {
	sequence, over, err := c.cfg.Commands.Progress(ctx, a)
	if err != nil {
		return bus.Stored{}, fmt.Errorf("progress of %s: %w", a, err)
	}
	return bus.Stored{Attempt: a, Stored: sequence, Cancel: over}, nil
}
