// Package workertest receives claims, heartbeats, reports and log chunks of workers under test from internal/bus, and
// hands them answers as the control plane would; effects.
//
// It decides with the real domain and keeps its log in memory, so that a test of a worker sees the same acceptance,
// refusals, gaps and attempts as in production, without PostgreSQL.
//
//	plane := workertest.Start(t, bus.NewInProcess(bus.Config{}), bus.KindBuild)
//	plane.Given(domain.BuildStream(id), domain.BuildRequested{…})
//	go worker.New(worker.Config{Bus: plane.Bus, Worker: plane.Worker, Key: plane.Key, …}).Run(ctx)
//	plane.Offer(string(id))
//	log := plane.Await(t, domain.BuildStream(id), workertest.Has[domain.BuildSucceeded])
package workertest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/nacl/box"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
)

// ControlPlane answers workers of one kind. Its fields may be changed until the first Offer.
type ControlPlane struct {
	Bus     bus.Bus
	Worker  domain.WorkerID    // enrolled
	Key     ed25519.PrivateKey // of that worker
	Secrets map[string]string  // in each grant

	kind bus.Kind

	mu       sync.Mutex
	state    domain.State
	log      map[domain.Stream][]domain.Event
	attempts map[string]domain.AttemptID // by claim id
	output   map[string]map[int64][]byte // by attempt and stream, by offset
	lose     func(bus.Answer) bool
	beats    []bus.Heartbeat
	reports  int
	changed  chan struct{} // closed at the next change
}

// Start gives a control plane that ends with the test, and its bus with it.
func Start(tb testing.TB, b bus.Bus, kind bus.Kind) *ControlPlane {
	tb.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	p := &ControlPlane{
		Bus: b, Worker: "wrk_test", Key: key, kind: kind, state: domain.State{}, log: map[domain.Stream][]domain.Event{},
		attempts: map[string]domain.AttemptID{}, output: map[string]map[int64][]byte{}, changed: make(chan struct{}),
	}
	p.Given(domain.WorkerStream(p.Worker), domain.WorkerEnrolled{Worker: p.Worker, Class: string(kind), PublicKey: public})
	ctx, cancel := context.WithCancelCause(tb.Context())
	var consumers sync.WaitGroup
	for _, consume := range []func() error{
		func() error { return b.ConsumeClaims(ctx, p.claim) },
		func() error { return b.ConsumeHeartbeats(ctx, p.heartbeat) },
		func() error { return b.ConsumeReports(ctx, p.report) },
		func() error { return b.ConsumeLogChunks(ctx, p.chunk) },
	} {
		consumers.Go(func() {
			if err := consume(); err != nil {
				tb.Errorf("control plane: %v", err)
			}
		})
	}
	tb.Cleanup(func() {
		cancel(nil)
		consumers.Wait()
		if err := b.Close(); err != nil {
			tb.Errorf("close bus: %v", err)
		}
	})
	return p
}

// Given records events that no worker reported.
func (p *ControlPlane) Given(stream domain.Stream, events ...domain.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range events {
		p.record(stream, e, 0)
	}
}

// record needs the lock. An event that can't stand there is a fault of the test.
func (p *ControlPlane) record(stream domain.Stream, e domain.Event, sequence int64) {
	if err := p.state.Fold(stream, e, sequence); err != nil {
		panic(err)
	}
	p.log[stream] = append(p.log[stream], e)
	p.tell()
}

func (p *ControlPlane) tell() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Execute decides a command and records what it gives.
func (p *ControlPlane) Execute(c domain.Command) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.execute(c, 0)
	return err
}

func (p *ControlPlane) execute(c domain.Command, sequence int64) ([]domain.Change, error) {
	changes, err := c.Decide(p.state)
	if err != nil {
		return nil, err
	}
	for _, change := range changes {
		p.record(change.Stream, change.Event, sequence)
	}
	return changes, nil
}

// Lose drops the answers of which it says so; nil drops none.
func (p *ControlPlane) Lose(lose func(bus.Answer) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose = lose
}

// Offer publishes a job for a build or a deployment that was Given.
func (p *ControlPlane) Offer(tb testing.TB, subject string) {
	tb.Helper()
	p.mu.Lock()
	job := bus.Job{Kind: p.kind, Subject: subject, Context: p.context(subject), Published: domain.At(time.Now())}
	p.mu.Unlock()
	if err := p.Bus.PublishJob(tb.Context(), job); err != nil {
		tb.Fatal(err)
	}
}

func (p *ControlPlane) context(subject string) json.RawMessage {
	var c any
	if stream := streamOf(subject); p.kind == bus.KindBuild {
		c = domain.BuildContext{Request: domain.Of[domain.Build](p.state, stream).Request}
	} else {
		d := domain.Of[domain.Deployment](p.state, stream)
		c = domain.DeployContext{Request: d.Request, Previous: d.Previous, Deadline: d.Deadline}
	}
	text, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return text
}

func streamOf(subject string) domain.Stream { return domain.NewAttemptID(subject, 1).Stream() }

// Log gives the events of a stream so far.
func (p *ControlPlane) Log(stream domain.Stream) []domain.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log[stream])
}

// Await returns the events of a stream as soon as done holds for them.
func (p *ControlPlane) Await(tb testing.TB, stream domain.Stream, done func([]domain.Event) bool) []domain.Event {
	tb.Helper()
	var log []domain.Event
	p.until(tb, func() bool { log = slices.Clone(p.log[stream]); return done(log) }, func() string {
		return fmt.Sprintf("%s holds %s", stream, Types(log))
	})
	return log
}

// AwaitBeat returns as soon as done holds for the last heartbeat.
func (p *ControlPlane) AwaitBeat(tb testing.TB, done func(bus.Heartbeat) bool) {
	tb.Helper()
	p.until(tb, func() bool { return len(p.beats) > 0 && done(p.beats[len(p.beats)-1]) }, func() string {
		return fmt.Sprintf("last of %d heartbeats: %+v", len(p.beats), p.beats[max(0, len(p.beats)-1):])
	})
}

func (p *ControlPlane) until(tb testing.TB, met func() bool, seen func() string) {
	tb.Helper()
	for {
		p.mu.Lock()
		ok, changed := met(), p.changed
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-tb.Context().Done():
			tb.Fatalf("still waiting at the end: %s", seen())
		case <-time.After(5 * time.Minute):
			tb.Fatalf("waited in vain: %s", seen())
		}
	}
}

// AwaitOutput returns what arrived of an attempt's output as soon as it holds the text; output comes beside the events.
func (p *ControlPlane) AwaitOutput(tb testing.TB, a domain.AttemptID, stream, text string) string {
	tb.Helper()
	var got string
	p.until(tb, func() bool { got, _ = p.joined(a, stream); return strings.Contains(got, text) }, func() string {
		return fmt.Sprintf("output of %s lacks %q:\n%s", a, text, got)
	})
	return got
}

// Output gives what arrived of an attempt's output, in order, and fails on a gap.
func (p *ControlPlane) Output(tb testing.TB, a domain.AttemptID, stream string) string {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	text, behind := p.joined(a, stream)
	if behind > 0 {
		tb.Errorf("output of %s: %d bytes lie behind a gap at %d", a, behind, len(text))
	}
	return text
}

// OutputEnd gives where the worker said that an attempt's output ends, -1 before it did.
func (p *ControlPlane) OutputEnd(a domain.AttemptID, stream string) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for offset, chunk := range p.output[string(a)+"/"+stream] {
		if len(chunk) == 0 {
			return offset
		}
	}
	return -1
}

// joined gives the output up to the first gap, and how many bytes lie behind it; it needs the lock.
func (p *ControlPlane) joined(a domain.AttemptID, stream string) (text string, behind int) {
	chunks := p.output[string(a)+"/"+stream]
	var b strings.Builder
	for range len(chunks) {
		b.Write(chunks[int64(b.Len())])
	}
	for _, c := range chunks {
		behind += len(c)
	}
	return b.String(), behind - b.Len()
}

// Reports counts the reports that arrived, repeats included.
func (p *ControlPlane) Reports() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reports
}

// Has says whether an event of type E is among them.
func Has[E domain.Event](log []domain.Event) bool {
	return slices.ContainsFunc(log, func(e domain.Event) bool { _, ok := e.(E); return ok })
}

// Last gives the last event of type E, the zero one if there is none.
func Last[E domain.Event](log []domain.Event) (last E) {
	for _, e := range log {
		if e, ok := e.(E); ok {
			last = e
		}
	}
	return last
}

// Types names the events' types.
func Types(log []domain.Event) (names []string) {
	for _, e := range log {
		names = append(names, domain.TypeOf(e))
	}
	return names
}

func (p *ControlPlane) answer(ctx context.Context, incarnation string, a bus.Answer) error {
	p.mu.Lock()
	lost := p.lose != nil && p.lose(a)
	p.mu.Unlock()
	if lost {
		return nil
	}
	return p.Bus.PublishAnswer(ctx, incarnation, a)
}

func (p *ControlPlane) claim(ctx context.Context, signed bus.Signed) error {
	var c bus.Claim
	if err := json.Unmarshal(signed.Claim, &c); err != nil {
		return err
	}
	g, err := p.grant(c, signed)
	if refusal, ok := errors.AsType[*domain.Refusal](err); ok {
		return p.answer(ctx, c.Incarnation, bus.Answer{Refusal: &bus.Refusal{ClaimID: c.ClaimID, Reason: refusal.Error()}})
	}
	if err != nil {
		return err
	}
	return p.answer(ctx, c.Incarnation, bus.Answer{Grant: &g})
}

func (p *ControlPlane) grant(c bus.Claim, signed bus.Signed) (bus.Grant, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := domain.Of[domain.Worker](p.state, domain.WorkerStream(c.Worker))
	if len(w.PublicKey) == 0 || !ed25519.Verify(w.PublicKey, signed.Claim, signed.Signature) {
		return bus.Grant{}, &domain.Refusal{Code: "NOT_ENROLLED", Message: "signature doesn't hold"}
	}
	if p.attempts[c.ClaimID] == "" {
		var cmd domain.Command = domain.ClaimBuild{Build: domain.BuildID(c.Subject), Worker: c.Worker, Incarnation: c.Incarnation}
		if c.Kind == bus.KindDeploy {
			cmd = domain.ClaimDeployment{Deployment: domain.DeploymentID(c.Subject), Worker: c.Worker, Incarnation: c.Incarnation, At: time.Now()}
		}
		changes, err := p.execute(cmd, 0)
		if err != nil {
			return bus.Grant{}, err
		}
		for _, change := range changes {
			switch e := change.Event.(type) {
			case domain.BuildStarted:
				p.attempts[c.ClaimID] = e.Attempt
			case domain.DeploymentStarted:
				p.attempts[c.ClaimID] = e.Attempt
			}
		}
	}
	g := bus.Grant{ClaimID: c.ClaimID, Attempt: p.attempts[c.ClaimID], Context: p.context(c.Subject)}
	g.Token = token(g.Attempt, c.Incarnation)
	if b, ok := p.state[g.Attempt.Stream()].(*domain.Build); ok && b.Pushed != nil {
		g.Digest = b.Pushed.Digest
	}
	if d, ok := p.state[g.Attempt.Stream()].(*domain.Deployment); ok {
		g.FencingEpoch = domain.Of[domain.Slot](p.state, d.Slot()).FencingEpoch
		g.Rollback = d.Undoing
	}
	if len(p.Secrets) == 0 {
		return g, nil
	}
	plain, err := json.Marshal(p.Secrets)
	if err != nil {
		return bus.Grant{}, err
	}
	g.Sealed, err = box.SealAnonymous(nil, plain, (*[32]byte)(c.EphemeralKey), rand.Reader)
	return g, err
}

func token(a domain.AttemptID, incarnation string) string {
	return "token of " + string(a) + " for " + incarnation
}

func (p *ControlPlane) heartbeat(ctx context.Context, signed bus.SignedHeartbeat) error {
	var h bus.Heartbeat
	if err := json.Unmarshal(signed.Heartbeat, &h); err != nil {
		return err
	}
	answer := bus.HeartbeatAnswer{Beat: h.Beat, Running: []bus.Stored{}}
	p.mu.Lock()
	p.beats = append(p.beats, h)
	for _, r := range h.Running {
		if r.Token == token(r.Attempt, h.Incarnation) {
			answer.Running = append(answer.Running, p.progress(r.Attempt))
		}
	}
	p.tell()
	p.mu.Unlock()
	return p.answer(ctx, h.Incarnation, bus.Answer{Heartbeat: &answer})
}

// progress needs the lock.
func (p *ControlPlane) progress(a domain.AttemptID) bus.Stored {
	s := bus.Stored{Attempt: a}
	var current domain.AttemptID
	var lost bool
	switch state := p.state[a.Stream()].(type) {
	case *domain.Build:
		current, lost, s.Stored = state.Attempt(), state.Lost, state.Sequence
	case *domain.Deployment:
		current, lost, s.Stored = state.Attempt(), state.Lost, state.Sequence
	}
	switch {
	case current != a:
		return bus.Stored{Attempt: a, Cancel: "another attempt is the current one"}
	case lost:
		s.Cancel = "the attempt was given up"
	}
	return s
}

func (p *ControlPlane) report(ctx context.Context, r bus.Report) error {
	p.mu.Lock()
	p.reports++
	cancel := p.items(r)
	s := p.progress(r.Attempt)
	if s.Cancel == "" {
		s.Cancel = cancel
	}
	p.tell()
	p.mu.Unlock()
	return p.answer(ctx, r.Incarnation, bus.Answer{Heartbeat: &bus.HeartbeatAnswer{Running: []bus.Stored{s}}})
}

// items needs the lock.
func (p *ControlPlane) items(r bus.Report) (cancel string) {
	for i, item := range r.Items {
		e, err := domain.WorkerItem(string(p.kind), item.Type, item.Data)
		if err != nil {
			return err.Error()
		}
		sequence := r.First + int64(i)
		if sequence <= p.progress(r.Attempt).Stored {
			continue // a command that was decided counts as done
		}
		var cmd domain.Command = domain.ReportBuild{Attempt: r.Attempt, Sequence: sequence, Item: e}
		if p.kind == bus.KindDeploy {
			cmd = domain.ReportDeployment{Attempt: r.Attempt, Sequence: sequence, Item: e}
		}
		var gap *domain.GapError
		if _, err := p.execute(cmd, sequence); errors.As(err, &gap) {
			return ""
		} else if err != nil {
			return err.Error()
		}
	}
	return ""
}

func (p *ControlPlane) chunk(_ context.Context, c bus.LogChunk) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := string(c.Attempt) + "/" + c.Stream
	if p.output[key] == nil {
		p.output[key] = map[int64][]byte{}
	}
	p.output[key][c.Offset] = c.Bytes
	p.tell()
	return nil
}
