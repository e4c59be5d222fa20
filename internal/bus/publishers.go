package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	wm "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	amqp "github.com/rabbitmq/amqp091-go"
)

// publishers is a pool of Watermill publishers with one confirmed channel each.
// Watermill's own pool loses a channel each time that it cannot be opened again,
// hangs for ever when all are lost, and panics when one of these is closed; so
// here a publisher is thrown away whole as soon as its channel is not sound.
type publishers struct {
	conn   *wm.ConnectionWrapper
	config wm.Config
	log    watermill.LoggerAdapter
	idle   chan *publisher // as many as may publish at once; nil in the place of one to be opened
}

// publisher knows its channel as soon as it has published.
type publisher struct {
	*wm.Publisher
	builder
	channel  *amqp.Channel
	returned chan amqp.Return // 1: one message is published at a time
	uses     int
}

// renewAfter messages a publisher is replaced: Watermill remembers for ever each
// route that it has seen, and every worker brings one.
const renewAfter = 10_000

func newPublishers(size int, l *link, config wm.Config) *publishers {
	p := &publishers{conn: l.conn, config: config, log: watermillLog{l}, idle: make(chan *publisher, size)}
	for range size {
		p.idle <- nil
	}
	return p
}

// take gives a publisher to be put back, waiting for one until ctx ends.
func (p *publishers) take(ctx context.Context) (*publisher, error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case taken := <-p.idle:
		if taken != nil && !taken.channel.IsClosed() {
			return taken, nil
		}
	}
	opened, err := p.open()
	if err != nil {
		p.idle <- nil
	}
	return opened, err
}

func (p *publishers) open() (opened *publisher, err error) {
	opened = &publisher{}
	config := p.config
	config.TopologyBuilder = opened
	opened.Publisher, err = wm.NewPublisherWithConnection(config, p.log, p.conn)
	return opened, err
}

// publish returns nil when the broker has confirmed m and found a queue for it, where there has to be one.
func (p *publisher) publish(to route, m Message) error {
	if err := p.Publish(topic(to), toWatermill(m, to.survives())); err != nil {
		return err
	}
	select { // what finds no queue comes back ahead of its confirm
	case _, open := <-p.returned:
		if !open {
			return errChannelLost // and with it perhaps what came back
		}
		return errors.Join(unroutable(to), declare(p.channel)) // so that the next try finds one
	default:
		return nil
	}
}

var errChannelLost = errors.New("the channel was lost")

// unroutable says that no queue takes what is sent there.
func unroutable(to route) error {
	return fmt.Errorf("no queue is bound to exchange %s with key %s", to.exchange, to.key)
}

func (p *publishers) put(back *publisher, failed error) {
	back.uses++
	if failed != nil || back.uses >= renewAfter {
		if back.channel != nil {
			_ = back.channel.Close() // it is given up, whatever comes of it
		}
		back = nil
	}
	p.idle <- back
}

// ExchangeDeclare is called by Watermill before the first message of a route. It
// declares nothing (declare has run before anything is published), but it is
// where Watermill shows its channel. Watermill itself hears nothing of messages that come back.
func (p *publisher) ExchangeDeclare(ch *amqp.Channel, _ string, _ wm.Config) error {
	if p.channel != ch {
		p.channel, p.returned = ch, ch.NotifyReturn(make(chan amqp.Return, 1))
	}
	return nil
}
