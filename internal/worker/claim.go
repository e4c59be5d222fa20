package worker

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/seal"
)

// claim is one that waits for its answer.
type claim struct {
	id       string
	subject  string
	signed   bus.Signed
	key      *seal.Ephemeral
	answered chan struct{} // closed by the answer; then:
	attempt  *Attempt      // nil: refused
}

var errSilent = errors.New("not answered, although heartbeats are")

// claim asks for the work of a job, again and again with the same claim. No attempt and no error mean that there is
// nothing to do. While the control plane is silent altogether, tries don't count: that isn't the job's fault.
func (w *Worker) claim(ctx context.Context, job bus.Job) (*Attempt, error) {
	c, err := w.open(job.Subject)
	if c == nil || err != nil {
		return nil, err
	}
	defer w.forget(c)
	for tries, sent := 0, false; tries < w.cfg.ClaimTries; {
		if w.contact.fresh(w.cfg.Pause) {
			tries++
			sent = false
		}
		if !sent {
			err := w.cfg.Bus.PublishClaim(ctx, c.signed)
			if sent = err == nil; !sent {
				w.cfg.Log.DebugContext(ctx, "claim was not sent", "subject", c.subject, "err", err)
			}
		}
		// Not ended by ctx: an answer that is under way would begin an attempt that nobody does.
		if within(c.answered, w.cfg.ClaimWait) {
			return c.attempt, nil
		}
		if context.Cause(ctx) != nil {
			return nil, context.Cause(ctx)
		}
	}
	return nil, fmt.Errorf("claim %s of %s: %d times %v: %w", c.id, c.subject, w.cfg.ClaimTries, w.cfg.ClaimWait, errSilent)
}

// open makes the claim of a subject. Nil when another slot has it in hand: then the job came twice.
func (w *Worker) open(subject string) (*claim, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.claims {
		if c.subject == subject {
			return nil, nil //nolint:nilnil // see above
		}
	}
	c, err := w.newClaim(subject)
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", subject, err)
	}
	w.claims[c.id] = c
	return c, nil
}

func (w *Worker) forget(c *claim) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.claims, c.id)
}

func (w *Worker) newClaim(subject string) (*claim, error) {
	key, err := seal.NewEphemeral()
	if err != nil {
		return nil, err
	}
	c := &claim{
		id: uuid.NewString(), subject: subject, key: key, answered: make(chan struct{}),
	}
	text, err := json.Marshal(bus.Claim{
		ClaimID: c.id, Kind: w.cfg.Kind, Subject: subject, Worker: w.cfg.Worker, Incarnation: w.incarnation,
		EphemeralKey: key.Public(), At: domain.At(time.Now()),
	})
	if err != nil {
		return nil, err
	}
	c.signed = bus.Signed{Claim: text, Signature: ed25519.Sign(w.cfg.Key, text)}
	return c, nil
}

// granted begins the attempt: from here on heartbeats keep its lease.
func (w *Worker) granted(g bus.Grant) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.claims[g.ClaimID]
	if c == nil {
		return // the answer to a repeated claim
	}
	delete(w.claims, c.id)
	c.attempt = w.newAttempt(g, c)
	w.running[c.attempt.ID] = c.attempt
	close(c.answered)
	w.hasten()
}

func (w *Worker) refused(r bus.Refusal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.claims[r.ClaimID]
	if c == nil {
		return
	}
	w.cfg.Log.Debug("claim was refused", "subject", c.subject, "reason", r.Reason)
	delete(w.claims, c.id)
	close(c.answered)
}

// unseal opens the secrets of a grant: a JSON map of names and values.
func unseal(sealed []byte, c *claim) (map[string]string, error) {
	if len(sealed) == 0 {
		return nil, nil
	}
	plain, err := c.key.Open(sealed)
	if err != nil {
		return nil, fmt.Errorf("open the secrets of the grant: %w", err)
	}
	var secrets map[string]string
	if err := json.Unmarshal(plain, &secrets); err != nil {
		return nil, errors.New("the secrets of the grant cannot be read") // the cause may show some of them
	}
	return secrets, nil
}
