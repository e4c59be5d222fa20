package bus

import (
	"context"

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
	channel *amqp.Channel
	uses    int
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
// where Watermill shows its channel.
func (p *publisher) ExchangeDeclare(ch *amqp.Channel, _ string, _ wm.Config) error {
	p.channel = ch
	return nil
}
