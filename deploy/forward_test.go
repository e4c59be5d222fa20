package deploy

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/pipeops/pipeops/domain"
)

// forwarding leads a loopback address to the service until the test ends; direct says whether straight to pods.
func (s *service) forwarding(t *testing.T, direct bool) (address string) {
	t.Helper()
	c, err := connect(s.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	f := newForwarder(c, client, s.request.Namespace, s.request.ServiceName)
	f.indirect = !direct
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f.run(ctx, l); err != nil {
			t.Errorf("forward: %v", err)
		}
	})
	t.Cleanup(func() { stop(nil); running.Wait() })
	return l.Addr().String()
}

func TestForwardingNoticesNoRollout(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		direct bool
	}{{"straight to pods", true}, {"through the API server", false}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := setup(t)
			one := s.release(t, "c1", nil)
			s.deployed(t, one, try{epoch: 1})
			s.served(t, "c1")
			stop := load(s.forwarding(t, row.direct))
			s.deployed(t, s.release(t, "c2", nil), try{epoch: 2, previous: &one})
			s.served(t, "c2")
			answers, errs := stop()
			quiet(t, errs)
			if answers["c1"] == 0 || answers["c2"] == 0 || len(answers) != 2 {
				t.Errorf("got %v, want answers of both releases", answers)
			}
		})
	}
}

func TestForwardingToNobodySaysSo(t *testing.T) {
	t.Parallel()
	s := setup(t)
	response, err := (&http.Client{Timeout: time.Minute}).Get("http://" + s.forwarding(t, true))
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got %s", response.Status)
	}
}

func TestForwardTellsWhenItCantListen(t *testing.T) {
	t.Parallel()
	s := setup(t)
	taken := s.forwarding(t, true)
	if err := Forward(t.Context(), s.kubeconfig, s.request.Namespace, "web", taken); err == nil || !strings.Contains(err.Error(), taken) {
		t.Errorf("got %v, want %s named", err, taken)
	}
}

func TestForwardLeadsALongConnectionOfItsOwnPodToTheEnd(t *testing.T) {
	t.Parallel()
	s := setup(t)
	s.deployed(t, s.release(t, "c1", func(p *domain.ServiceSpec) { p.Replicas = 2 }), try{epoch: 1})
	client := &http.Client{Timeout: 10 * time.Second}
	for _, direct := range []bool{true, false} {
		address := s.forwarding(t, direct)
		for range 5 { // on one connection
			response, err := client.Get("http://" + address)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
		}
	}
	client.CloseIdleConnections()
}
