// Package bus receives wire messages (wire.go) from the control plane and from workers, and hands them to each other's
// handlers, at least once; effects.
//
// There are two buses, over RabbitMQ (NewAMQP, by Watermill) and within one process (NewInProcess). Both keep one
// contract, and one conformance suite runs on both:
//   - A publish returns nil only when the broker has the message in a queue. While the broker is away it fails at once
//     with ErrUnavailable, and the caller tries again; a message may then have been published twice. It fails so too when
//     no queue is bound, because somebody has deleted it; then the topology is declared anew. Only answers and committed
//     events are dropped where nobody is bound.
//   - A handler's nil acknowledges the message, so it answers only when its effect is durable. An error brings the
//     message back later, with growing waits; we count its deliveries ourselves, because brokers differ, and what has
//     failed MaxDeliveries times goes to the queue jobs.dead with the reason. Later(err) isn't counted.
//   - What cannot be read (unknown version, broken JSON) goes to jobs.dead at once.
//   - Reports of one subject are handled in the order of their publishing, also across failures. Nothing else is in
//     order, and anything may come twice: order and completeness never depend on a queue.
//   - When a consumer's context ends, its handlers may finish; what they don't finish is handed back uncounted.
//
// A worker's side:
//
//	b, err := bus.NewAMQP(ctx, bus.AMQPConfig{URL: url, Log: log})
//	err = b.ConsumeJobs(ctx, bus.KindBuild, 4, func(ctx context.Context, job bus.Job) error { … })
package bus

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// MaxBody is the largest body of a message in bytes, 1 MiB.
const MaxBody = 1 << 20

// Bus carries messages between processes. All methods may be called
// concurrently, also one Consume method several times.
//
// Publishers return nil once the broker has confirmed, else an error that is
// ErrUnavailable (try again), or a *TooLargeError (never try again).
//
// Consumers block until ctx ends and then return nil; they go on by themselves
// after a lost connection. They call their handler concurrently where not said
// otherwise, with a context that ends with ctx.
type Bus interface {
	// PublishJob offers a job to the workers of its kind.
	PublishJob(context.Context, Job) error
	// PublishClaim asks for the work of a job.
	PublishClaim(context.Context, Signed) error
	// PublishHeartbeat tells that a worker lives. Not durable, and never tried again.
	PublishHeartbeat(context.Context, SignedHeartbeat) error
	// PublishAnswer answers the worker of that incarnation; if it is gone the answer is dropped, and nil returned.
	PublishAnswer(ctx context.Context, incarnation string, a Answer) error
	// PublishReport tells steps of an attempt. Who publishes the reports of one subject one after the other gets them
	// handled in that order.
	PublishReport(context.Context, Report) error
	// PublishLogChunk tells a piece of a build's output.
	PublishLogChunk(context.Context, LogChunk) error
	// PublishCommitted tells outsiders of a stored event. Nobody listens to it on the in-process bus.
	PublishCommitted(context.Context, Committed) error

	// ConsumeJobs handles at most slots jobs of the kind at once, and holds no further ones back from other workers.
	ConsumeJobs(ctx context.Context, kind Kind, slots int, handle func(context.Context, Job) error) error
	// ConsumeClaims handles claims, several at once.
	ConsumeClaims(ctx context.Context, handle func(context.Context, Signed) error) error
	// ConsumeHeartbeats handles heartbeats one at a time. What fails is dropped.
	ConsumeHeartbeats(ctx context.Context, handle func(context.Context, SignedHeartbeat) error) error
	// ConsumeAnswers handles what is answered to that incarnation, one at a time, in order. The queue lives as long
	// as the call and the connection: what is answered before or between is dropped. What fails too often is dropped.
	ConsumeAnswers(ctx context.Context, incarnation string, handle func(context.Context, Answer) error) error
	// ConsumeReports handles reports of different partitions concurrently, those of one partition one at a time and
	// in order. Each partition has one active consumer among all processes; the others stand by.
	ConsumeReports(ctx context.Context, handle func(context.Context, Report) error) error
	// ConsumeLogChunks handles log chunks, several at once.
	ConsumeLogChunks(ctx context.Context, handle func(context.Context, LogChunk) error) error
	// ConsumeDead handles what nobody could handle, one at a time, again and again until the handler returns nil.
	ConsumeDead(ctx context.Context, handle func(context.Context, Dead) error) error

	// Connected tells whether messages can be published and consumed now.
	Connected() bool
	// ConnectedSince tells since when, without a break; false while not connected.
	ConnectedSince() (time.Time, bool)
	// Close ends the connection; call it after the consumers have returned. Publishing then gives ErrUnavailable.
	Close() error
}

// Message is what lies in a queue.
type Message struct {
	ID         string            // UUID; the same in every redelivery
	Version    string            // of the wire form; WireVersion
	Headers    map[string]string // further headers, may be nil
	Body       []byte            // JSON
	Deliveries int               // which delivery this is, from 1, as counted by us
}

// Handler takes one message. It returns nil once the effect is durable: the
// message is then acknowledged. See the package comment for errors.
type Handler func(ctx context.Context, m *Message) error

// Dead is a message that nobody could handle.
type Dead struct {
	Queue   string  // where it came from, as "ingest.3"
	Reason  string  // the last error, for people
	Message Message // as it was delivered last
}

// ErrUnavailable is why a publish fails while the broker is away, doesn't
// confirm in time or has no queue for the message, or the bus is closed. The
// message may have arrived.
var ErrUnavailable = errors.New("message broker unavailable")

// TooLargeError refuses a message over MaxBody.
type TooLargeError struct {
	What string // "report", "log chunk", …
	Size int    // bytes
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s of %d bytes: a message holds %d at most", e.What, e.Size, MaxBody)
}

type laterError struct{ err error }

func (e *laterError) Error() string { return e.err.Error() }
func (e *laterError) Unwrap() error { return e.err }

// Later marks an error that isn't the message's fault, such as a database that
// is away: the consumer holds the message and tries it again, with growing
// waits, for as long as it takes, and doesn't count. Later(nil) is nil.
func Later(err error) error {
	if err == nil {
		return nil
	}
	return &laterError{err}
}

type deliveriesOf struct{}

// deliveries tells a handler which delivery of its message this is, from 1,
// for its log; 0 outside of a handler.
func deliveries(ctx context.Context) int {
	n, _ := ctx.Value(deliveriesOf{}).(int)
	return n
}
