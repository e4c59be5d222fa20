// Package watch receives what changes in the cluster from informers, one set for all rollouts, and hands deploy
// snapshots of one service with the verdict on its rollout; effects (progress.go: pure).
//
// Snapshots come from caches that lag a little and not all alike, so a verdict rests on the object that was applied
// (its uid and generation) and on the ReplicaSet of its very template, never on counters alone.
//
//	w, err := watch.New(client, log)
//	go w.Run(ctx)
//	changes, stop := w.Follow(key)
//	p := w.Look(key).Progress(applied)       // again after each change
package watch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/pipeops/pipeops/deploy/manifests"
	"github.com/pipeops/pipeops/domain"
)

// Key names one service in one environment.
type Key struct {
	Namespace string
	Service   domain.ServiceID
}

// Snapshot is what belongs to one service at about one moment.
type Snapshot struct {
	Workload    *appsv1.Deployment // nil: there is none, or it isn't known yet
	ReplicaSets []*appsv1.ReplicaSet
	Pods        []*corev1.Pod
	Slices      []*discoveryv1.EndpointSlice
}

// Watcher keeps the objects of all services of one cluster. All methods may be called concurrently.
type Watcher struct {
	log       *slog.Logger
	factory   informers.SharedInformerFactory
	workloads appslisters.DeploymentLister
	sets      appslisters.ReplicaSetLister
	pods      corelisters.PodLister
	slices    discoverylisters.EndpointSliceLister

	mu        sync.Mutex
	followers map[Key]map[chan struct{}]struct{}
}

// New gives a watcher that isn't running yet.
func New(client kubernetes.Interface, log *slog.Logger) (*Watcher, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = manifests.LabelManagedBy + "=" + manifests.Manager }),
		informers.WithTransform(slim),
	)
	w := &Watcher{
		log: log, factory: factory, followers: map[Key]map[chan struct{}]struct{}{},
		workloads: factory.Apps().V1().Deployments().Lister(),
		sets:      factory.Apps().V1().ReplicaSets().Lister(),
		pods:      factory.Core().V1().Pods().Lister(),
		slices:    factory.Discovery().V1().EndpointSlices().Lister(),
	}
	for _, i := range []cache.SharedIndexInformer{
		factory.Apps().V1().Deployments().Informer(), factory.Apps().V1().ReplicaSets().Informer(),
		factory.Core().V1().Pods().Informer(), factory.Discovery().V1().EndpointSlices().Informer(),
	} {
		if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    w.changed,
			UpdateFunc: func(_, now any) { w.changed(now) },
			DeleteFunc: w.changed,
		}); err != nil {
			return nil, fmt.Errorf("watch the cluster: %w", err)
		}
	}
	return w, nil
}

// slim drops what nobody reads, to save memory.
func slim(object any) (any, error) {
	if m, err := meta.Accessor(object); err == nil {
		m.SetManagedFields(nil)
	}
	return object, nil
}

// Run watches until ctx ends. A cluster that can't be reached is tried again for as long as it takes.
func (w *Watcher) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(w.log.Handler()))
	w.factory.StartWithContext(ctx)
	<-ctx.Done()
	w.factory.Shutdown()
	return nil
}

// Follow gives a channel that holds a token whenever something of the service may have changed since the last receive.
// Call stop when done.
func (w *Watcher) Follow(k Key) (changes <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.followers[k] == nil {
		w.followers[k] = map[chan struct{}]struct{}{}
	}
	w.followers[k][c] = struct{}{}
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.followers[k], c)
		if len(w.followers[k]) == 0 {
			delete(w.followers, k)
		}
	}
}

func (w *Watcher) changed(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	m, err := meta.Accessor(object)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.followers[Key{m.GetNamespace(), domain.ServiceID(m.GetLabels()[manifests.LabelService])}] {
		select {
		case c <- struct{}{}:
		default: // a token is waiting already
		}
	}
}

// Look gives what the caches have. Don't change the objects.
func (w *Watcher) Look(k Key) Snapshot {
	of := selector(k)
	var s Snapshot
	// Listing from a cache can't fail.
	workloads, _ := w.workloads.Deployments(k.Namespace).List(of)
	if len(workloads) > 0 {
		s.Workload = workloads[0]
	}
	s.ReplicaSets, _ = w.sets.ReplicaSets(k.Namespace).List(of)
	s.Pods, _ = w.pods.Pods(k.Namespace).List(of)
	s.Slices, _ = w.slices.EndpointSlices(k.Namespace).List(of)
	return s
}

// Live asks the API server instead: for verdicts that must not rest on what a cache missed.
func Live(ctx context.Context, client kubernetes.Interface, k Key) (Snapshot, error) {
	options := metav1.ListOptions{LabelSelector: selector(k).String()}
	var s Snapshot
	workloads, err := client.AppsV1().Deployments(k.Namespace).List(ctx, options)
	if err != nil {
		return Snapshot{}, fmt.Errorf("list deployments of %s: %w", k.Service, err)
	}
	if len(workloads.Items) > 0 {
		s.Workload = &workloads.Items[0]
	}
	sets, err := client.AppsV1().ReplicaSets(k.Namespace).List(ctx, options)
	if err != nil {
		return Snapshot{}, fmt.Errorf("list replica sets of %s: %w", k.Service, err)
	}
	s.ReplicaSets = pointers(sets.Items)
	pods, err := client.CoreV1().Pods(k.Namespace).List(ctx, options)
	if err != nil {
		return Snapshot{}, fmt.Errorf("list pods of %s: %w", k.Service, err)
	}
	s.Pods = pointers(pods.Items)
	slices, err := client.DiscoveryV1().EndpointSlices(k.Namespace).List(ctx, options)
	if err != nil {
		return Snapshot{}, fmt.Errorf("list endpoint slices of %s: %w", k.Service, err)
	}
	s.Slices = pointers(slices.Items)
	return s, nil
}

func selector(k Key) labels.Selector {
	return labels.SelectorFromSet(labels.Set{manifests.LabelManagedBy: manifests.Manager, manifests.LabelService: string(k.Service)})
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}
