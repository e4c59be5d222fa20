// Command consumer shows how another system follows PipeOps without missing an event: it takes committed events from
// RabbitMQ as they come, notices by their position when some are missing, and reads those from GraphQL. It prints one
// line of JSON an event, in order, each once, and keeps its place in a file.
//
//	AMQP_URL=amqp://…  PIPEOPS_URL=http://127.0.0.1:8787  PIPEOPS_TOKEN=…  go run . -state place
//
// The broker may lose, repeat or reorder messages; the log doesn't. So a position that isn't the next one is no reason
// to stop: what lies between is asked for, and what was seen before is dropped. The last messages may get lost as well,
// with nothing after them that would show it; so the log is asked now and then, too.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// event is what this consumer wants of one; both ways give it.
type event struct {
	Cursor  string          `json:"cursor"`
	Type    string          `json:"type"`
	Project string          `json:"project,omitempty"`
	Data    json.RawMessage `json:"data"`
	From    string          `json:"from"` // "broker", or "log" where the broker had lost it
}

func (e event) position() (int64, error) {
	_, position, _ := strings.Cut(e.Cursor, ".")
	return strconv.ParseInt(position, 10, 64)
}

// consumer is one place in the log.
type consumer struct {
	state string // file that keeps the cursor
	at    event  // the newest that was handled
	seen  int64  // its position
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "consumer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	state := flag.String("state", "place", "file that keeps the place")
	queue := flag.String("queue", "example-consumer", "name of our queue")
	every := flag.Duration("ask", 10*time.Second, "how often the log is asked whether something was lost at the end")
	flag.Parse()
	c := &consumer{state: *state}
	if err := c.load(); err != nil {
		return err
	}
	conn, err := amqp.Dial(os.Getenv("AMQP_URL"))
	if err != nil {
		return fmt.Errorf("AMQP_URL: %w", err)
	}
	defer conn.Close()
	deliveries, err := bind(conn, *queue)
	if err != nil {
		return err
	}
	ask := time.NewTicker(*every)
	defer ask.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ask.C:
			err = c.fill(ctx, 0)
		case d, open := <-deliveries:
			if !open {
				return errors.New("the broker has closed the channel: start again, nothing is lost")
			}
			if err = c.take(ctx, d.Body); err == nil {
				err = d.Ack(false)
			}
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// bind makes our own durable queue, so that what comes while we are away waits there.
func bind(conn *amqp.Connection, queue string) (<-chan amqp.Delivery, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	// Keys are <project id>.<event type>. One project alone is "prj_….*": its positions then jump where others' events
	// stand, which costs a question each, and is right all the same.
	if _, err := ch.QueueDeclare(queue, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
		return nil, err
	}
	if err := ch.QueueBind(queue, "#", "pipeops.committed", false, nil); err != nil {
		return nil, err
	}
	if err := ch.Qos(100, 0, false); err != nil {
		return nil, err
	}
	return ch.Consume(queue, "", false, false, false, false, nil)
}

// take handles a message: a CloudEvent, whose extension attributes cursor and project are ours.
func (c *consumer) take(ctx context.Context, body []byte) error {
	var m struct {
		Cursor    string          `json:"cursor"`
		EventType string          `json:"eventtype"`
		Project   string          `json:"project"`
		Data      json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return fmt.Errorf("a message is no CloudEvent in JSON: %w", err)
	}
	e := event{Cursor: m.Cursor, Type: m.EventType, Project: m.Project, Data: m.Data, From: "broker"}
	position, err := e.position()
	if err != nil {
		return fmt.Errorf("cursor %q: %w", m.Cursor, err)
	}
	if position > c.seen+1 {
		if err := c.fill(ctx, position-1); err != nil {
			return err
		}
	}
	return c.handle(e)
}

// handle does what this consumer is for, once for each event, and then keeps the place. A crash in between repeats the
// last one: handling should bear that, for example by the event's id.
func (c *consumer) handle(e event) error {
	position, err := e.position()
	if err != nil || position <= c.seen {
		return err
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	fmt.Println(string(line))
	c.at, c.seen = e, position
	fresh := c.state + ".new"
	if err := os.WriteFile(fresh, []byte(e.Cursor), 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, c.state)
}

func (c *consumer) load() error {
	text, err := os.ReadFile(c.state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // from the beginning
	}
	if err != nil {
		return err
	}
	c.at.Cursor = string(text)
	c.seen, err = c.at.position()
	return err
}

const page = `query($after: Cursor) { events(after: $after, first: 500) {
	events { cursor type project data } cursor head } }`

// fill reads from the log what follows our place, up to a position (0: to its head).
func (c *consumer) fill(ctx context.Context, upTo int64) error {
	for upTo == 0 || c.seen < upTo {
		var out struct {
			Data struct {
				Events struct {
					Events []event
				}
			}
			Errors []struct {
				Message    string
				Extensions struct{ Code string }
			}
		}
		if err := c.ask(ctx, &out); err != nil {
			return err
		}
		if len(out.Errors) > 0 { // LOG_FORKED: a restore lost what we have seen; only a person can say what to do
			return fmt.Errorf("%s: %s", out.Errors[0].Extensions.Code, out.Errors[0].Message)
		}
		if len(out.Data.Events.Events) == 0 {
			return nil
		}
		for _, e := range out.Data.Events.Events {
			if position, err := e.position(); err != nil || upTo > 0 && position > upTo {
				return err
			}
			e.From = "log"
			if err := c.handle(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *consumer) ask(ctx context.Context, out any) error {
	variables := map[string]any{}
	if c.at.Cursor != "" {
		variables["after"] = c.at.Cursor
	}
	body, err := json.Marshal(map[string]any{"query": page, "variables": variables})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, os.Getenv("PIPEOPS_URL")+"/graphql", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+os.Getenv("PIPEOPS_TOKEN"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", req.URL, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
