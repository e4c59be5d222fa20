package worker_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/internal/worker"
	"github.com/pipeops/pipeops/internal/worker/workertest"
)

// Variables that make the test program a worker of its own, whose attempts print "effect" as often as they may, and
// then why they were stopped.
const (
	urlVariable = "WORKER_TEST_URL"
	keyVariable = "WORKER_TEST_KEY"
)

func beWorker(url string) error {
	key, err := base64.StdEncoding.DecodeString(os.Getenv(keyVariable))
	if err != nil {
		return err
	}
	b, err := bus.NewAMQP(context.Background(), bus.AMQPConfig{URL: url})
	if err != nil {
		return err
	}
	w, err := worker.New(worker.Config{
		Bus: b, Kind: bus.KindBuild, Worker: "wrk_test", Key: key, Slots: 1,
		Heartbeat: 100 * time.Millisecond, Pause: time.Second, GiveUp: 2 * time.Second,
		Do: func(ctx context.Context, a *worker.Attempt) error {
			for a.Effect(ctx) == nil {
				fmt.Fprintln(os.Stdout, "effect")
				select {
				case <-ctx.Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
			fmt.Fprintln(os.Stdout, "stopped:", context.Cause(ctx))
			return context.Cause(ctx)
		},
	})
	if err != nil {
		return err
	}
	return w.Run(context.Background())
}

func TestFrozenProcessStartsNoEffectBeforeItKnows(t *testing.T) {
	t.Parallel()
	url := testenv.AMQP(t)
	b, err := bus.NewAMQP(t.Context(), bus.AMQPConfig{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	plane := workertest.Start(t, b, bus.KindBuild)
	frozen := exec.CommandContext(t.Context(), os.Args[0])
	frozen.Env = append(os.Environ(), urlVariable+"="+url, keyVariable+"="+base64.StdEncoding.EncodeToString(plane.Key))
	frozen.Stderr = os.Stderr
	pipe, err := frozen.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := frozen.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = frozen.Process.Kill()
		_ = frozen.Wait() // tells that it was killed
	})
	lines := make(chan string, 10_000) // more than are printed before the freeze
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(pipe); s.Scan(); {
			lines <- s.Text()
		}
	}()

	stream := domain.BuildStream("bld_1")
	plane.Given(stream, domain.BuildRequested{Build: "bld_1"})
	plane.Offer(t, "bld_1")
	next(t, lines)
	stop(t, frozen.Process)
	freeze := time.NewTimer(3 * time.Second) // longer than GiveUp
	defer freeze.Stop()
	if err := plane.Execute(domain.LoseBuildAttempt{Attempt: "bld_1.1", Reason: "its lease lapsed"}); err != nil {
		t.Fatal(err)
	}
	<-freeze.C
	for len(lines) > 0 { // from before the freeze
		if line := <-lines; line != "effect" {
			t.Fatalf("before it could know: %q", line)
		}
	}
	if err := frozen.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	first := next(t, lines)
	if first == "effect" { // one that had begun before
		first = next(t, lines)
	}
	if !strings.HasPrefix(first, "stopped: ") {
		t.Errorf("after the freeze: %q", first)
	}
}

// stop returns when no thread of p runs any more: on a busy machine they go on for a while after the signal.
func stop(t *testing.T, p *os.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	for !status.Stopped() {
		switch _, err := syscall.Wait4(p.Pid, &status, syscall.WUNTRACED, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			t.Fatal(err)
		case !status.Stopped():
			t.Fatal("the worker ended")
		}
	}
}

func next(t *testing.T, lines <-chan string) string {
	t.Helper()
	select {
	case line, ok := <-lines:
		if !ok {
			t.Fatal(errors.New("the worker ended"))
		}
		return line
	case <-time.After(30 * time.Second):
		t.Fatal("the worker prints nothing")
	}
	return ""
}
