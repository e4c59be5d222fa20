package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
)

// transport moves messages. Everything else of the contract is done once, in
// client, for both buses.
type transport interface {
	// publish returns nil when the queues bound to r have m, and ErrUnavailable else, also when r needs a queue and
	// none is bound.
	publish(ctx context.Context, r route, m Message) error
	// consume calls settle for each message of q, readers at a time, until ctx ends; then it waits for them. Settle
	// says whether m is acknowledged, or else handed back for the next consumer, ahead of its successors.
	consume(ctx context.Context, q queue, readers int, settle func(context.Context, Message) bool) error
	connectedSince() (time.Time, bool)
	close() error
}

// client is a Bus over any transport: wire forms, and what becomes of a
// message that fails (settle.go).
type client struct {
	transport
	consumers
	log         *slog.Logger
	maxTries    int
	firstWait   time.Duration
	longestWait time.Duration
}

func newClient(t transport, c Config) *client {
	made := &client{
		transport: t, log: c.Log,
		maxTries: 8, firstWait: 250 * time.Millisecond, longestWait: 15 * time.Second,
	}
	if c.Log == nil {
		made.log = slog.New(slog.DiscardHandler)
	}
	if c.MaxDeliveries > 0 {
		made.maxTries = c.MaxDeliveries
	}
	if c.FirstWait > 0 {
		made.firstWait = c.FirstWait
	}
	if c.LongestWait > 0 {
		made.longestWait = c.LongestWait
	}
	return made
}

func (c *client) PublishJob(ctx context.Context, j Job) error {
	if _, err := jobQueue(j.Kind); err != nil {
		return err
	}
	return c.send(ctx, "job", jobRoute(j.Kind), j, nil)
}

func (c *client) PublishClaim(ctx context.Context, s Signed) error {
	return c.send(ctx, "claim", claimRoute, s, nil)
}

func (c *client) PublishHeartbeat(ctx context.Context, h SignedHeartbeat) error {
	return c.send(ctx, "heartbeat", heartbeatRoute, h, nil)
}

func (c *client) PublishAnswer(ctx context.Context, incarnation string, a Answer) error {
	q := replies(incarnation)
	return c.send(ctx, "answer", route{exchange: q.exchange, key: q.key}, a, nil)
}

func (c *client) PublishReport(ctx context.Context, r Report) error {
	to, err := reportRoute(r.Attempt)
	if err != nil {
		return err
	}
	return c.send(ctx, "report", to, r, nil)
}

func (c *client) PublishLogChunk(ctx context.Context, l LogChunk) error {
	return c.send(ctx, "log chunk", logRoute, l, nil)
}

func (c *client) PublishCommitted(ctx context.Context, e Committed) error {
	return c.send(ctx, "committed event", e.route(), e, e.headers())
}

// send writes the wire form and publishes it.
func (c *client) send(ctx context.Context, what string, to route, body any, headers map[string]string) error {
	encoded, err := encode(body)
	if err != nil {
		return fmt.Errorf("encode %s: %w", what, err)
	}
	if len(encoded) > MaxBody {
		return &TooLargeError{What: what, Size: len(encoded)}
	}
	m := Message{ID: newID(), Version: WireVersion, Headers: headers, Body: encoded, Deliveries: 1}
	if err := c.publish(ctx, to, m); err != nil {
		return fmt.Errorf("publish %s: %w", what, err)
	}
	return nil
}

// encode leaves <, > and & alone: a signature and a hash stand over the exact bytes.
func encode(body any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(body); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

func jobQueue(k Kind) (queue, error) {
	q, ok := queues["jobs."+string(k)]
	if !ok || k != KindBuild && k != KindDeploy {
		return queue{}, fmt.Errorf("job kind %q: want %q or %q", k, KindBuild, KindDeploy)
	}
	return q, nil
}

func (c *client) ConsumeJobs(ctx context.Context, kind Kind, slots int, handle func(context.Context, Job) error) error {
	q, err := jobQueue(kind)
	if err != nil {
		return err
	}
	if slots < 1 {
		return fmt.Errorf("consume %s jobs: %d slots, want 1 or more", kind, slots)
	}
	return c.receive(ctx, q, slots, decoding(handle))
}

func (c *client) ConsumeClaims(ctx context.Context, handle func(context.Context, Signed) error) error {
	q := queues["claims"]
	return c.receive(ctx, q, q.readers, decoding(handle))
}

func (c *client) ConsumeHeartbeats(ctx context.Context, handle func(context.Context, SignedHeartbeat) error) error {
	q := queues["heartbeats"]
	return c.receive(ctx, q, q.readers, decoding(handle))
}

func (c *client) ConsumeAnswers(ctx context.Context, incarnation string, handle func(context.Context, Answer) error) error {
	q := replies(incarnation)
	return c.receive(ctx, q, q.readers, decoding(handle))
}

func (c *client) ConsumeReports(ctx context.Context, handle func(context.Context, Report) error) error {
	return together(ctx, Partitions, func(ctx context.Context, i int) error {
		q := queues[partition(i)]
		return c.receive(ctx, q, q.readers, decoding(handle))
	})
}

func (c *client) ConsumeLogChunks(ctx context.Context, handle func(context.Context, LogChunk) error) error {
	q := queues["logs"]
	return c.receive(ctx, q, q.readers, decoding(handle))
}

func (c *client) ConsumeDead(ctx context.Context, handle func(context.Context, Dead) error) error {
	return c.receive(ctx, queues[deadQueue], 1, func(ctx context.Context, m *Message) error {
		return handle(ctx, exhume(*m))
	})
}

func (c *client) receive(ctx context.Context, q queue, readers int, h Handler) error {
	joined, leave, err := c.join(ctx)
	if err != nil {
		return fmt.Errorf("consume %s: %w", q.name, err)
	}
	defer leave()
	err = c.consume(joined, q, readers, func(ctx context.Context, m Message) bool { return c.settle(ctx, q, m, h) })
	if err == nil && context.Cause(ctx) == nil {
		err = context.Cause(joined) // the bus was closed under a consumer
	}
	if err != nil {
		return fmt.Errorf("consume %s: %w", q.name, err)
	}
	return nil
}

func (c *client) Connected() bool {
	_, ok := c.connectedSince()
	return ok
}

func (c *client) ConnectedSince() (time.Time, bool) { return c.connectedSince() }

func (c *client) Close() error {
	if !c.end() {
		return nil
	}
	return c.close()
}

// unreadableError is why a message can never be handled.
type unreadableError struct{ reason string }

func (e *unreadableError) Error() string { return e.reason }

// decoding reads the wire form before it calls handle.
func decoding[T any](handle func(context.Context, T) error) Handler {
	return func(ctx context.Context, m *Message) error {
		if m.ID == "" {
			return &unreadableError{"message without an id"}
		}
		if m.Version != WireVersion {
			return &unreadableError{fmt.Sprintf("message version %q is unknown, want %q", m.Version, WireVersion)}
		}
		var body T
		if err := json.Unmarshal(m.Body, &body); err != nil {
			return &unreadableError{"message body: " + err.Error()}
		}
		return handle(ctx, body)
	}
}
