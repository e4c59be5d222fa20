package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/rest"

	"github.com/pipeops/pipeops/deploy/manifests"
)

const (
	directWait  = 300 * time.Millisecond // for a pod on a network of this machine to answer
	dialWait    = 4 * time.Second        // for the way through the API server
	backendWait = 10 * time.Second       // for a ready pod, before a connection is refused
	retryWait   = 200 * time.Millisecond
)

// nobody is what a connection is told when no pod is ready.
const nobody = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 26\r\n\r\nno pod of it is ready yet\n"

// Forward listens on a loopback address ("127.0.0.1:8080") and leads each connection to a Service of ours until ctx
// ends: to a pod that is ready and not ending, straight to its address where that is on a network of this machine, else
// through the API server. A connection stays with its pod; the next one goes to who is ready then, so that rollouts aren't noticed.
// An empty kubeconfig stands for the pod's own account. It returns at once when it can't listen.
func Forward(ctx context.Context, kubeconfig, namespace, service, listen string) error {
	c, err := connect(kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return fmt.Errorf("connect to the cluster: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("forward to %s/%s: %w", namespace, service, err)
	}
	return newForwarder(c, client, namespace, service).run(ctx, l)
}

type forwarder struct {
	config             *rest.Config
	client             kubernetes.Interface
	namespace, service string
	factory            informers.SharedInformerFactory
	slices             discoverylisters.EndpointSliceLister
	indirect           bool // never straight to a pod

	mu      sync.Mutex
	tunnels map[string]*tunnel // by pod
}

func newForwarder(c *rest.Config, client kubernetes.Interface, namespace, service string) *forwarder {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.LabelSelector = manifests.LabelName + "=" + service
	}))
	return &forwarder{
		config: c, client: client, namespace: namespace, service: service, factory: factory, tunnels: map[string]*tunnel{},
		slices: factory.Discovery().V1().EndpointSlices().Lister(),
	}
}

// run serves until ctx ends, and then waits for its connections, which it cuts.
func (f *forwarder) run(ctx context.Context, l net.Listener) error {
	ctx, stop := context.WithCancelCause(ctx)
	f.factory.StartWithContext(ctx)
	defer f.factory.Shutdown() // which waits for the stop
	defer stop(nil)
	context.AfterFunc(ctx, func() { _ = l.Close() })
	defer f.closeTunnels()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if context.Cause(ctx) != nil {
			return nil
		}
		if err != nil {
			stop(err)
			return fmt.Errorf("accept connections to %s/%s: %w", f.namespace, f.service, err)
		}
		open.Go(func() { f.serve(ctx, conn) })
	}
}

func (f *forwarder) serve(ctx context.Context, client net.Conn) {
	ctx, done := context.WithCancelCause(ctx)
	defer done(nil)
	context.AfterFunc(ctx, func() { _ = client.Close() })
	backend, err := f.backend(ctx)
	if err != nil {
		_, _ = io.WriteString(client, nobody)
		return
	}
	defer func() { _ = backend.Close() }()
	context.AfterFunc(ctx, func() { _ = backend.Close() })
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(backend, client)
		_ = backend.CloseWrite()
	})
	_, _ = io.Copy(client, backend)
	done(nil) // the answer is over: nothing that the client still sends matters
	both.Wait()
}

// stream is a connection to a pod.
type stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

var errNobody = errors.New("no pod is ready")

// backend connects to whoever is ready, waiting a while for somebody.
func (f *forwarder) backend(ctx context.Context) (stream, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, backendWait, errNobody)
	defer cancel()
	for {
		pods := f.ready()
		rand.Shuffle(len(pods), func(i, k int) { pods[i], pods[k] = pods[k], pods[i] }) //nolint:gosec // spreads load, hides nothing
		for _, p := range pods {
			if s := f.direct(ctx, p); s != nil {
				return s, nil
			}
			within, cancel := context.WithTimeoutCause(ctx, dialWait, errNobody) // one that hangs leaves time for the others
			s, err := f.through(within, p)
			if cancel(); err == nil {
				return s, nil
			}
		}
		if err := pause(ctx, retryWait); err != nil {
			return nil, err
		}
	}
}

// direct dials a pod's own address, nil when that isn't on a network of this machine. A route alone proves nothing: there
// are gateways that accept every connection, to nowhere. The same goes for a ClusterIP that kube-proxy doesn't know yet.
func (f *forwarder) direct(ctx context.Context, p backendPod) stream {
	ip := net.ParseIP(p.address)
	if f.indirect || !onLink(ip) {
		return nil
	}
	dialer := net.Dialer{Timeout: directWait}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(p.address, strconv.Itoa(int(p.port))))
	if err != nil {
		return nil
	}
	return conn.(*net.TCPConn)
}

func onLink(ip net.IP) bool {
	addresses, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addresses, func(a net.Addr) bool {
		network, ok := a.(*net.IPNet)
		return ok && ip != nil && network.Contains(ip)
	})
}

// backendPod is a pod that is ready, and the port that its program listens on.
type backendPod struct {
	name, address string
	port          int32
}

func (f *forwarder) ready() []backendPod {
	var out []backendPod
	all, _ := f.slices.EndpointSlices(f.namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: f.service})) // a cache can't fail
	for _, slice := range all {
		if len(slice.Ports) == 0 || slice.Ports[0].Port == nil {
			continue
		}
		for _, e := range slice.Endpoints {
			ends := e.Conditions.Terminating != nil && *e.Conditions.Terminating
			if e.Conditions.Ready != nil && *e.Conditions.Ready && !ends && e.TargetRef != nil && e.TargetRef.Kind == "Pod" && len(e.Addresses) > 0 {
				out = append(out, backendPod{e.TargetRef.Name, e.Addresses[0], *slice.Ports[0].Port})
			}
		}
	}
	return out
}
