package handlers_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/claims"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/records"
)

func TestOnlyAWorkersOwnHeartbeatEndsTheAttemptsOfItsEarlierIncarnation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p, keys := w.core()
	a := p.claimed(t)
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, foreign, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	p.must(t, domain.EnrollWorker{Worker: "wrk_1", Class: "build", PublicKey: public})
	leases := records.NewClaims(p.store.Pool())
	if err := leases.Grant(t.Context(), a, "wrk_1", "one"); err != nil {
		t.Fatal(err)
	}
	c := claims.New(claims.Config{
		Bus: p.bus, Commands: p.commands, Leases: leases, Keys: keys, Now: time.Now, Log: w.log,
		Secrets: func(context.Context, domain.AttemptID, domain.ProjectID, bus.Kind) (map[string]string, error) {
			return nil, nil
		},
	})
	signed := func(h bus.Heartbeat, key ed25519.PrivateKey) bus.SignedHeartbeat {
		t.Helper()
		s, err := bus.SignHeartbeat(h, key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	again := bus.Heartbeat{Worker: "wrk_1", Incarnation: "two", Class: bus.KindBuild, Slots: 1}
	other := again
	other.Class = bus.KindDeploy
	unsigned := signed(again, key)
	unsigned.Signature = nil
	claim := signed(again, key)
	claim.Signature = ed25519.Sign(key, claim.Heartbeat) // as claims are signed
	forged := []bus.SignedHeartbeat{
		unsigned, claim, signed(again, foreign), signed(other, key), signed(bus.Heartbeat{Worker: "wrk_2", Incarnation: "two"}, key),
		{Heartbeat: json.RawMessage(`{`)},
	}
	lost := func() bool {
		t.Helper()
		_, over, err := p.commands.Progress(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		return over != ""
	}
	for i, h := range forged {
		if err := c.Heartbeat(t.Context(), h); err != nil || lost() || c.Unsigned.Load() != int64(i+1) {
			t.Fatalf("forged heartbeat %d: %v, lost %v, %d counted", i, err, lost(), c.Unsigned.Load())
		}
	}
	early := bus.Heartbeat{Worker: "wrk_1", Incarnation: "earlier", Class: bus.KindBuild, Slots: 1} // before "one": sent again by somebody who heard it
	if err := c.Heartbeat(t.Context(), signed(early, key)); err != nil || lost() {
		t.Fatalf("an old heartbeat: %v, lost %v", err, lost())
	}
	if err := c.Heartbeat(t.Context(), signed(again, key)); err != nil || !lost() {
		t.Fatalf("the worker's own: %v, lost %v", err, lost())
	}
}
