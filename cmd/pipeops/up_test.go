package main

import (
	"context"
	"errors"
	"testing"
)

func TestTheControlPlaneServesUntilTheLastWorkerHasEnded(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancelCause(t.Context())
	served := make(chan struct{})
	err := outlive(ctx, func(ctx context.Context) error {
		<-ctx.Done()
		close(served)
		return nil
	}, func(ctx context.Context) error {
		stop(nil)
		<-ctx.Done()
		select {
		case <-served:
			t.Error("the control plane ended before the workers")
		default:
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	<-served
}

func TestABrokenControlPlaneEndsTheWorkers(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	err := outlive(t.Context(), func(context.Context) error { return broken }, func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	})
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}
