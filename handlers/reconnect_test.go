//go:build !race

// As internal/bus/reconnect_test.go says, Watermill's connection races at a reconnect.

package handlers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/testenv"
)

// sender publishes reports, each until it is confirmed.
type sender struct {
	bus.Bus
	confirmed, failed atomic.Int64
}

func (s *sender) send(ctx context.Context, r bus.Report) error {
	const pause = 20 * time.Millisecond // a broker that is away refuses at once
	for {
		err := s.PublishReport(ctx, r)
		if err == nil {
			s.confirmed.Add(1)
			return nil
		}
		if !errors.Is(err, bus.ErrUnavailable) {
			return err
		}
		s.failed.Add(1)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// sendBuild publishes n steps of a build one by one, and its end.
func (s *sender) sendBuild(ctx context.Context, a domain.AttemptID, token string, n int64) error {
	for i := range n + 1 {
		item := bus.Item{Type: "LayerBuilt", At: domain.At(time.Now()), Data: fmt.Appendf(nil, `{"digest":"","name":"%s","durationMs":1}`, step(a, i+1))}
		if i == n {
			item.Type, item.Data = "BuildFailed", []byte(`{"diagnosis":{"code":"X"}}`)
		}
		if err := s.send(ctx, bus.Report{Attempt: a, Incarnation: "one", Token: token, First: i + 1, Items: []bus.Item{item}}); err != nil {
			return fmt.Errorf("report %d of %s: %w", i+1, a, err)
		}
	}
	return nil
}

func step(a domain.AttemptID, n int64) string { return fmt.Sprintf("step %d of %s", n, a) }

// await waits until n reports are confirmed.
func (s *sender) await(t *testing.T, n int64) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	for s.confirmed.Load() < n {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d reports are confirmed after 2 minutes, want %d", s.confirmed.Load(), n)
		}
	}
}

// during lets something befall the broker that is to be noticed.
func (s *sender) during(t *testing.T, what string, befall func()) {
	t.Helper()
	confirmed, failed := s.confirmed.Load(), s.failed.Load()
	befall()
	if s.failed.Load() == failed {
		t.Errorf("%s after %d confirms: no publish failed", what, confirmed)
	}
}

func TestAcceptance20_OfTenThousandPublishesWithABrokerThatDiesEachEventIsStoredOnce(t *testing.T) {
	t.Parallel()
	const builds, each = 40, 250
	broker := testenv.RabbitMQ(t)
	w := newWorld(t, func() bus.Bus {
		b, err := bus.NewAMQP(t.Context(), bus.AMQPConfig{URL: broker.URL, Channels: 16})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return b
	})
	p, keys := w.core()
	w.ingest(p, keys)
	p.project(t)
	s := &sender{Bus: w.open()}
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	var attempts []domain.AttemptID
	for i := range builds {
		a := p.claim(t, domain.BuildID(fmt.Sprintf("bld_%d", i)), fmt.Sprintf("%02x", i+1))
		attempts = append(attempts, a)
		all.Go(func() {
			if err := s.sendBuild(t.Context(), a, keys.AttemptToken(a, "one"), each); err != nil {
				t.Error(err)
			}
		})
	}
	s.await(t, builds*each/5)
	s.during(t, "a restart", broker.Restart)
	s.await(t, builds*each/2)
	s.during(t, "a crash", func() { broker.Kill(); broker.Start() })
	all.Wait()
	// A build's reports are handled in order, so with its last one handled nothing of it is under way any more.
	p.within(t, 5*time.Minute, "BuildFailed", builds)
	for _, a := range attempts {
		p.storedOnce(t, a, each)
	}
	if n := p.count(t, "LayerBuilt"); n != builds*each {
		t.Errorf("the store has %d events of %d publishes", n, builds*each)
	}
	t.Logf("%d publishes were confirmed, %d failed and were tried again", s.confirmed.Load(), s.failed.Load())
}

// storedOnce wants the n steps of an attempt in the store, each once and in order, and its end.
func (p *plane) storedOnce(t *testing.T, a domain.AttemptID, n int64) {
	t.Helper()
	const begun = 2 // requested and started
	sequence := int64(0)
	for r, err := range p.store.ReadStream(t.Context(), a.Stream(), begun) {
		if err != nil {
			t.Fatal(err)
		}
		sequence++
		if r.Type == "BuildFailed" && sequence == n+1 {
			continue
		}
		var body domain.LayerBuilt
		if err := json.Unmarshal(r.Body, &body); err != nil || r.AttemptSeq != sequence || body.Name != step(a, sequence) {
			t.Fatalf("event %d of %s: got %s %d %q, %v", sequence, a, r.Type, r.AttemptSeq, body.Name, err)
		}
	}
	if sequence != n+1 {
		t.Errorf("%s has %d events, want %d", a, sequence, n+1)
	}
}

func (p *plane) count(t *testing.T, eventType string) (n int) {
	t.Helper()
	for _, err := range p.store.Read(t.Context(), eventstore.Query{Types: []string{eventType}}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}
