// Package steps receives the objects of a rollout's step from deploy, and hands them to the Kubernetes API, safely to
// be repeated; effects.
//
// What it keeps:
//   - The fence comes first: the grant's epoch is written by compare-and-set into one ConfigMap per service, and read
//     again before every write of the workload. Who finds a higher one stops (*FencedError).
//   - The workload is written on condition of the resourceVersion that was read before the fence was: of two workers
//     that both passed the fence the later write of the older one fails.
//   - Objects are applied by server-side apply under one field manager. What others own is taken back only where
//     PipeOps set it before; the number of replicas is left to whoever changed it, because that is mostly an autoscaler.
//   - Objects that aren't this service's are never touched (*ForeignError).
//
// In order:
//
//	s := steps.Steps{Client: client, Effect: attempt.Effect, Request: request, Epoch: epoch}
//	err = s.Fence(ctx)                          // the namespace, and the right to write in it
//	err = s.Check(ctx, objects, before)         // everything, and a bare pod, as a dry run
//	applied, err := s.Apply(ctx, objects, before)
package steps

import (
	"context"
	"errors"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/pipeops/pipeops/deploy/manifests"
	"github.com/pipeops/pipeops/domain"
)

// Steps writes the objects of one attempt at a deployment. All fields are required. Not for concurrent use.
type Steps struct {
	Client  kubernetes.Interface
	Effect  func(context.Context) error // returns when a write may begin, or an error; called before each one
	Request domain.DeploymentRequested  // whose namespace, service and labels these are
	Attempt domain.AttemptID
	Epoch   int64 // the grant's fencing epoch
}

// Applied is what an apply came to.
type Applied struct {
	Objects  []string           // "Deployment/web", in the order of applying
	Changed  int                // how many of them
	Notes    []string           // what was taken back from, or left to, other field managers
	Workload *appsv1.Deployment // as the server has it now
}

// ForeignError says that an object of our name isn't this service's.
type ForeignError struct {
	Object string // "Deployment/web"
	Labels map[string]string
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s isn't this service's: its labels are %v", e.Object, e.Labels)
}

// ZeroError says that somebody else keeps the replicas at zero.
type ZeroError struct {
	Manager string
}

func (e *ZeroError) Error() string { return "spec.replicas is 0, and belongs to " + e.Manager }

// PausedError says that somebody paused the workload.
type PausedError struct {
	Object string
}

func (e *PausedError) Error() string { return e.Object + " has spec.paused true" }

// Trouble says what kind of error the API gave.
type Trouble int

// The kinds of trouble.
const (
	Refusal Trouble = iota // an answer: trying again gives the same
	Busy                   // an answer: not now
	Blind                  // no answer, or none that says anything about the cluster: the outcome is unknown
)

// TroubleOf tells the kind of an error that a method of Steps, or a client, gave.
func TroubleOf(err error) Trouble {
	var fenced *FencedError
	var foreign *ForeignError
	var zero *ZeroError
	var paused *PausedError
	var status apierrors.APIStatus
	switch {
	case errors.As(err, &fenced), errors.As(err, &foreign), errors.As(err, &zero), errors.As(err, &paused):
		return Refusal
	case !errors.As(err, &status), apierrors.IsUnauthorized(err):
		return Blind
	case apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsTooManyRequests(err),
		apierrors.IsInternalError(err), apierrors.IsServiceUnavailable(err), status.Status().Code >= 500:
		return Busy
	case apierrors.IsConflict(err) && len(conflictsOf(err)) == 0, apierrors.IsAlreadyExists(err):
		return Busy
	}
	return Refusal
}

func (s *Steps) applyOptions(dry, force bool) metav1.ApplyOptions {
	o := metav1.ApplyOptions{FieldManager: manifests.Manager, Force: force}
	if dry {
		o.DryRun = []string{metav1.DryRunAll}
	}
	return o
}

// ours refuses an object that another service, or nobody of PipeOps, labelled.
func (s *Steps) ours(object string, labels map[string]string) error {
	for name, want := range manifests.Selector(s.Request) {
		if labels[name] != want {
			return &ForeignError{Object: object, Labels: labels}
		}
	}
	return nil
}

// missing turns NotFound into a nil object.
func missing[T any](object *T, err error) (*T, error) {
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return object, nil
}
