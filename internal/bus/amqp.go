package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	wm "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	amqp "github.com/rabbitmq/amqp091-go"
)

// AMQPConfig sets up a bus over RabbitMQ. Only URL is required.
type AMQPConfig struct {
	URL  string // amqp://user:password@host:port/vhost, or amqps://…
	Name string // of the process, shown by the broker; default "pipeops"
	Log  *slog.Logger

	MaxDeliveries int           // as in Config
	FirstWait     time.Duration // as in Config
	LongestWait   time.Duration // as in Config

	Channels       int           // messages published at once, and as many answers and committed events; default 8
	ConnectTimeout time.Duration // NewAMQP waits that long for the broker; default 30 s
	ConfirmTimeout time.Duration // a publish waits that long for the broker's confirm; default 10 s
}

// Validate tells every problem at once.
func (c AMQPConfig) Validate() error {
	var problems []error
	if _, err := amqp.ParseURI(c.URL); err != nil { // the error may hold the password
		problems = append(problems, errors.New("broker URL: want the form amqp://user:password@host:5672/vhost or amqps://…"))
	}
	for name, n := range map[string]int64{
		"max deliveries": int64(c.MaxDeliveries), "first wait": int64(c.FirstWait), "longest wait": int64(c.LongestWait),
		"channels": int64(c.Channels), "connect timeout": int64(c.ConnectTimeout), "confirm timeout": int64(c.ConfirmTimeout),
	} {
		if n < 0 {
			problems = append(problems, fmt.Errorf("%s: %d is negative", name, n))
		}
	}
	return errors.Join(problems...)
}

func (c AMQPConfig) withDefaults() AMQPConfig {
	if c.Name == "" {
		c.Name = "pipeops"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Channels == 0 {
		c.Channels = 8
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 30 * time.Second
	}
	if c.ConfirmTimeout == 0 {
		c.ConfirmTimeout = 10 * time.Second
	}
	return c
}

// NewAMQP connects to the broker, waiting for it while it is away, until ctx
// ends or ConnectTimeout has passed (ErrUnavailable), and declares the topology.
// After that the bus connects again by itself, for as long as it lives. It
// fails at once when the broker refuses the login or the virtual host.
func NewAMQP(ctx context.Context, c AMQPConfig) (Bus, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	b := newClient(nil, Config{Log: c.Log, MaxDeliveries: c.MaxDeliveries, FirstWait: c.FirstWait, LongestWait: c.LongestWait})
	ctx, cancel := context.WithTimeoutCause(ctx, c.ConnectTimeout, fmt.Errorf("no connection within %v", c.ConnectTimeout))
	defer cancel()
	for failures := 1; ; failures++ {
		t, err := openRabbit(c)
		if err == nil {
			b.transport = t
			return b, nil
		}
		if refused(err) {
			return nil, fmt.Errorf("connect to broker: %v", err) //nolint:errorlint // an AMQP error stays in here
		}
		c.Log.WarnContext(ctx, "broker is away", "err", err.Error())
		if !b.pause(ctx, failures) {
			return nil, fmt.Errorf("connect to broker: %w: %w: %v", ErrUnavailable, context.Cause(ctx), err) //nolint:errorlint // see above
		}
	}
}

// refused tells errors that waiting doesn't mend.
func refused(err error) bool {
	if errors.Is(err, amqp.ErrCredentials) || errors.Is(err, amqp.ErrVhost) || errors.Is(err, amqp.ErrSASL) {
		return true
	}
	var said *amqp.Error
	return errors.As(err, &said) &&
		(said.Code == amqp.AccessRefused || said.Code == amqp.NotAllowed || said.Code == amqp.PreconditionFailed)
}

// rabbit is the transport over RabbitMQ. Publishing and consuming have a
// connection each, because a broker short of memory stops to read from those
// that publish, acknowledgements included.
type rabbit struct {
	log            *slog.Logger
	out, in        *link
	needing        *publishers // for routes that need a queue
	offering       *publishers // for the others
	subscriptions  wm.Config
	confirmTimeout time.Duration

	mu         sync.Mutex
	closed     bool
	publishing sync.WaitGroup
	ending     sync.WaitGroup // subscriptions that hand out nothing any more
}

func openRabbit(c AMQPConfig) (*rabbit, error) {
	out, err := openLink(c, "publish", declare)
	if err != nil {
		return nil, err
	}
	in, err := openLink(c, "consume", func(*amqp.Channel) error { return nil })
	if err != nil {
		return nil, errors.Join(err, out.close())
	}
	config := wm.Config{
		Marshaler:       marshaler{},
		TopologyBuilder: builder{},
		Exchange:        wm.ExchangeConfig{GenerateName: topicExchange},
		Publish:         wm.PublishConfig{GenerateRoutingKey: topicKey, ConfirmDelivery: true, ChannelPoolSize: 1},
		Queue:           wm.QueueConfig{GenerateName: wm.GenerateQueueNameTopicName},
		QueueBind:       wm.QueueBindConfig{GenerateRoutingKey: func(string) string { return "" }},
		Consume:         wm.ConsumeConfig{Qos: wm.QosConfig{PrefetchCount: 1}},
	}
	mandatory := config
	mandatory.Publish.Mandatory = true
	return &rabbit{
		log: c.Log, out: out, in: in, subscriptions: config, confirmTimeout: c.ConfirmTimeout,
		needing: newPublishers(c.Channels, out, mandatory), offering: newPublishers(c.Channels, out, config),
	}, nil
}

func (r *rabbit) pool(to route) *publishers {
	if to.needsQueue() {
		return r.needing
	}
	return r.offering
}

// publish answers when the broker has confirmed. Watermill's publisher knows no
// context, so it runs beside; after a time-out it ends with the connection.
func (r *rabbit) publish(ctx context.Context, to route, m Message) error {
	if !r.begin() {
		return errClosed
	}
	defer r.publishing.Done()
	if _, up := r.out.isUp(); !up {
		return fmt.Errorf("%w: not connected", ErrUnavailable)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.confirmTimeout, fmt.Errorf("no confirm within %v", r.confirmTimeout))
	defer cancel()
	done := make(chan error, 1)
	r.publishing.Go(func() {
		pool := r.pool(to)
		p, err := pool.take(ctx)
		if err == nil {
			err = p.publish(to, m)
			pool.put(p, err)
		}
		done <- err
	})
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%w: %v", ErrUnavailable, err) //nolint:errorlint // an AMQP error stays in here
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
}

// begin counts a publisher in, unless the bus is closed.
func (r *rabbit) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.publishing.Add(1)
	}
	return !r.closed
}

func (r *rabbit) consume(ctx context.Context, q queue, readers int, settle func(context.Context, Message) bool) error {
	return together(ctx, readers, func(ctx context.Context, _ int) error {
		for r.in.await(ctx) {
			if err := r.subscribe(ctx, q, settle); err != nil {
				r.log.WarnContext(ctx, "queue cannot be consumed yet", "queue", q.name, "err", err.Error())
				tick(ctx, again)
			}
		}
		return nil
	})
}

// subscribe is one Watermill subscription, which holds one message at a time and
// survives lost connections. It returns nil when ctx has ended, and the message
// that was being handled has been settled.
func (r *rabbit) subscribe(ctx context.Context, q queue, settle func(context.Context, Message) bool) error {
	s, err := wm.NewSubscriberWithConnection(r.subscriptions, watermillLog{r.in}, r.in.conn)
	if err != nil {
		return err
	}
	// Not ended by ctx: a subscription takes with it the message that is being handled.
	messages, err := s.Subscribe(context.WithoutCancel(ctx), q.name)
	if err != nil {
		return err
	}
	// The end waits for the broker, which may be away; close waits for the end.
	defer r.ending.Go(func() { _ = s.Close() }) // it always gives nil
	for {
		select {
		case <-ctx.Done():
			return nil
		case w, ok := <-messages:
			if !ok {
				return nil
			}
			if settle(ctx, fromWatermill(w)) {
				w.Ack()
			} else {
				w.Nack()
			}
			<-w.Context().Done() // by then Watermill has told the broker
		}
	}
}

func (r *rabbit) connectedSince() (time.Time, bool) {
	out, publishes := r.out.isUp()
	in, consumes := r.in.isUp()
	if !publishes || !consumes {
		return time.Time{}, false
	}
	if in.After(out) {
		return in, true
	}
	return out, true
}

// close lets publishers and subscriptions end first: Watermill panics when a
// channel is closed in order under a publisher, and a subscription that ends
// races with the end of its connection. One that still waits after closeLimit
// ends with its connection.
func (r *rabbit) close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		r.publishing.Wait()
		r.ending.Wait()
		close(ended)
	}()
	timer := time.NewTimer(closeLimit)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	}
	err := together(context.Background(), 2, func(_ context.Context, i int) error {
		return [...]*link{r.in, r.out}[i].close()
	})
	<-ended
	return err
}
