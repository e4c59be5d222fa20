package bus

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"testing"
	"time"
)

func TestInProcess(t *testing.T) {
	t.Parallel()
	conformance(t, func(t *testing.T) opener {
		t.Helper()
		b := NewInProcess(testRetry)
		t.Cleanup(func() { _ = b.Close() })
		return func(*testing.T) Bus { return b }
	})
}

func TestInProcessPublishingWaitsWhileAQueueIsFull(t *testing.T) {
	t.Parallel()
	c := testRetry
	c.QueueBytes = 2000
	b := NewInProcess(c)
	t.Cleanup(func() { _ = b.Close() })
	claim := Signed{Claim: json.RawMessage(`{}`), Signature: make([]byte, 600)}
	must(t, b.PublishClaim(t.Context(), claim))

	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, errors.New("the test waited enough"))
	defer cancel()
	if err := b.PublishClaim(ctx, claim); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	published := make(chan error, 1)
	go func() { published <- b.PublishClaim(t.Context(), claim) }()
	background(t, func(ctx context.Context) error {
		return b.ConsumeClaims(ctx, func(ctx context.Context, _ Signed) error {
			if deliveries(ctx) == 1 { // comes back although the queue is full
				return errors.New("not yet")
			}
			return nil
		})
	})
	must(t, receive(t, published, "room in the queue"))
}

func TestInProcessHeartbeatsAreBounded(t *testing.T) {
	t.Parallel()
	b := NewInProcess(testRetry)
	t.Cleanup(func() { _ = b.Close() })
	for i := range fleetingLimit + 5 {
		must(t, b.PublishHeartbeat(t.Context(), SignedHeartbeat{Heartbeat: json.RawMessage(strconv.Itoa(i))}))
	}
	first := make(chan SignedHeartbeat)
	background(t, func(ctx context.Context) error { return b.ConsumeHeartbeats(ctx, into(first)) })
	equal(t, string(receive(t, first, "heartbeat").Heartbeat), "5")
}
