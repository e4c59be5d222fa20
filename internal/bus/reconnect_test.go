//go:build !race

// Watermill's connection writes a field at a reconnect that its publishers and
// subscribers read, which the race detector reports; so these tests run without.

package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/pipeops/pipeops/internal/testenv"
)

// eventually waits until is holds.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * patience)
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", 2*patience, what)
		}
	}
}

// stubborn publishes again and again, as the users of the bus do.
func stubborn(t *testing.T, publish func() error) {
	t.Helper()
	eventually(t, "published", func() bool {
		err := publish()
		if err != nil && !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
		return err == nil
	})
}

// traffic is publishers that never give up, each with the reports of its own
// subject, and a consumer that knows what has come.
type traffic struct {
	stop      func()
	confirmed []atomic.Int64
	mu        sync.Mutex
	seen      []map[int64]bool
	highest   []int64
	reordered []string
}

func startTraffic(t *testing.T, b Bus, publishers int) *traffic {
	t.Helper()
	f := &traffic{confirmed: make([]atomic.Int64, publishers), highest: make([]int64, publishers)}
	ctx, cancel := context.WithCancelCause(t.Context())
	var all sync.WaitGroup
	f.stop = sync.OnceFunc(func() { cancel(errors.New("enough")); all.Wait() })
	t.Cleanup(f.stop)
	for i := range publishers {
		f.seen = append(f.seen, map[int64]bool{})
		all.Go(func() {
			for n := int64(1); context.Cause(ctx) == nil; n++ {
				stubborn(t, func() error { return b.PublishReport(t.Context(), report(fmt.Sprintf("bld_%d", i), n)) })
				f.confirmed[i].Store(n)
			}
		})
	}
	background(t, func(ctx context.Context) error { return b.ConsumeReports(ctx, f.handle) })
	return f
}

func (f *traffic) handle(_ context.Context, r Report) error {
	var i int
	if _, err := fmt.Sscanf(string(r.Attempt), "bld_%d.1", &i); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// A repeat is allowed, a successor before its predecessor isn't.
	if r.First > f.highest[i]+1 {
		f.reordered = append(f.reordered, fmt.Sprintf("bld_%d: %d after %d", i, r.First, f.highest[i]))
	}
	f.highest[i] = max(f.highest[i], r.First)
	f.seen[i][r.First] = true
	return nil
}

func (f *traffic) total() (n int64) {
	for i := range f.confirmed {
		n += f.confirmed[i].Load()
	}
	return n
}

// check waits until every confirmed report has come.
func (f *traffic) check(t *testing.T) {
	t.Helper()
	f.stop()
	for i := range f.confirmed {
		eventually(t, fmt.Sprintf("every confirmed report of bld_%d has come", i), func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return int64(len(f.seen[i])) >= f.confirmed[i].Load()
		})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.reordered) > 0 {
		t.Fatalf("order was broken %d times: %v", len(f.reordered), f.reordered[:min(len(f.reordered), 10)])
	}
}

// more waits for n further confirms.
func (f *traffic) more(t *testing.T, n int64) {
	t.Helper()
	want := f.total() + n
	eventually(t, fmt.Sprintf("%d further reports are confirmed", n), func() bool { return f.total() >= want })
}

func TestAcceptance20_ABrokerRestartLosesNothingConfirmed(t *testing.T) {
	t.Parallel()
	broker := testenv.RabbitMQ(t)
	b := openAMQP(t, broker.URL)
	f := startTraffic(t, b, 12)
	f.more(t, 200)
	broker.Restart()
	f.more(t, 200)
	broker.Kill()
	eventually(t, "the bus sees that the broker is away", func() bool { return !b.Connected() })
	if err := b.PublishJob(t.Context(), job(1)); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("publish without a broker: got %v", err)
	}
	broker.Start()
	f.more(t, 200)
	f.check(t)
	t.Logf("%d reports confirmed", f.total())
}

func TestAMQPLostConnectionsHeal(t *testing.T) {
	t.Parallel()
	b := openAMQP(t, testenv.AMQP(t))
	answers := make(chan Answer, 1000)
	background(t, func(ctx context.Context) error { return b.ConsumeAnswers(ctx, "i1", into(answers)) })
	f := startTraffic(t, b, 12)
	for range 10 {
		f.more(t, 50)
		before, _ := b.ConnectedSince()
		r := b.(*client).transport.(*rabbit)
		r.out.cut()
		r.in.cut()
		eventually(t, "the bus was disconnected and is connected again", func() bool {
			since, up := b.ConnectedSince()
			return up && since.After(before)
		})
		want := Answer{Refusal: &Refusal{Reason: before.String()}}
		eventually(t, "the reply queue is back", func() bool {
			stubborn(t, func() error { return b.PublishAnswer(t.Context(), "i1", want) })
			select {
			case got := <-answers:
				return got.Refusal.Reason == want.Refusal.Reason
			default:
				return false
			}
		})
	}
	f.more(t, 50)
	f.check(t)
}

// gate passes bytes between the bus and the broker, until it is shut.
type gate struct {
	net.Listener
	mu   sync.RWMutex // written to while shut
	open sync.WaitGroup
}

func newGate(t *testing.T, url string) (g *gate, through string) {
	t.Helper()
	uri, err := amqp.ParseURI(url)
	must(t, err)
	g = &gate{}
	g.Listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	target := net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))
	g.open.Go(func() {
		for {
			in, err := g.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				_ = in.Close()
				continue
			}
			g.open.Go(func() { g.pass(in, out) })
			g.open.Go(func() { g.pass(out, in) })
		}
	})
	t.Cleanup(func() { _ = g.Close(); g.open.Wait() })
	uri.Host, uri.Port = "127.0.0.1", g.Addr().(*net.TCPAddr).Port
	return g, uri.String()
}

func (g *gate) pass(from, to net.Conn) {
	defer func() { _ = from.Close(); _ = to.Close() }()
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		g.mu.RLock() // waits while the gate is shut
		_, failed := to.Write(buffer[:n])
		g.mu.RUnlock()
		if err != nil || failed != nil {
			return
		}
	}
}

func TestAMQPFrozenBrokerStopsNobody(t *testing.T) {
	t.Parallel()
	g, url := newGate(t, testenv.AMQP(t))
	b, err := NewAMQP(t.Context(), AMQPConfig{URL: url, Log: testLog(t), ConfirmTimeout: 200 * time.Millisecond, Channels: 2})
	must(t, err)
	claims := make(chan Signed, 100)
	ended := make(chan error, 1)
	go func() { ended <- b.ConsumeClaims(context.WithoutCancel(t.Context()), into(claims)) }()
	stubborn(t, func() error { return b.PublishClaim(t.Context(), Signed{Claim: []byte(`{}`)}) })
	receive(t, claims, "claim")

	g.mu.Lock()
	for range 5 { // more than there are channels
		if err := b.PublishClaim(t.Context(), Signed{Claim: []byte(`{}`)}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	}
	g.mu.Unlock()
	stubborn(t, func() error { return b.PublishClaim(t.Context(), Signed{Claim: []byte(`{}`)}) })
	receive(t, claims, "claim")

	g.mu.Lock()
	defer g.mu.Unlock()
	_ = b.PublishClaim(t.Context(), Signed{Claim: []byte(`{}`)})
	begun := time.Now()
	if err := b.Close(); !errors.Is(err, errCloseLimit) {
		t.Errorf("closing a bus whose broker is frozen: got %v", err)
	}
	if took := time.Since(begun); took > 3*closeLimit {
		t.Errorf("closing took %v", took)
	}
	if err := receive(t, ended, "end of the consumer"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
