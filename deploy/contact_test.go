package deploy

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/testenv"
)

// wire is a way to the API server that can be cut.
type wire struct {
	kubeconfig string // that goes this way
	server     string

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func newWire(t *testing.T, kubeconfig string) *wire {
	t.Helper()
	config, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{}
	for _, c := range config.Clusters {
		w.server = strings.TrimPrefix(c.Server, "https://")
		c.Server = "https://" + l.Addr().String()
	}
	w.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, w.kubeconfig); err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { w.carry(conn) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); w.set(true); serving.Wait() })
	return w
}

func (w *wire) carry(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	server, err := net.Dial("tcp", w.server)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	w.mu.Lock()
	w.conns = append(w.conns, conn, server)
	cut := w.cut
	w.mu.Unlock()
	if cut {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(server, conn); _ = server.Close() })
	_, _ = io.Copy(conn, server)
	_ = conn.Close()
	both.Wait()
}

// set cuts the wire, or mends it.
func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

func TestSilenceOfTheClusterIsNoVerdictEvenAfterTheDeadline(t *testing.T) {
	t.Parallel()
	s := setup(t)
	w := newWire(t, s.kubeconfig)
	remote := *s
	remote.Deployer = watching(t, w.kubeconfig)
	r := s.release(t, "c1", func(p *domain.ServiceSpec) { p.Strategy.MinReady = 3 })
	deadline := time.Now().Add(5 * time.Second)
	a := &recorder{}
	done := make(chan error, 1)
	go func() { done <- remote.do(t.Context(), a, s.grant(r, try{epoch: 1, deadline: deadline})) }()
	await[domain.ManifestsApplied](t, a)
	w.set(true)
	until(t, "the pod is available and the deadline has passed", func() bool {
		return s.workload(t).Status.AvailableReplicas == 1 && time.Now().After(deadline.Add(2*time.Second))
	})
	select {
	case err := <-done:
		t.Fatalf("blind, and yet it came to %v and %s", err, describe(a.events))
	default:
	}
	w.set(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	only[domain.DeploymentSucceeded](t, a)
}

func TestAClusterThatIsNeverReachedLosesTheAttempt(t *testing.T) {
	t.Parallel()
	w := newWire(t, testenv.Cluster(t))
	w.set(true)
	s := &service{Deployer: watching(t, w.kubeconfig), request: fresh()}
	a, err := s.try(t, s.release(t, "c1", nil), try{epoch: 1, deadline: time.Now().Add(-blindGrace)})
	if err == nil || !strings.Contains(err.Error(), "can't be reached") || len(a.events) != 0 {
		t.Errorf("got %v and %s", err, describe(a.events))
	}
}

func TestNoWriteBeginsWithoutContactToTheControlPlane(t *testing.T) {
	t.Parallel()
	s := setup(t)
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("given up"))
	defer cancel()
	a := &recorder{effect: func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }}
	err := s.do(ctx, a, s.grant(s.release(t, "c1", nil), try{epoch: 1}))
	if err == nil || err.Error() != "given up" || len(a.events) != 0 {
		t.Errorf("got %v and %s", err, describe(a.events))
	}
	if _, err := s.client.CoreV1().Namespaces().Get(t.Context(), s.request.Namespace, metav1.GetOptions{}); err == nil {
		t.Error("the namespace was made")
	}
}

func TestDoctorFindsNothingWrongWithAnAdministratorsCluster(t *testing.T) {
	t.Parallel()
	if found := Doctor(t.Context(), testenv.Cluster(t)); len(found) != 0 {
		t.Errorf("got %v", found)
	}
}

func TestDoctorSaysWhatKeepsTheDeployerFromWorking(t *testing.T) {
	t.Parallel()
	s := setup(t)
	code := func(kubeconfig, want, says string) {
		t.Helper()
		found := Doctor(t.Context(), kubeconfig)
		if len(found) != 1 || found[0].Code != want || !strings.Contains(found[0].Error, says) {
			t.Errorf("got %v, want one %s with %q", found, want, says)
		}
	}
	code(filepath.Join(t.TempDir(), "none"), "CLUSTER_UNREACHABLE", "none")
	w := newWire(t, s.kubeconfig)
	w.set(true)
	code(w.kubeconfig, "CLUSTER_UNREACHABLE", "")
	code(s.powerless(t), "CLUSTER_FORBIDDEN", "can't patch deployments (to apply workloads and follow them)")
}

// powerless is a kubeconfig of an account without rights.
func (s *service) powerless(t *testing.T) string {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.request.Namespace}}
	if _, err := s.client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	accounts := s.client.CoreV1().ServiceAccounts(namespace.Name)
	if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "nobody"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := accounts.CreateToken(t.Context(), "nobody", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(s.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for name := range config.AuthInfos {
		config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}
