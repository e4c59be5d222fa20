package deploy

import (
	"context"
	"crypto/ed25519"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/worker/workertest"
)

func TestADeployerDoesWhatTheControlPlaneGrants(t *testing.T) {
	t.Parallel()
	s := setup(t)
	plane := workertest.Start(t, bus.NewInProcess(bus.Config{}), bus.KindDeploy)
	d, err := New(Config{Bus: plane.Bus, Worker: plane.Worker, Key: plane.Key, Kubeconfig: s.kubeconfig})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	offer := func(r domain.DeploymentRequested) domain.Stream {
		slot := domain.SlotStream(r.Environment, r.Service)
		plane.Given(slot, domain.DeploymentAdmitted{Deployment: r.Deployment})
		plane.Given(domain.DeploymentStream(r.Deployment), r)
		plane.Offer(t, string(r.Deployment))
		return domain.DeploymentStream(r.Deployment)
	}

	good := s.release(t, "good", nil)
	plane.Await(t, offer(good), workertest.Has[domain.DeploymentSucceeded])
	bad := s.release(t, "bad", func(p *domain.ServiceSpec) { mode("deaf")(p); p.Health.Startup.Failures = 2 })
	log := plane.Await(t, offer(bad), workertest.Has[domain.RolledBack])
	if got, want := typesOf(log), []string{
		"DeploymentRequested", "DeploymentStarted", "ManifestsApplied", "DeploymentFailed", "RollbackStarted", "ManifestsApplied", "RolledBack",
	}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if back := workertest.Last[domain.RolledBack](log); back.To != good.Release.ID {
		t.Errorf("rolled back to %s, want %s", back.To, good.Release.ID)
	}
	s.served(t, "good")
	stop(nil)
	running.Wait()
}

func TestNewTellsEveryProblemAtOnce(t *testing.T) {
	t.Parallel()
	_, err := New(Config{Kubeconfig: "/nowhere/kubeconfig", Slots: -1, Key: ed25519.PrivateKey{}})
	for _, want := range []string{"/nowhere/kubeconfig", "bus is missing", "id is missing", "key is missing", "-1 slots"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}
