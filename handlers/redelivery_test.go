package handlers_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/internal/worker"
)

// quick are both buses with short waits between redeliveries.
func quick(t *testing.T) map[string]func() bus.Bus {
	t.Helper()
	url := testenv.AMQP(t)
	memory := bus.NewInProcess(bus.Config{FirstWait: time.Millisecond, LongestWait: 10 * time.Millisecond})
	t.Cleanup(func() { _ = memory.Close() })
	return map[string]func() bus.Bus{
		"in process": func() bus.Bus { return memory },
		"over RabbitMQ": func() bus.Bus {
			b, err := bus.NewAMQP(t.Context(), bus.AMQPConfig{URL: url, FirstWait: time.Millisecond, LongestWait: 10 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
	}
}

func TestAcceptance19_AJobThatEveryWorkerFailsOnEndsAsAFailureEvent(t *testing.T) {
	t.Parallel()
	for name, open := range quick(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, open)
			p := w.plane()
			p.project(t)
			b := open()
			var calls atomic.Int64
			w.goes("broken worker", func(ctx context.Context) error {
				return b.ConsumeJobs(ctx, bus.KindBuild, 1, func(context.Context, bus.Job) error {
					calls.Add(1)
					return errors.New("the disk is full")
				})
			})
			public, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			p.must(t, domain.EnrollWorker{Worker: "wrk_broken", Class: "build", PublicKey: public})
			beat, err := bus.SignHeartbeat(bus.Heartbeat{Worker: "wrk_broken", Incarnation: "one", Class: bus.KindBuild, Slots: 1}, key)
			if err != nil {
				t.Fatal(err)
			}
			w.goes("its heartbeats", func(ctx context.Context) error {
				tick := time.NewTicker(500 * time.Millisecond)
				defer tick.Stop()
				for {
					_ = b.PublishHeartbeat(ctx, beat)
					select {
					case <-ctx.Done():
						return nil
					case <-tick.C:
					}
				}
			})
			p.must(t, push("a", "1"))
			p.until(t, "BuildFailed", 1)
			if n := calls.Load(); n != 8 {
				t.Errorf("the job was tried %d times, want 8", n)
			}
			for r, err := range p.store.Read(t.Context(), eventstore.Query{Types: []string{"BuildFailed"}}) {
				var body domain.BuildFailed
				if err == nil {
					err = json.Unmarshal(r.Body, &body)
				}
				if err != nil || body.Diagnosis.Code != "DEAD_LETTER" || body.Diagnosis.Error == "" {
					t.Errorf("got %+v, %v", body.Diagnosis, err)
				}
			}
		})
	}
}

// flaky fails the first three deliveries of the first report.
type flaky struct {
	bus.Bus
	calls *atomic.Int64
}

func (f flaky) ConsumeReports(ctx context.Context, handle func(context.Context, bus.Report) error) error {
	return f.Bus.ConsumeReports(ctx, func(ctx context.Context, r bus.Report) error {
		if f.calls.Add(1) <= 3 {
			return errors.New("not now")
		}
		return handle(ctx, r)
	})
}

func TestAcceptance19_AReportThatFailsThreeTimesIsCalledFourTimesAndStoredOnce(t *testing.T) {
	t.Parallel()
	for name, open := range quick(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			w := newWorld(t, func() bus.Bus { return flaky{open(), &calls} })
			p := w.plane()
			p.project(t)
			w.worker(p, bus.KindBuild, func(ctx context.Context, a *worker.Attempt) error {
				return a.Stored(ctx, a.Report(domain.BuildFailed{Diagnosis: domain.Diagnosis{Code: "X"}}))
			})
			p.must(t, push("a", "1"))
			p.until(t, "BuildFailed", 1)
			if n := calls.Load(); n != 4 {
				t.Errorf("the handler was called %d times, want 4", n)
			}
			n := 0
			for _, err := range p.store.Read(t.Context(), eventstore.Query{Types: []string{"BuildFailed"}}) {
				if n++; err != nil {
					t.Error(err)
				}
			}
			if n != 1 {
				t.Errorf("%d events, want 1", n)
			}
		})
	}
}
