// Package deploy receives granted deployments from internal/worker, brings their releases into a Kubernetes cluster,
// and hands reports of every step back; effects.
//
// It is where the steps of a rollout meet: manifests renders the objects, steps applies them behind the fence, watch
// follows what the cluster makes of them, diagnose says why it doesn't. What it keeps:
//   - The old version serves until the new one has proved itself; if it fails, the old one is applied again and watched
//     until it serves alone.
//   - Nothing is written before the fence has our epoch, and nothing of a release before the whole of it passed a dry
//     run. Everything may be done again by a later attempt, and then changes nothing.
//   - Silence isn't a verdict. While the API server can't be reached nothing fails and nothing is rolled back; an
//     attempt that still can't see anything two minutes after the deadline is lost, and another one takes over.
//   - When its context ends it leaves the cluster as it is.
//
// A deployer, in short:
//
//	d, err := deploy.New(deploy.Config{Bus: b, Worker: id, Key: key, Kubeconfig: path, Log: log})
//	err = d.Run(ctx)
package deploy

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"github.com/pipeops/pipeops/deploy/watch"
	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/worker"
)

// defaultSlots is how many deployments run at once: they mostly wait.
const defaultSlots = 8

// Config sets a deployer up. Bus, Worker and Key are required.
type Config struct {
	Bus        bus.Bus
	Worker     domain.WorkerID
	Key        ed25519.PrivateKey // its public half is enrolled
	Slots      int                // deployments at once; default 8
	Kubeconfig string             // path of the file; default: as a pod of the cluster
	Log        *slog.Logger       // default: discarded
}

// Deployer does deployments in one cluster. Use New, and Run once.
type Deployer struct {
	log     *slog.Logger
	worker  *worker.Worker
	client  kubernetes.Interface // for requests
	watcher *watch.Watcher
}

// New gives a deployer that isn't running yet. The cluster needn't be reachable.
func New(c Config) (*Deployer, error) {
	if c.Slots == 0 {
		c.Slots = defaultSlots
	}
	d, err := newDeployer(c.Kubeconfig, c.Log)
	if err != nil {
		d = &Deployer{} // tell the other problems as well
	}
	w, workerErr := worker.New(worker.Config{
		Bus: c.Bus, Kind: bus.KindDeploy, Worker: c.Worker, Key: c.Key, Slots: c.Slots, Log: d.log,
		Do: func(ctx context.Context, a *worker.Attempt) error { return d.do(ctx, a, a.Grant) },
	})
	if err := errors.Join(err, workerErr); err != nil {
		return nil, fmt.Errorf("set up the deployer: %w", err)
	}
	d.worker = w
	return d, nil
}

func newDeployer(kubeconfig string, log *slog.Logger) (*Deployer, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c, err := connect(kubeconfig)
	if err != nil {
		return nil, err
	}
	requests, watches, err := clients(c)
	if err != nil {
		return nil, err
	}
	w, err := watch.New(watches, log)
	if err != nil {
		return nil, err
	}
	return &Deployer{log: log, client: requests, watcher: w}, nil
}

// Run works until ctx ends; see worker.Worker.Run for what happens to deployments that are under way.
func (d *Deployer) Run(ctx context.Context) error {
	watching, stop := context.WithCancelCause(context.WithoutCancel(ctx)) // as long as attempts are winding down
	var all errgroup.Group
	all.Go(func() error { return d.watcher.Run(watching) })
	all.Go(func() error {
		defer stop(nil)
		return d.worker.Run(ctx)
	})
	return all.Wait()
}
