package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"strconv"
	"strings"
)

// settle handles one delivery to its end: true acknowledges it (its effect is
// durable, or a copy of it lies in a queue), false hands it back. It holds the
// message, and with it the reader, while it waits; that is the back pressure
// when what the handler needs is away.
func (c *client) settle(ctx context.Context, q queue, m Message, h Handler) bool {
	for failures := 1; context.Cause(ctx) == nil; failures++ {
		err := c.call(ctx, m, h)
		if err == nil {
			return true
		}
		if context.Cause(ctx) != nil {
			return false
		}
		log := c.log.With("queue", q.name, "message", m.ID, "deliveries", m.Deliveries, "err", err)
		var unreadable *unreadableError
		var later *laterError
		switch {
		case errors.As(err, &unreadable):
			return c.bury(ctx, q, m, err, log)
		case errors.As(err, &later):
			log.WarnContext(ctx, "message is tried again later")
		case m.Deliveries >= c.tries(q):
			return c.bury(ctx, q, m, err, log)
		default:
			log.WarnContext(ctx, "message failed")
			m.Deliveries++
			if !q.inPlace {
				return c.pause(ctx, m.Deliveries-1) && c.insist(ctx, returnRoute(q.name), m)
			}
		}
		if !c.pause(ctx, failures) {
			break
		}
	}
	return false
}

// call shields the process from a handler that panics on one message. The
// handler gets a copy, because the message may be needed again.
func (c *client) call(ctx context.Context, m Message, h Handler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.ErrorContext(ctx, "message handler panicked", "message", m.ID, "err", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()
	return h(context.WithValue(ctx, deliveriesOf{}, m.Deliveries), &m)
}

func (c *client) tries(q queue) int {
	switch {
	case q.tries < 0:
		return math.MaxInt
	case q.tries > 0:
		return q.tries
	default:
		return c.maxTries
	}
}

// bury ends the life of a message that nobody can handle.
func (c *client) bury(ctx context.Context, q queue, m Message, reason error, log *slog.Logger) bool {
	if q.drop {
		log.WarnContext(ctx, "message dropped")
		return true
	}
	log.ErrorContext(ctx, "message is dead")
	return c.insist(ctx, deadRoute, inter(q.name, m, reason.Error()))
}

// insist publishes until it succeeds, or ctx ends.
func (c *client) insist(ctx context.Context, to route, m Message) bool {
	for failures := 1; ; failures++ {
		err := c.publish(ctx, to, m)
		if err == nil {
			return true
		}
		c.log.WarnContext(ctx, "message could not be moved", "queue", to.key, "message", m.ID, "err", err)
		if !c.pause(ctx, failures) {
			return false
		}
	}
}

// pause waits before the next try, each time twice as long, with jitter so that
// many don't come back at once; false when ctx ended.
func (c *client) pause(ctx context.Context, failures int) bool {
	wait := c.longestWait
	if shift := failures - 1; shift < 20 {
		wait = min(wait, c.firstWait<<shift)
	}
	wait = wait/2 + rand.N(wait/2+1) //nolint:gosec // no secret
	return tick(ctx, wait)
}

// Headers of a dead letter of ours, and those that RabbitMQ sets when its own
// delivery limit, our net, has caught one.
const (
	deadQueueKey      = "pipeops-dead-queue"
	deadReasonKey     = "pipeops-dead-reason"
	deadDeliveriesKey = "pipeops-dead-deliveries"

	brokerQueueKey  = "x-first-death-queue"
	brokerReasonKey = "x-first-death-reason"
)

// maxReason bounds a reason in bytes: headers share one frame.
const maxReason = 8 << 10

// inter gives the dead letter of m.
func inter(queue string, m Message, reason string) Message {
	headers := maps.Clone(m.Headers)
	if headers == nil {
		headers = map[string]string{}
	}
	headers[deadQueueKey] = queue
	headers[deadReasonKey] = strings.ToValidUTF8(reason[:min(len(reason), maxReason)], "")
	headers[deadDeliveriesKey] = strconv.Itoa(m.Deliveries)
	m.Headers, m.Deliveries = headers, 1
	if m.ID == "" {
		m.ID = newID()
	}
	return m
}

// exhume reads a dead letter.
func exhume(m Message) Dead {
	d := Dead{Queue: m.Headers[deadQueueKey], Reason: m.Headers[deadReasonKey], Message: m}
	if d.Queue == "" {
		d.Queue = m.Headers[brokerQueueKey]
		d.Reason = "the broker gave up: " + m.Headers[brokerReasonKey]
	}
	d.Message.Headers = maps.Clone(m.Headers)
	if n, err := strconv.Atoi(m.Headers[deadDeliveriesKey]); err == nil {
		d.Message.Deliveries = n
	}
	for _, key := range []string{deadQueueKey, deadReasonKey, deadDeliveriesKey} {
		delete(d.Message.Headers, key)
	}
	return d
}
