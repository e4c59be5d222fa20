package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wm "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	amqp "github.com/rabbitmq/amqp091-go"
)

// link is one connection to the broker. Watermill's wrapper dials again when
// it breaks, but tells nobody; a watcher sees it, declares the topology again,
// and only then calls the link up.
type link struct {
	name    string
	log     *slog.Logger
	prepare func(*amqp.Channel) error // after each connect
	conn    *wm.ConnectionWrapper
	stop    context.CancelCauseFunc
	watcher sync.WaitGroup

	// said is counted up whenever Watermill says something. Its field `connected` is read by subscriptions and written
	// when the connection is closed, with nothing between but what it says: this puts the one before the other.
	said atomic.Int64

	mu     sync.Mutex
	socket net.Conn      // of the last dial
	closed bool          // dials no more
	up     chan struct{} // closed while the link is up
	since  time.Time     // while it is up
}

const (
	// heartbeat is how often each side shows that it lives; two missed ones end the connection.
	heartbeat = 10 * time.Second
	// dialLimit bounds a connect with its handshake.
	dialLimit = 10 * time.Second
	// closeLimit bounds what an orderly end may wait for the broker.
	closeLimit = 3 * time.Second
	// look is how often a broken link looks whether it was mended.
	look = 50 * time.Millisecond
	// again is when something that the broker refused is asked for again.
	again = 500 * time.Millisecond
)

var (
	errCloseLimit = errors.New("the broker did not answer in time")
	errLinkClosed = errors.New("link closed")
)

// openLink connects once.
func openLink(c AMQPConfig, name string, prepare func(*amqp.Channel) error) (*link, error) {
	l := &link{name: name, log: c.Log.With("link", name), prepare: prepare, up: make(chan struct{})}
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(c.Name + " " + name)
	conn, err := wm.NewConnection(wm.ConnectionConfig{
		AmqpURI:    c.URL,
		AmqpConfig: &amqp.Config{Heartbeat: heartbeat, Locale: "en_US", Properties: properties, Dial: l.dial},
		Reconnect: &wm.ReconnectConfig{
			BackoffInitialInterval: 100 * time.Millisecond, BackoffRandomizationFactor: 0.5,
			BackoffMultiplier: 1.5, BackoffMaxInterval: 2 * time.Second,
		},
	}, watermillLog{l})
	if err != nil {
		return nil, err
	}
	l.conn = conn
	lost := conn.Connection().NotifyClose(make(chan *amqp.Error, 1))
	if err := l.raise(conn.Connection()); err != nil {
		return nil, errors.Join(err, l.close())
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	l.stop = cancel
	l.watcher.Go(func() { l.watch(ctx, lost) })
	return l, nil
}

func (l *link) dial(network, address string) (net.Conn, error) {
	socket, err := amqp.DefaultDial(dialLimit)(network, address)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.Join(errLinkClosed, socket.Close())
	}
	l.socket = socket
	return socket, nil
}

// raise prepares a fresh connection and calls the link up.
func (l *link) raise(c *amqp.Connection) error {
	ch, err := c.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	if err := l.prepare(ch); err != nil {
		return errors.Join(err, ch.Close())
	}
	if err := ch.Close(); err != nil {
		return fmt.Errorf("close channel: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Now()
	close(l.up)
	return nil
}

// lower calls the link down.
func (l *link) lower() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.since.IsZero() {
		l.since = time.Time{}
		l.up = make(chan struct{})
	}
}

// watch keeps up and since true to the connection.
func (l *link) watch(ctx context.Context, lost <-chan *amqp.Error) {
	current := l.conn.Connection()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-lost:
			l.lower()
			l.log.WarnContext(ctx, "broker connection lost", "err", err)
		}
		for old := current; current == old; {
			if !tick(ctx, look) {
				return
			}
			if l.conn.IsConnected() {
				current = l.conn.Connection()
			}
		}
		lost = current.NotifyClose(make(chan *amqp.Error, 1))
		for err := l.raise(current); err != nil; err = l.raise(current) {
			l.log.WarnContext(ctx, "broker connection is not usable yet", "err", err)
			if current.IsClosed() {
				break // lost tells
			}
			if !tick(ctx, again) {
				return
			}
		}
		if _, up := l.isUp(); up {
			l.log.InfoContext(ctx, "broker connection restored")
		}
	}
}

// tick waits; false when ctx ended.
func tick(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (l *link) isUp() (since time.Time, up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since, !l.since.IsZero()
}

// await waits until the link is up; false when ctx ended.
func (l *link) await(ctx context.Context) bool {
	if context.Cause(ctx) != nil {
		return false
	}
	l.mu.Lock()
	up := l.up
	l.mu.Unlock()
	select {
	case <-up:
		return true
	case <-ctx.Done():
		return false
	}
}

// cut ends the connection without a word, and with it every call that waits for the broker.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.socket != nil {
		_ = l.socket.Close() // nothing is to be said about a socket that nobody needs
	}
}

// close ends the connection in order, or after closeLimit by cut.
//
// Watermill leaks one goroutine when a connection is closed while the broker is
// away (its wrapper waits for a reconnect that it has given up).
func (l *link) close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		if l.stop != nil {
			l.stop(errLinkClosed)
			l.watcher.Wait()
		}
		l.lower()
		err := l.conn.Close()
		l.cut() // of a reconnect that was under way
		done <- err
	}()
	timer := time.NewTimer(closeLimit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		l.cut()
		return errors.Join(errCloseLimit, <-done)
	}
}

// watermillLog is Watermill's log in our words. It mends by itself what it calls
// an error, and of lost connections the link tells; what is left is a queue
// that cannot be consumed while the link is up.
type watermillLog struct{ *link }

func (w watermillLog) Error(text string, err error, fields watermill.LogFields) {
	level := slog.LevelDebug
	if text == "Failed to prepare consume" || text == "Failed to start consuming messages" {
		if _, up := w.isUp(); up {
			level = slog.LevelWarn
		}
	}
	// As text: the error may be a nil pointer, or print its stack.
	w.log.Log(context.Background(), level, "watermill reports", "said", text, "queue", fields["topic"], "err", fmt.Sprint(err))
}

func (w watermillLog) Info(text string, fields watermill.LogFields) { w.Debug(text, fields) }

func (w watermillLog) Debug(text string, fields watermill.LogFields) {
	w.said.Add(1)
	w.log.Debug("watermill reports", "said", text, "queue", fields["topic"])
}

func (watermillLog) Trace(string, watermill.LogFields) {}

func (w watermillLog) With(watermill.LogFields) watermill.LoggerAdapter { return w }
