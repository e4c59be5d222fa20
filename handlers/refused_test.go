package handlers_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/policies"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/worker"
)

func TestAReportThatIsRefusedEndsItsAttemptWithTheReason(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p := w.plane()
	p.project(t)
	w.worker(p, bus.KindBuild, func(ctx context.Context, a *worker.Attempt) error {
		digest := "sha256:" + strings.Repeat("a", 64)
		return a.Stored(ctx, a.Report(domain.ImagePushed{Reference: "reg/another@" + digest, Digest: digest}))
	})
	p.must(t, push("a", "1"))
	p.until(t, "BuildFailed", 1)
	reasons := 0
	for r, err := range p.store.Read(t.Context(), eventstore.Query{Types: []string{"AttemptLost"}}) {
		if err != nil {
			t.Fatal(err)
		}
		e, err := r.Decode()
		if lost, ok := e.(domain.AttemptLost); err != nil || !ok || !strings.Contains(lost.Reason, "reg/hello") {
			t.Errorf("got %+v, %v; want the reason of the refusal", e, err)
		}
		reasons++
	}
	if reasons != domain.MaxAttempts {
		t.Errorf("%d attempts were lost, want %d", reasons, domain.MaxAttempts)
	}
}

func TestWhatCanNeverBeRecordedDoesntHoldUpThePolicies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, inProcess(t))
	p, _ := w.core()
	p.project(t)
	p.must(t, push("a", "1"))
	p.must(t, push("b", "2"))
	poisoned := true
	policy := policies.New(policies.Config{Store: p.store, Commands: p.commands, Now: time.Now, Log: w.log, NewID: func(prefix string) string {
		if poisoned {
			return prefix + "_\x00" // no stream can be named so
		}
		return newID(prefix)
	}})
	var at domain.Cursor
	for batch, err := range p.store.Subscribe(t.Context(), at, eventstore.Filter{Types: domain.Followed()}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range batch.Events {
			if at, err = policy.RunOnce(t.Context(), at, eventstore.Batch{Events: []domain.Recorded{e}, Cursor: e.Cursor}); err != nil {
				t.Fatal(err)
			}
			if !poisoned {
				p.until(t, "BuildRequested", 1)
				return
			}
			poisoned = false
		}
	}
}
