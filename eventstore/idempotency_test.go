package eventstore_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/storetest"
)

// lossy passes bytes between a store and PostgreSQL, and cuts the connection when the answer to an append comes
// back: the transaction is committed then, and its client doesn't know.
type lossy struct {
	net.Listener
	server atomic.Value // its address, a string
	lose   atomic.Bool
	before func() // called before the cut, while the client waits; nil: nothing
	lost   atomic.Int64

	down   atomic.Bool // nobody is let through
	turned atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newLossy(t *testing.T, server string) (*lossy, string) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &lossy{Listener: listener, conns: map[net.Conn]bool{}}
	l.server.Store(u.Host)
	u.Host = listener.Addr().String()
	var group sync.WaitGroup
	group.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() { l.pass(client) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		group.Wait()
	})
	return l, u.String()
}

func (l *lossy) pass(client net.Conn) {
	defer client.Close() //nolint:errcheck // cut on purpose
	if l.down.Load() {
		l.turned.Add(1)
		return
	}
	server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", l.server.Load().(string))
	if err != nil {
		return
	}
	defer server.Close() //nolint:errcheck // cut on purpose
	defer l.keep(client, server)()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, client)
		_ = server.(*net.TCPConn).CloseWrite()
	}()
	answer := make([]byte, 1<<16)
	for {
		n, err := server.Read(answer)
		if err != nil {
			break
		}
		// An answer that ends with ReadyForQuery outside of a transaction, with a row in it, was a statement's.
		if l.lose.Load() && n > 6 && answer[0] == '2' && string(answer[n-6:n]) == "Z\x00\x00\x00\x05I" && l.lose.CompareAndSwap(true, false) {
			if l.before != nil {
				l.before()
			}
			l.lost.Add(1)
			break
		}
		if _, err := client.Write(answer[:n]); err != nil {
			break
		}
	}
	_ = client.Close()
	<-done
}

// keep has the connections closed by cut, until they are let go.
func (l *lossy) keep(conns ...net.Conn) (letGo func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		l.conns[c] = true
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range conns {
			delete(l.conns, c)
		}
	}
}

// cut ends all connections on both sides, without a word to either end.
func (l *lossy) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.(*net.TCPConn).SetLinger(0) // a reset, as when a machine goes
		_ = c.Close()
	}
}

func TestAcceptance05_AnAppendWhoseAnswerIsLostIsWrittenOnce(t *testing.T) {
	t.Parallel()
	s := setup(t)
	proxy, address := newLossy(t, s.app)
	through := &bundle{app: address}
	store := through.open(t, eventstore.Config{PollInterval: time.Hour})
	storetest.MustAppend(t, store, storetest.One("build/0", 0, storetest.NewEvent("A"))) // the statement is prepared
	for i := range 5 {
		for _, n := range []int{1, 3} {
			before := storetest.Count(t, s.Store)
			proxy.lose.Store(true)
			stream := domain.Stream(fmt.Sprintf("build/%d-%d", i, n))
			got := storetest.MustAppend(t, store, storetest.One(stream, 0, storetest.NewEvents(n, "A")...))
			if !got.Known || got.First.Position != before+1 || got.Last.Position != before+int64(n) || storetest.Count(t, s.Store) != before+int64(n) {
				t.Errorf("%d events after %d: %+v, then the head is %d", n, before, got, storetest.Count(t, s.Store))
			}
		}
	}
	if n := proxy.lost.Load(); n != 10 {
		t.Errorf("%d answers were lost, want 10: the test did not test", n)
	}
}
