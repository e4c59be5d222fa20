package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// tunnelled is one connection to a port of a pod through the API server.
type tunnelled struct {
	httpstream.Stream // the data

	connection httpstream.Connection
}

// CloseWrite tells the program that nothing more comes.
func (t *tunnelled) CloseWrite() error { return t.Stream.Close() }

// Close ends the whole connection.
func (t *tunnelled) Close() error { return t.connection.Close() }

// tunnel opens a connection of its own for each stream: one that stalls holds no other up.
func (f *forwarder) tunnel(ctx context.Context, p backendPod) (stream, error) {
	type dialled struct {
		stream
		error
	}
	result := make(chan dialled, 1) // one result, and nobody who takes it when ctx has ended
	go func() {
		s, err := f.dial(p)
		result <- dialled{s, err}
	}()
	select {
	case r := <-result:
		return r.stream, r.error
	case <-ctx.Done():
		go func() {
			if late := <-result; late.error == nil {
				_ = late.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

func (f *forwarder) dial(p backendPod) (stream, error) {
	url := f.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(f.namespace).Name(p.name).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(f.config)
	if err != nil {
		return nil, err
	}
	websocket, err := portforward.NewSPDYOverWebsocketDialer(url, f.config)
	if err != nil {
		return nil, err
	}
	older := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	dialer := portforward.NewFallbackDialer(websocket, older, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	connection, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, fmt.Errorf("forward to pod %s: %w", p.name, err)
	}
	data, err := open(connection, p.port)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("forward to port %d of pod %s: %w", p.port, p.name, err), connection.Close())
	}
	return &tunnelled{Stream: data, connection: connection}, nil
}

// open makes the pair of streams that the protocol wants. When the pod says on the first one that it can't go on, the
// connection is closed.
func open(connection httpstream.Connection, port int32) (httpstream.Stream, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(int(port)))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	trouble, err := connection.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	_ = trouble.Close() // we write nothing on it
	go func() {
		if message, err := io.ReadAll(trouble); err == nil && len(message) > 0 {
			_ = connection.Close()
		}
	}()
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	return connection.CreateStream(headers)
}
