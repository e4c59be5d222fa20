// Command consumer shows how another system follows PipeOps without missing an event: it takes committed events from
// RabbitMQ as they come, notices by their position when some are missing, and reads those from GraphQL. It prints one
// line of JSON an event, in order, each once, and keeps its place in a file.
//
//	AMQP_URL=amqp://…  PIPEOPS_URL=http://127.0.0.1:8787  PIPEOPS_TOKEN=…  go run . -state place
//
// The broker may lose, repeat or reorder messages; the log doesn't. So a position that isn't the next one is no reason
// to stop: what lies between is asked for, and what was seen before is dropped. The last messages may get lost as well,
// with nothing after them that would show it; so the log is asked now and then, too.
//
// A restore may lose the end of the log, which then goes on in another log epoch, at positions that were there before,
// while lost events still wait in our queue. So the epoch comes first: a message of another one than ours says nothing
// by its position, and the log is asked. What it has lost of what was printed, a line says:
//
//	{"forked":"1.100","lastGood":90}
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

// fork is what is printed when a restore has lost events that were printed before.
type fork struct {
	Forked   string `json:"forked"`   // our place then
	LastGood int64  `json:"lastGood"` // the lines beyond this position are void
}

// cursor is a place in the log: all up to the position was seen, as the log is in that epoch.
type cursor struct{ epoch, position int64 }

func parse(text string) (c cursor, err error) {
	epoch, position, _ := strings.Cut(text, ".")
	var err1, err2 error
	c.epoch, err1 = strconv.ParseInt(epoch, 10, 64)
	c.position, err2 = strconv.ParseInt(position, 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return c, fmt.Errorf("cursor %q: %w", text, err)
	}
	return c, nil
}

func (c cursor) String() string { return fmt.Sprintf("%d.%d", c.epoch, c.position) }

// consumer is one place in the log.
type consumer struct {
	state string // file that keeps the place
	at    cursor // the newest that was handled; its zero value: nothing yet
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
	if err := c.begin(ctx); err != nil {
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
	place, err := parse(e.Cursor)
	if err != nil {
		return err
	}
	if place.epoch == c.at.epoch && place.position > c.at.position+1 { // messages are missing
		if err := c.fill(ctx, place.position-1); err != nil {
			return err
		}
	}
	switch {
	case place.epoch == c.at.epoch && place.position == c.at.position+1:
		return c.handle(e)
	case place.epoch <= c.at.epoch && place.position <= c.at.position:
		return nil // it was seen, or a restore has lost it
	}
	return c.fill(ctx, 0) // of another epoch: what the log says is right
}

// handle does what this consumer is for, once for each event, and then keeps the place. A crash in between repeats the
// last one: handling should bear that, for example by the event's id.
func (c *consumer) handle(e event) error {
	place, err := parse(e.Cursor)
	if err != nil || place.position <= c.at.position {
		return err
	}
	return c.print(e, place)
}

// print writes a line, and then keeps the place.
func (c *consumer) print(what any, place cursor) error {
	line, err := json.Marshal(what)
	if err != nil {
		return err
	}
	if _, err := fmt.Println(string(line)); err != nil {
		return err // nobody got it, so the place stays where it is
	}
	return c.keep(place)
}

func (c *consumer) keep(place cursor) error {
	if place == c.at {
		return nil
	}
	c.at = place
	fresh := c.state + ".new"
	if err := os.WriteFile(fresh, []byte(place.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, c.state)
}

func (c *consumer) load() error {
	text, err := os.ReadFile(c.state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // from the beginning
	}
	if err == nil {
		c.at, err = parse(string(text))
	}
	return err
}

// begin sees to it that our place is one of the log's epoch before any message is looked at: lost events may wait in
// our queue, and look like the next ones.
func (c *consumer) begin(ctx context.Context) error {
	found, err := c.page(ctx, 1)
	if err != nil {
		return err
	}
	head, err := parse(found.Head)
	if err != nil || head.epoch == c.at.epoch {
		return err
	}
	return c.fill(ctx, 0)
}

// fill reads from the log what follows our place, up to a position (0: to its head).
func (c *consumer) fill(ctx context.Context, upTo int64) error {
	for upTo == 0 || c.at.position < upTo {
		found, err := c.page(ctx, 500)
		if err != nil {
			return err
		}
		for _, e := range found.Events {
			if place, err := parse(e.Cursor); err != nil || upTo > 0 && place.position > upTo {
				return err
			}
			e.From = "log"
			if err := c.handle(e); err != nil {
				return err
			}
		}
		place, err := parse(found.Cursor) // at the head it is of the log's epoch now, which may be a later one
		if err == nil {
			err = c.keep(place)
		}
		if err != nil || len(found.Events) == 0 && !found.More {
			return err
		}
	}
	return nil
}

// answer is a page of the log.
type answer struct {
	Events       []event
	Cursor, Head string
	More         bool
}

// problem is how GraphQL says no.
type problem struct {
	Message    string
	Extensions struct{ Code, Position string }
}

// page reads the log behind our place, which goes back to the fork first where a restore has lost what we have seen.
func (c *consumer) page(ctx context.Context, first int) (answer, error) {
	for {
		var out struct {
			Data   struct{ Events answer }
			Errors []problem
		}
		if err := c.ask(ctx, first, &out); err != nil {
			return answer{}, err
		}
		if len(out.Errors) == 0 {
			return out.Data.Events, nil
		}
		if err := c.goBack(out.Errors[0]); err != nil {
			return answer{}, err
		}
	}
}

// goBack tells of a fork, and goes on from it.
func (c *consumer) goBack(p problem) error {
	first, err := strconv.ParseInt(p.Extensions.Position, 10, 64) // the first that may differ
	if p.Extensions.Code != "CURSOR_FORKED" || err != nil {
		return fmt.Errorf("%s: %s", p.Extensions.Code, p.Message)
	}
	return c.print(fork{Forked: c.at.String(), LastGood: first - 1}, cursor{c.at.epoch, first - 1})
}

const query = `query($after: Cursor, $first: Int!) { events(after: $after, first: $first) {
	events { cursor type project data } cursor head more } }`

func (c *consumer) ask(ctx context.Context, first int, out any) error {
	variables := map[string]any{"first": first}
	if c.at.position > 0 {
		variables["after"] = c.at.String()
	}
	body, err := json.Marshal(map[string]any{"query": query, "variables": variables})
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
