package deploy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// tunnel is one connection through the API server to a pod, for all streams to it: to open one is costly.
type tunnel struct {
	pod string

	mu         sync.Mutex // held while dialling, so that all who want it wait for the same
	connection httpstream.Connection
	streams    int // open
	made       int // so far
}

// through opens a stream to a pod.
func (f *forwarder) through(ctx context.Context, p backendPod) (stream, error) {
	f.mu.Lock()
	if f.tunnels[p.name] == nil {
		f.tunnels[p.name] = &tunnel{pod: p.name}
	}
	t := f.tunnels[p.name]
	f.mu.Unlock()

	type opened struct {
		stream
		error
	}
	result := make(chan opened, 1) // one result, and nobody who takes it when ctx has ended
	go func() {
		s, err := f.open(t, p.port)
		result <- opened{s, err}
	}()
	select {
	case r := <-result:
		return r.stream, r.error
	case <-ctx.Done():
		go func() {
			if late := <-result; late.error == nil {
				_ = late.Close() // nobody waits for it any more
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// tunnelled is one stream through a tunnel.
type tunnelled struct {
	httpstream.Stream // the data

	end func()
}

// CloseWrite tells the program that nothing more comes.
func (t *tunnelled) CloseWrite() error { return t.Stream.Close() }

// Close ends the stream.
func (t *tunnelled) Close() error {
	t.end()
	return nil
}

// open makes the pair of streams that the protocol wants. What the pod says on the first one ends the second. Many do so
// at once: each stream waits for the other side's word.
func (f *forwarder) open(t *tunnel, port int32) (stream, error) {
	connection, request, err := f.dialled(t)
	if err != nil {
		return nil, fmt.Errorf("forward to pod %s: %w", t.pod, err)
	}
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(int(port)))
	headers.Set(corev1.PortForwardRequestIDHeader, strconv.Itoa(request))
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	trouble, err := connection.CreateStream(headers)
	var data httpstream.Stream
	if err == nil {
		_ = trouble.Close() // we write nothing on it
		headers.Set(corev1.StreamType, corev1.StreamTypeData)
		data, err = connection.CreateStream(headers)
	}
	if err != nil { // the connection is dead: the next one gets another
		_ = connection.Close()
		f.left(t, connection)
		return nil, fmt.Errorf("forward to port %d of pod %s: %w", port, t.pod, err)
	}
	go func() {
		if message, err := io.ReadAll(trouble); err == nil && len(message) > 0 {
			_ = data.Reset()
		}
	}()
	return &tunnelled{Stream: data, end: sync.OnceFunc(func() {
		_ = data.Reset()
		_ = trouble.Reset()
		connection.RemoveStreams(trouble, data)
		f.left(t, connection)
	})}, nil
}

// dialled gives the tunnel's connection, counts a stream more, and numbers it.
func (f *forwarder) dialled(t *tunnel) (connection httpstream.Connection, request int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := f.dial(t); err != nil {
		return nil, 0, err
	}
	t.streams++
	t.made++
	return t.connection, t.made, nil
}

// dial connects unless the tunnel is. It needs the tunnel's lock.
func (f *forwarder) dial(t *tunnel) error {
	if t.connection != nil {
		select {
		case <-t.connection.CloseChan():
		default:
			return nil
		}
	}
	url := f.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(f.namespace).Name(t.pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(f.config)
	if err != nil {
		return err
	}
	websocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, f.config)
	if err != nil {
		return err
	}
	older := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	dialer := portforward.NewFallbackDialerForStreaming(websocket, older, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	connection, err := dialWithin(dialWait, dialer)
	if err != nil {
		return err
	}
	t.connection, t.streams = connection, 0
	return nil
}

var errNoTunnel = fmt.Errorf("the API server doesn't answer within %v", dialWait)

// dialWithin bounds a dial, which knows no context: all who want the tunnel wait for it.
func dialWithin(limit time.Duration, dialer httpstream.Dialer) (httpstream.Connection, error) {
	type dialled struct {
		httpstream.Connection
		error
	}
	result := make(chan dialled, 1) // one result, and nobody who takes it when it is late
	go func() {
		c, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		result <- dialled{c, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case r := <-result:
		return r.Connection, r.error
	case <-timer.C:
		go func() {
			if late := <-result; late.error == nil {
				_ = late.Close() // nobody waits for it any more
			}
		}()
		return nil, errNoTunnel
	}
}

// left notes that a stream is over. The last one of a pod that isn't ready any more closes its tunnel.
func (f *forwarder) left(t *tunnel, connection httpstream.Connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.connection != connection {
		return
	}
	t.streams--
	if t.streams > 0 || slices.ContainsFunc(f.ready(), func(p backendPod) bool { return p.name == t.pod }) {
		return
	}
	_ = t.connection.Close()
	t.connection = nil
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.tunnels, t.pod)
}

// closeTunnels cuts all.
func (f *forwarder) closeTunnels() {
	f.mu.Lock()
	all := f.tunnels
	f.tunnels = map[string]*tunnel{}
	f.mu.Unlock()
	for _, t := range all {
		t.mu.Lock()
		if t.connection != nil {
			_ = t.connection.Close()
			t.connection = nil
		}
		t.mu.Unlock()
	}
}
