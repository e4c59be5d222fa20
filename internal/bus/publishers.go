package bus

import (
	"context"

	wm "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
)

// publishers is a pool of Watermill publishers with one confirmed channel each.
// Watermill's own pool of channels loses a channel whenever it cannot open it
// again, and hangs for ever when all are lost; here a publisher that failed is
// thrown away whole.
type publishers struct {
	open func() (*wm.Publisher, error)
	idle chan *publisher // as many as may publish at once; nil in the place of one to be opened
}

type publisher struct {
	*wm.Publisher
	uses int
}

// renewAfter messages a publisher is replaced: Watermill remembers for ever each
// route that it has seen, and every worker brings one.
const renewAfter = 10_000

func newPublishers(size int, open func() (*wm.Publisher, error)) *publishers {
	p := &publishers{open: open, idle: make(chan *publisher, size)}
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
		if taken != nil {
			return taken, nil
		}
	}
	opened, err := p.open()
	if err != nil {
		p.idle <- nil
		return nil, err
	}
	return &publisher{Publisher: opened}, nil
}

func (p *publishers) put(back *publisher, failed error) {
	back.uses++
	if failed != nil || back.uses >= renewAfter {
		_ = back.Close() // its channel; Watermill logs what went wrong
		back = nil
	}
	p.idle <- back
}
