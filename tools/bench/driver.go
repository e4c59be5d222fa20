package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
)

// order is what a driver is told to do: append with so many writers, each with one append in flight.
type order struct {
	Writers int     `json:"writers"`
	Batch   int     `json:"batch"` // events of an append
	Seconds float64 `json:"seconds"`
}

type outcome struct {
	Events  int64   `json:"events"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// driver is a process that does orders on one store, a line of JSON each way.
type driver struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Scanner
}

func startDriver(ctx context.Context, url, name string, args ...string) (*driver, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "BENCH_URL="+url) // not an argument: it holds a password
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &driver{cmd, stdin, bufio.NewScanner(stdout)}
	if !d.out.Scan() || d.out.Text() != "ready" {
		return nil, errors.Join(fmt.Errorf("driver %s %v did not get ready: %q", name, args, d.out.Text()), d.stop())
	}
	return d, nil
}

// rate does an order and gives events a second.
func (d *driver) rate(o order) (float64, error) {
	if err := json.NewEncoder(d.stdin).Encode(o); err != nil {
		return 0, err
	}
	var done outcome
	if !d.out.Scan() {
		return 0, errors.Join(errors.New("driver ended"), d.out.Err())
	}
	if err := json.Unmarshal(d.out.Bytes(), &done); err != nil {
		return 0, fmt.Errorf("%q: %w", d.out.Text(), err)
	}
	if done.Error != "" {
		return 0, errors.New(done.Error)
	}
	return float64(done.Events) / done.Seconds, nil
}

func (d *driver) stop() error { return errors.Join(d.stdin.Close(), d.cmd.Wait()) }

// body is the same for all: 220 bytes of JSON.
var body = func() []byte {
	text := []byte(`{"text":""}`)
	for len(text) < 220 {
		text = append(text[:9], append([]byte{'x'}, text[9:]...)...)
	}
	return text
}()

// appender appends a batch to a stream that has so many events.
type appender func(ctx context.Context, writer int, stream string, version int64, batch int) error

// drive is the driver's side in Go.
func drive(args []string) {
	if err := serveOrders(context.Background(), args); err != nil {
		fmt.Fprintln(os.Stderr, "bench drive", args[0]+":", err)
		os.Exit(1)
	}
}

func serveOrders(ctx context.Context, args []string) error {
	open, known := stores[args[0]]
	if !known {
		return errors.New("unknown store")
	}
	appendTo, closeStore, err := open(ctx, os.Getenv("BENCH_URL"))
	if err != nil {
		return err
	}
	defer closeStore()
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for turn := 0; lines.Scan(); turn++ {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		done := o.do(ctx, fmt.Sprintf("%d-%d", os.Getpid(), turn), appendTo)
		if err := json.NewEncoder(os.Stdout).Encode(done); err != nil {
			return err
		}
	}
	return lines.Err()
}

const streams = 5000

// do lets the writers append to streams of their own, 5,000 in all, until the time is over.
func (o order) do(ctx context.Context, run string, appendTo appender) outcome {
	began := time.Now()
	end := began.Add(time.Duration(o.Seconds * float64(time.Second)))
	var events atomic.Int64
	var failed atomic.Pointer[error]
	var writers sync.WaitGroup
	for w := range o.Writers {
		writers.Go(func() {
			mine := max(1, streams/o.Writers)
			versions := make([]int64, mine)
			for n := 0; time.Now().Before(end) && failed.Load() == nil; n++ {
				k := n * 7 % mine
				if err := appendTo(ctx, w, fmt.Sprintf("%s-%d-%d", run, w, k), versions[k], o.Batch); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				versions[k] += int64(o.Batch)
				events.Add(int64(o.Batch))
			}
		})
	}
	writers.Wait()
	done := outcome{Events: events.Load(), Seconds: time.Since(began).Seconds()}
	if err := failed.Load(); err != nil {
		done.Error = (*err).Error()
	}
	return done
}
