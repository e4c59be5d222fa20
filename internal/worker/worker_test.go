package worker_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/worker"
	"github.com/pipeops/pipeops/internal/worker/workertest"
)

const (
	image  = "reg/app"
	digest = "sha256:d"
)

// bed is a control plane and one worker within a synctest bubble.
type bed struct {
	*workertest.ControlPlane
	t    *testing.T
	stop func() // the worker, and wait for it
}

// start runs a worker that does do; change may alter its config.
func start(t *testing.T, b bus.Bus, do func(context.Context, *worker.Attempt) error, change func(*worker.Config)) *bed {
	t.Helper()
	plane := workertest.Start(t, b, bus.KindBuild)
	return &bed{ControlPlane: plane, t: t, stop: work(t, plane, do, change)}
}

func work(t *testing.T, plane *workertest.ControlPlane, do func(context.Context, *worker.Attempt) error, change func(*worker.Config)) (stop func()) {
	t.Helper()
	c := worker.Config{Bus: plane.Bus, Kind: bus.KindBuild, Worker: plane.Worker, Key: plane.Key, Slots: 1, Do: do}
	if change != nil {
		change(&c)
	}
	w, err := worker.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel(nil)
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// want asks for a build.
func (b *bed) want(id domain.BuildID) domain.Stream {
	b.t.Helper()
	stream := domain.BuildStream(id)
	if len(b.Log(stream)) == 0 {
		b.Given(stream, domain.BuildRequested{Build: id, Commit: "c0ffee", Image: image})
	}
	b.Offer(b.t, string(id))
	return stream
}

// succeed reports a whole build.
func succeed(ctx context.Context, a *worker.Attempt) error {
	a.Report(domain.SourceFetched{Commit: "c0ffee"})
	n := a.Report(domain.ImagePushed{Reference: image + "@" + digest, Digest: digest})
	if err := a.Stored(ctx, n); err != nil {
		return err
	}
	if err := a.Effect(ctx); err != nil {
		return err
	}
	a.Report(domain.ImageTagged{Digest: digest})
	a.Report(domain.WorkspaceRemoved{})
	a.Report(domain.BuildSucceeded{Digest: digest})
	return nil
}

// hang works until it is stopped, and says why on stopped.
func hang(stopped chan<- error) func(context.Context, *worker.Attempt) error {
	return func(ctx context.Context, _ *worker.Attempt) error {
		<-ctx.Done()
		stopped <- context.Cause(ctx)
		return context.Cause(ctx)
	}
}

func idle(h bus.Heartbeat) bool { return len(h.Running) == 0 }

func TestGrantedJobIsDoneAndReportedInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, bus.NewInProcess(bus.Config{}), succeed, nil)
		log := b.Await(t, b.want("bld_1"), workertest.Has[domain.BuildSucceeded])
		want := []string{"BuildRequested", "BuildStarted", "SourceFetched", "ImagePushed", "ImageTagged", "WorkspaceRemoved", "BuildSucceeded"}
		if diff := cmp.Diff(want, workertest.Types(log)); diff != "" {
			t.Error(diff)
		}
		b.AwaitBeat(t, idle)
	})
}

func TestSecretsAreOpenedWithTheKeyOfTheClaim(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		secret := make(chan string, 1)
		plane := workertest.Start(t, bus.NewInProcess(bus.Config{}), bus.KindBuild)
		plane.Secrets = map[string]string{"git-token": "hush"}
		work(t, plane, func(ctx context.Context, a *worker.Attempt) error {
			secret <- a.Secret("git-token") + a.Secret("none")
			return succeed(ctx, a)
		}, nil)
		b := &bed{ControlPlane: plane, t: t}
		b.want("bld_1")
		if got := <-secret; got != "hush" {
			t.Errorf("secret %q", got)
		}
		b.AwaitBeat(t, idle)
	})
}

func TestRefusedJobIsDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, bus.NewInProcess(bus.Config{}), succeed, nil)
		b.Await(t, b.want("bld_1"), workertest.Has[domain.BuildSucceeded])
		b.want("bld_1") // is over: refused
		b.Await(t, b.want("bld_2"), workertest.Has[domain.BuildSucceeded])
		if got := len(b.Log(domain.BuildStream("bld_1"))); got != 7 {
			t.Errorf("%d events of a build whose job came twice", got)
		}
	})
}

func TestUnansweredClaimIsRepeatedAndGetsTheSameAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, bus.NewInProcess(bus.Config{}), succeed, nil)
		var lost atomic.Int64
		b.Lose(func(a bus.Answer) bool { return a.Grant != nil && lost.Add(1) <= 2 })
		log := b.Await(t, b.want("bld_1"), workertest.Has[domain.BuildSucceeded])
		started := 0
		for _, e := range log {
			if _, ok := e.(domain.BuildStarted); ok {
				started++
			}
		}
		if started != 1 || lost.Load() != 3 {
			t.Errorf("%d attempts, %d grants, want 1 and 3", started, lost.Load())
		}
	})
}

func TestJobWhoseClaimIsNeverAnsweredIsHandedBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, bus.NewInProcess(bus.Config{MaxDeliveries: 2}), succeed, nil)
		b.Lose(func(a bus.Answer) bool { return a.Grant != nil || a.Refusal != nil })
		dead := make(chan bus.Dead, 1)
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		go func() {
			_ = b.Bus.ConsumeDead(ctx, func(_ context.Context, d bus.Dead) error { dead <- d; return nil })
		}()
		b.want("bld_1")
		if d := <-dead; d.Queue != "jobs.build" || !strings.Contains(d.Reason, "not answered") {
			t.Errorf("dead letter %+v", d)
		}
	})
}

func TestClaimWaitsThroughSilenceOfTheControlPlane(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, bus.NewInProcess(bus.Config{MaxDeliveries: 1}), succeed, nil)
		b.AwaitBeat(t, idle)
		synctest.Wait()
		b.Lose(func(bus.Answer) bool { return true })
		stream := b.want("bld_1")
		<-time.After(10 * time.Minute) // of the bubble's clock
		b.Lose(nil)
		b.Await(t, stream, workertest.Has[domain.BuildSucceeded])
	})
}

func TestLostAnswersToReportsAreMadeGoodByHeartbeats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, bus.NewInProcess(bus.Config{}), succeed, nil)
		b.Lose(func(a bus.Answer) bool { return a.Heartbeat != nil && a.Heartbeat.Beat == 0 })
		b.Await(t, b.want("bld_1"), workertest.Has[domain.BuildSucceeded])
		b.AwaitBeat(t, idle)
	})
}

// faulty is a bus that mistreats what a worker publishes.
type faulty struct {
	bus.Bus
	report    func(bus.Report) (lose bool, err error)
	chunk     func() error
	heartbeat func(context.Context)
}

func (f *faulty) PublishReport(ctx context.Context, r bus.Report) error {
	if f.report != nil {
		if lose, err := f.report(r); lose || err != nil {
			return err
		}
	}
	return f.Bus.PublishReport(ctx, r)
}

func (f *faulty) PublishLogChunk(ctx context.Context, c bus.LogChunk) error {
	if f.chunk != nil {
		if err := f.chunk(); err != nil {
			return err
		}
	}
	return f.Bus.PublishLogChunk(ctx, c)
}

func (f *faulty) PublishHeartbeat(ctx context.Context, h bus.SignedHeartbeat) error {
	if f.heartbeat != nil {
		f.heartbeat(ctx)
	}
	return f.Bus.PublishHeartbeat(ctx, h)
}

func TestLostReportLeavesAGapThatIsFilled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		f := &faulty{Bus: bus.NewInProcess(bus.Config{}), report: func(bus.Report) (bool, error) {
			return n.Add(1)%2 == 1, nil // the first is lost, the second arrives before it, …
		}}
		b := start(t, f, func(ctx context.Context, a *worker.Attempt) error {
			for i := range 10 {
				a.Report(domain.LayerBuilt{Digest: strconv.Itoa(i)})
				synctest.Wait() // one message each
			}
			a.Report(domain.BuildFailed{})
			return nil
		}, nil)
		log := b.Await(t, b.want("bld_1"), workertest.Has[domain.BuildFailed])
		var got []string
		for _, e := range log {
			if e, ok := e.(domain.LayerBuilt); ok {
				got = append(got, e.Digest)
			}
		}
		if strings.Join(got, "") != "0123456789" {
			t.Errorf("layers %v", got)
		}
	})
}

func TestReportsAreKeptWhileTheBrokerIsAwayAndThenSentTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		away.Store(true)
		f := &faulty{Bus: bus.NewInProcess(bus.Config{}), report: func(bus.Report) (bool, error) {
			if away.Load() {
				return false, bus.ErrUnavailable
			}
			return false, nil
		}}
		b := start(t, f, func(_ context.Context, a *worker.Attempt) error {
			for range 50 {
				a.Report(domain.LayerBuilt{})
			}
			a.Report(domain.BuildFailed{})
			return nil
		}, nil)
		stream := b.want("bld_1")
		b.Await(t, stream, workertest.Has[domain.BuildStarted])
		<-time.After(30 * time.Second)
		away.Store(false)
		if log := b.Await(t, stream, workertest.Has[domain.BuildFailed]); len(log) != 53 {
			t.Errorf("%d events, want 53", len(log))
		}
		if b.Reports() > 2 {
			t.Errorf("%d messages for items that were ready together", b.Reports())
		}
	})
}

func TestOutputArrivesWholeAndInChunks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		f := &faulty{Bus: bus.NewInProcess(bus.Config{}), chunk: func() error {
			if n.Add(1)%3 == 0 {
				return bus.ErrUnavailable
			}
			return nil
		}}
		var want strings.Builder
		for i := range 20_000 {
			fmt.Fprintf(&want, "line %d\n", i)
		}
		b := start(t, f, func(ctx context.Context, a *worker.Attempt) error {
			for line := range strings.Lines(want.String()) {
				a.Log("build", []byte(line))
			}
			return succeed(ctx, a)
		}, nil)
		b.want("bld_1")
		b.AwaitBeat(t, func(h bus.Heartbeat) bool { return len(h.Running) == 1 })
		b.AwaitBeat(t, idle)
		synctest.Wait()
		if got := b.Output(t, "bld_1.1", "build"); got != want.String() {
			t.Errorf("%d bytes arrived of %d", len(got), want.Len())
		}
		if got := b.OutputEnd("bld_1.1", "build"); got != int64(want.Len()) {
			t.Errorf("the output is said to end at %d, want %d", got, want.Len())
		}
		if most := int64(want.Len()/(32<<10)+2) * 2; n.Load() > most {
			t.Errorf("%d messages for %d bytes", n.Load(), want.Len())
		}
	})
}

func TestOutputBeyondItsLimitIsLeftOutAndSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, bus.NewInProcess(bus.Config{}), func(ctx context.Context, a *worker.Attempt) error {
			for range 100 {
				a.Log("build", []byte("0123456789"))
			}
			return succeed(ctx, a)
		}, func(c *worker.Config) { c.LogLimit = 25 })
		b.Await(t, b.want("bld_1"), workertest.Has[domain.BuildSucceeded])
		b.AwaitBeat(t, idle)
		synctest.Wait()
		if got := b.Output(t, "bld_1.1", "build"); !strings.HasPrefix(got, "0123456789012345678901234\n[pipeops:") || strings.Count(got, "\n") != 2 {
			t.Errorf("output %q", got)
		}
	})
}

func TestCancelStopsTheAttemptWithinTwoSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stopped := make(chan error, 1)
		b := start(t, bus.NewInProcess(bus.Config{}), hang(stopped), nil)
		stream := b.want("bld_1")
		b.Await(t, stream, workertest.Has[domain.BuildStarted])
		synctest.Wait() // until it hangs
		began := time.Now()
		if err := b.Execute(domain.LoseBuildAttempt{Attempt: "bld_1.1", Reason: "lease lapsed"}); err != nil {
			t.Fatal(err)
		}
		var cancelled *worker.CancelledError
		if err := <-stopped; !errors.As(err, &cancelled) {
			t.Errorf("stopped by %v", err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("took %v", took)
		}
		b.AwaitBeat(t, idle)
		if log := b.Log(stream); len(log) != 3 {
			t.Errorf("a cancelled attempt reported: %v", workertest.Types(log))
		}
	})
}

func TestAttemptThatTheControlPlaneDoesNotKnowIsStopped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stopped := make(chan error, 1)
		f := &forgetful{Bus: bus.NewInProcess(bus.Config{})}
		b := start(t, f, hang(stopped), nil)
		b.Await(t, b.want("bld_1"), workertest.Has[domain.BuildStarted])
		<-time.After(5 * time.Second)
		f.forget.Store(true)
		var cancelled *worker.CancelledError
		if err := <-stopped; !errors.As(err, &cancelled) {
			t.Errorf("stopped by %v", err)
		}
	})
}

// forgetful changes the tokens in heartbeats, as a control plane with another key would see them.
type forgetful struct {
	bus.Bus
	forget atomic.Bool
}

func (f *forgetful) PublishHeartbeat(ctx context.Context, h bus.SignedHeartbeat) error {
	if f.forget.Load() {
		h.Heartbeat = regexp.MustCompile(`"token":"[^"]*"`).ReplaceAll(h.Heartbeat, []byte(`"token":"of another key"`))
	}
	return f.Bus.PublishHeartbeat(ctx, h)
}

func TestSilencePausesEffectsAndThenStopsTheAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		effects := make(chan time.Time)
		stopped := make(chan error, 1)
		b := start(t, bus.NewInProcess(bus.Config{}), func(ctx context.Context, a *worker.Attempt) error {
			for a.Effect(ctx) == nil {
				select {
				case effects <- time.Now():
				case <-ctx.Done():
				}
			}
			stopped <- context.Cause(ctx)
			return context.Cause(ctx)
		}, nil)
		stream := b.want("bld_1")
		<-effects
		b.Lose(func(bus.Answer) bool { return true })
		silent := time.Now()
		var last time.Time
		for stop := false; !stop; {
			select {
			case last = <-effects:
				<-time.After(100 * time.Millisecond)
			case err := <-stopped:
				stop = true
				if !errors.Is(err, worker.ErrNoContact) {
					t.Errorf("stopped by %v", err)
				}
			}
		}
		if d := last.Sub(silent); d < 7*time.Second || d > 10*time.Second {
			t.Errorf("last effect %v after the silence began, want some 10 s at most", d)
		}
		if d := time.Since(silent); d < 57*time.Second || d > 63*time.Second {
			t.Errorf("stopped %v after the silence began, want about 60 s", d)
		}
		if workertest.Has[domain.AttemptLost](b.Log(stream)) {
			t.Error("a stopped attempt went on reporting")
		}
	})
}

// A freeze, as the worker sees it: nothing happens for a while, and then all that lay in its socket comes at once.
func TestAnswersFromBeforeAFreezeAreNoContact(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &delayed{Bus: bus.NewInProcess(bus.Config{})}
		in := make(chan *worker.Attempt, 1)
		b := start(t, f, func(ctx context.Context, a *worker.Attempt) error {
			in <- a
			<-ctx.Done()
			return context.Cause(ctx)
		}, nil)
		b.want("bld_1")
		a := <-in
		<-time.After(4 * time.Second)
		f.freeze()
		<-time.After(30 * time.Second)
		f.thaw(false) // old answers come, heartbeats still don't go
		synctest.Wait()
		soon, cancel := context.WithTimeoutCause(t.Context(), time.Second, context.DeadlineExceeded)
		defer cancel()
		if err := a.Effect(soon); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("effect after a freeze: %v", err)
		}
		f.thaw(true)
		if err := a.Effect(t.Context()); err != nil {
			t.Errorf("effect when in contact again: %v", err)
		}
	})
}

// delayed holds answers and heartbeats while frozen.
type delayed struct {
	bus.Bus
	mu      sync.Mutex
	answers chan struct{} // closed: they come; nil: never held
	beats   bool          // held
}

func (d *delayed) freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers, d.beats = make(chan struct{}), true
}

func (d *delayed) thaw(beats bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.answers != nil {
		close(d.answers)
		d.answers = nil
	}
	d.beats = d.beats && !beats
}

func (d *delayed) PublishHeartbeat(ctx context.Context, h bus.SignedHeartbeat) error {
	d.mu.Lock()
	held := d.beats
	d.mu.Unlock()
	if held {
		return bus.ErrUnavailable
	}
	return d.Bus.PublishHeartbeat(ctx, h)
}

func (d *delayed) ConsumeAnswers(ctx context.Context, incarnation string, handle func(context.Context, bus.Answer) error) error {
	return d.Bus.ConsumeAnswers(ctx, incarnation, func(ctx context.Context, a bus.Answer) error {
		d.mu.Lock()
		held := d.answers
		d.mu.Unlock()
		if held != nil {
			<-held
		}
		return handle(ctx, a)
	})
}

func TestErrorEndsTheAttemptAsLost(t *testing.T) {
	for name, do := range map[string]func(context.Context, *worker.Attempt) error{
		"daemon gone": func(context.Context, *worker.Attempt) error { return errors.New("daemon gone") },
		"fault":       func(context.Context, *worker.Attempt) error { panic("fault") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := start(t, bus.NewInProcess(bus.Config{}), do, nil)
				lost := workertest.Last[domain.AttemptLost](b.Await(t, b.want("bld_1"), workertest.Has[domain.AttemptLost]))
				if lost.Attempt != "bld_1.1" || !strings.Contains(lost.Reason, strings.Fields(name)[0]) {
					t.Errorf("lost: %+v", lost)
				}
				b.AwaitBeat(t, idle)
			})
		})
	}
}

func TestSlotsBoundWhatRunsAndJobsAreLeftToOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stopped := make(chan error, 3)
		b := start(t, bus.NewInProcess(bus.Config{}), hang(stopped), func(c *worker.Config) { c.Slots = 2 })
		for _, id := range []domain.BuildID{"bld_1", "bld_2", "bld_3"} {
			b.want(id)
		}
		b.AwaitBeat(t, func(h bus.Heartbeat) bool { return len(h.Running) == 2 && h.Slots == 2 })
		other := make(chan struct{}, 1)
		work(t, b.ControlPlane, func(ctx context.Context, a *worker.Attempt) error {
			other <- struct{}{}
			return succeed(ctx, a)
		}, nil)
		<-other // would wait for ever if the first worker held the third job
	})
}

func TestStoppedWorkerReportsWhatItLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stopped := make(chan error, 1)
		b := start(t, bus.NewInProcess(bus.Config{}), hang(stopped), nil)
		stream := b.want("bld_1")
		b.AwaitBeat(t, func(h bus.Heartbeat) bool { return len(h.Running) == 1 })
		synctest.Wait() // until it hangs
		b.stop()
		if err := <-stopped; !errors.Is(err, worker.ErrStopped) {
			t.Errorf("stopped by %v", err)
		}
		if lost := workertest.Last[domain.AttemptLost](b.Log(stream)); lost.Reason != "worker stopped" || !lost.Stopped {
			t.Errorf("lost: %+v", lost)
		}
		b.AwaitBeat(t, func(h bus.Heartbeat) bool { return h.Stopping && len(h.Running) == 0 })
	})
}

func TestGraceLetsRunningAttemptsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, bus.NewInProcess(bus.Config{}), func(ctx context.Context, a *worker.Attempt) error {
			<-time.After(20 * time.Second)
			return succeed(ctx, a)
		}, func(c *worker.Config) { c.Grace = 30 * time.Second })
		stream := b.want("bld_1")
		b.Await(t, stream, workertest.Has[domain.BuildStarted])
		b.stop()
		if !workertest.Has[domain.BuildSucceeded](b.Log(stream)) {
			t.Errorf("log: %v", workertest.Types(b.Log(stream)))
		}
	})
}

func TestReportsOfAStoppedAttemptAreGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int64
		f := &faulty{Bus: bus.NewInProcess(bus.Config{}), report: func(bus.Report) (lose bool, err error) {
			const most = 100 // of a try each 100 ms to 2 s
			if tries.Add(1) > most {
				return true, nil // or it goes on for ever
			}
			return false, bus.ErrUnavailable
		}}
		begun, stopped := make(chan struct{}), make(chan error, 1)
		b := start(t, f, func(ctx context.Context, a *worker.Attempt) error {
			close(begun)
			a.Report(domain.LayerBuilt{})
			err := hang(stopped)(ctx, a)
			<-time.After(10 * time.Second) // that tidying up takes
			return err
		}, nil)
		b.Await(t, b.want("bld_1"), workertest.Has[domain.BuildStarted])
		<-begun // with its grant, which is an answer too
		b.Lose(func(bus.Answer) bool { return true })
		if err := <-stopped; !errors.Is(err, worker.ErrNoContact) {
			t.Errorf("stopped for %v", err)
		}
		before := tries.Load()
		<-time.After(10 * time.Second)
		if after := tries.Load(); after > before+1 { // one may have been under way
			t.Errorf("%d tries to send what nobody wants any more", after-before)
		}
	})
}

func TestStopWithoutAControlPlaneEndsAllTheSame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &faulty{Bus: bus.NewInProcess(bus.Config{})}
		begun, stopped := make(chan struct{}), make(chan error, 1)
		b := start(t, f, func(ctx context.Context, a *worker.Attempt) error {
			close(begun)
			return hang(stopped)(ctx, a)
		}, nil)
		b.Await(t, b.want("bld_1"), workertest.Has[domain.BuildStarted])
		<-begun
		b.Lose(func(bus.Answer) bool { return true })
		began := time.Now()
		b.stop()
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestConfigProblemsAreToldAtOnce(t *testing.T) {
	t.Parallel()
	_, err := worker.New(worker.Config{Key: ed25519.PrivateKey("short"), Grace: -1})
	for _, want := range []string{"bus", "kind", "id", "key", "0 slots", "do ", "negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v doesn't tell of %q", err, want)
		}
	}
}
