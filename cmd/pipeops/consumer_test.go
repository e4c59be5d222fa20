package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/pipeops/pipeops/domain"
)

// outsideConsumer runs examples/consumer, loses messages of its queue while it is away, and expects every event of the
// log once, in order, all the same.
func outsideConsumer(t *testing.T, s *system) {
	bin := filepath.Join(t.TempDir(), "consumer")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	build.Dir = filepath.Join("..", "..", "examples", "consumer")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the example: %v\n%s", err, out)
	}
	said := filepath.Join(t.TempDir(), "said")
	const queue = "example-consumer"
	start := func(untilSeen int64) {
		t.Helper()
		out, err := os.OpenFile(said, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd := exec.CommandContext(t.Context(), bin, "-state", said+".place", "-queue", queue, "-ask", "1s")
		cmd.Env = append(s.env, "PIPEOPS_URL="+s.clients[0].url, "PIPEOPS_TOKEN="+s.clients[0].token)
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "the consumer has seen the log", func() error {
			if seen := consumed(t, said); len(seen) == 0 || seen[len(seen)-1] < untilSeen {
				return fmt.Errorf("it has seen %d events, want position %d", len(seen), untilSeen)
			}
			return nil
		})
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			t.Errorf("the consumer: %v", err)
		}
	}
	start(s.head(t))
	a := s.newApp("outside")
	a.events(a.push("serve", map[string]string{"Dockerfile": "FROM busybox:stable\nRUN exit 1\n"}), 2*time.Minute)
	lose(t, s.amqp(), queue, 3)
	start(s.head(t))
	seen := consumed(t, said)
	for i, position := range seen {
		if position != int64(i+1) {
			t.Fatalf("line %d of the consumer is position %d", i+1, position)
		}
	}
	text, err := os.ReadFile(said)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"from":"log"`) || !strings.Contains(string(text), `"from":"broker"`) {
		t.Errorf("of %d events none came from the log, or none from the broker: the test did not test", len(seen))
	}
}

// head is the newest position of the log.
func (s *system) head(t *testing.T) (position int64) {
	t.Helper()
	if err := s.clients[0].pages(t.Context(), "", map[string]any{}, func(l domain.Line) error {
		position = l.Position
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return position
}

func (s *system) amqp() (url string) {
	for _, variable := range s.env {
		if value, found := strings.CutPrefix(variable, "AMQP_URL="); found {
			url = value
		}
	}
	return url
}

// lose takes messages from a queue after the first one, and forgets them.
func lose(t *testing.T, url, queue string, messages int) {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	taken := func() (d amqp.Delivery) {
		eventually(t, 30*time.Second, "a message waits", func() error {
			var found bool
			if d, found, err = ch.Get(queue, false); err != nil || !found {
				return errors.Join(err, errors.New("the queue is empty"))
			}
			return nil
		})
		return d
	}
	first := taken()
	for range messages {
		if err := taken().Ack(false); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Nack(false, true); err != nil {
		t.Fatal(err)
	}
}

// consumed gives the positions that the consumer has printed.
func consumed(t *testing.T, file string) (positions []int64) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") { // half written
			break
		}
		var e struct{ Cursor domain.Cursor }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		positions = append(positions, e.Cursor.Position)
	}
	return positions
}
