package bus

import (
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill"
	wm "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	amqp "github.com/rabbitmq/amqp091-go"
)

// brokerLimit is how often the broker hands out one copy of a message before it
// moves it to jobs.dead by itself. Our own count stands before it; this is the
// net under messages that kill the process, and under lost connections.
const brokerLimit = 50

// heartbeatTTL is when an unread heartbeat is worthless, in milliseconds.
const heartbeatTTL = 10_000

// declare makes the whole topology. Every process does it at each connect, so
// that nothing published finds no queue; what is there already stays.
func declare(ch *amqp.Channel) error {
	for name, kind := range exchanges {
		if err := ch.ExchangeDeclare(name, kind, true, false, false, false, nil); err != nil {
			return fmt.Errorf("declare exchange %s: %w", name, err)
		}
	}
	for _, q := range queues {
		if err := declareQueue(ch, q); err != nil {
			return err
		}
	}
	return nil
}

func declareQueue(ch *amqp.Channel, q queue) error {
	transient := q.kind == exclusive
	if _, err := ch.QueueDeclare(q.name, !transient, transient, transient, false, q.arguments()); err != nil {
		return fmt.Errorf("declare queue %s: %w", q.name, err)
	}
	for _, from := range q.bindings() {
		if err := ch.QueueBind(q.name, from.key, from.exchange, false, nil); err != nil {
			return fmt.Errorf("bind queue %s: %w", q.name, err)
		}
	}
	return nil
}

func (q queue) arguments() amqp.Table {
	switch {
	case q.kind == exclusive:
		return nil
	case q.kind == fleeting:
		return amqp.Table{"x-message-ttl": int32(heartbeatTTL), "x-max-length": int32(fleetingLimit)}
	case q.name == deadQueue: // RabbitMQ 4 drops after 20 deliveries what has no limit and nowhere to go
		return amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": int32(1_000_000)}
	}
	a := amqp.Table{
		"x-queue-type":              "quorum",
		"x-delivery-limit":          int32(brokerLimit),
		"x-dead-letter-exchange":    deadRoute.exchange,
		"x-dead-letter-routing-key": deadRoute.key,
		"x-dead-letter-strategy":    "at-least-once",
		"x-overflow":                "reject-publish", // at-least-once wants it
	}
	if q.single {
		a["x-single-active-consumer"] = true
	}
	return a
}

// builder is Watermill's TopologyBuilder over our table. A Watermill topic is a
// queue's name where we subscribe, and a route where we publish.
type builder struct{}

func (builder) BuildTopology(ch *amqp.Channel, p wm.BuildTopologyParams, _ wm.Config, _ watermill.LoggerAdapter) error {
	q, known := queues[p.Topic]
	if !known {
		q = replies(strings.TrimPrefix(p.Topic, repliesPrefix))
	}
	return declareQueue(ch, q)
}

// ExchangeDeclare does nothing: see publisher.
func (builder) ExchangeDeclare(*amqp.Channel, string, wm.Config) error { return nil }

func topic(r route) string { return r.exchange + " " + r.key }

func topicExchange(topic string) string {
	exchange, _, _ := strings.Cut(topic, " ")
	return exchange
}

func topicKey(topic string) string {
	_, key, _ := strings.Cut(topic, " ")
	return key
}
