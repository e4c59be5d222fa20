package steps

import (
	"cmp"
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	appsac "k8s.io/client-go/applyconfigurations/apps/v1"

	"github.com/pipeops/pipeops/deploy/manifests"
)

// mustNotExist is a resourceVersion that no object has which was made in a cluster that runs: an apply with it makes
// the object, or fails with a conflict if somebody else just did.
const mustNotExist = "1"

// Check applies everything, and a bare pod of the template, as a dry run: what the server and its policies refuse is
// known before anything has changed. Before holds what PipeOps applied last, nil when nothing of it serves. The bare
// pod is left out when the workload wouldn't change, because then none will be made.
func (s *Steps) Check(ctx context.Context, objects manifests.Objects, before *manifests.Objects) error {
	if _, _, err := s.service(ctx, objects, before, true); err != nil {
		return fmt.Errorf("dry run of Service/%s: %w", s.Request.ServiceName, err)
	}
	w, err := s.workload(ctx, objects, before, true)
	if err != nil {
		return fmt.Errorf("dry run of Deployment/%s: %w", s.Request.ServiceName, err)
	}
	if w.live != nil && w.live.Generation == w.now.Generation {
		return nil
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: s.Request.ServiceName + "-dry-run", Labels: w.now.Spec.Template.Labels, Annotations: w.now.Spec.Template.Annotations},
		Spec:       w.now.Spec.Template.Spec,
	}
	_, err = s.Client.CoreV1().Pods(s.Request.Namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: manifests.Manager})
	return wrap(err, "dry run of a pod of Deployment/"+s.Request.ServiceName)
}

// Apply applies everything. Doing it again changes nothing.
func (s *Steps) Apply(ctx context.Context, objects manifests.Objects, before *manifests.Objects) (Applied, error) {
	name := s.Request.ServiceName
	out := Applied{Objects: []string{"Namespace/" + s.Request.Namespace, "Service/" + name, "Deployment/" + name}}
	if err := s.Fence(ctx); err != nil {
		return Applied{}, err
	}
	changed, notes, err := s.service(ctx, objects, before, false)
	if err != nil {
		return Applied{}, fmt.Errorf("apply Service/%s: %w", name, err)
	}
	out.Notes = notes
	if changed {
		out.Changed++
	}
	w, err := s.workload(ctx, objects, before, false)
	if err != nil {
		return Applied{}, fmt.Errorf("apply Deployment/%s: %w", name, err)
	}
	if w.live == nil || w.live.ResourceVersion != w.now.ResourceVersion {
		out.Changed++
	}
	out.Notes = append(out.Notes, w.notes...)
	out.Workload = w.now
	return out, nil
}

// Stop scales the workload to zero, if it is there and still runs the release of these objects.
func (s *Steps) Stop(ctx context.Context, objects manifests.Objects) error {
	live, err := missing(s.Client.AppsV1().Deployments(s.Request.Namespace).Get(ctx, s.Request.ServiceName, metav1.GetOptions{}))
	if err != nil {
		return fmt.Errorf("read Deployment/%s: %w", s.Request.ServiceName, err)
	}
	if live == nil || live.Labels[manifests.LabelRelease] != string(s.Request.Release.ID) {
		return nil
	}
	spec := *objects.Workload.Spec
	workload := *objects.Workload
	workload.Spec = spec.WithReplicas(0)
	objects.Workload = &workload
	if _, err = s.workload(ctx, objects, nil, false); err != nil {
		return fmt.Errorf("scale Deployment/%s to zero: %w", s.Request.ServiceName, err)
	}
	return nil
}

// service applies the Service. It needs no precondition: it is the same for every release.
func (s *Steps) service(ctx context.Context, objects manifests.Objects, before *manifests.Objects, dry bool) (changed bool, notes []string, err error) {
	api := s.Client.CoreV1().Services(s.Request.Namespace)
	live, err := missing(api.Get(ctx, s.Request.ServiceName, metav1.GetOptions{}))
	if err != nil {
		return false, nil, err
	}
	if live != nil {
		if err := s.ours("Service/"+live.Name, live.Labels); err != nil {
			return false, nil, err
		}
	}
	if err := s.mayWrite(ctx, dry); err != nil {
		return false, nil, err
	}
	now, err := api.Apply(ctx, objects.Service, s.applyOptions(dry, false))
	if conflicts := conflictsOf(err); len(conflicts) > 0 && (before == nil || allSet(before.Service, conflicts)) {
		for _, c := range conflicts {
			notes = append(notes, takenBack(c))
		}
		now, err = api.Apply(ctx, objects.Service, s.applyOptions(dry, true))
	}
	if err != nil {
		return false, nil, err
	}
	return live == nil || live.ResourceVersion != now.ResourceVersion, notes, nil
}

// written is the workload before (nil: it didn't exist) and after.
type written struct {
	live, now *appsv1.Deployment
	notes     []string
}

// workload applies the Deployment as often as somebody else, mostly its own controller, writes it at the same time.
func (s *Steps) workload(ctx context.Context, objects manifests.Objects, before *manifests.Objects, dry bool) (written, error) {
	for {
		w, err := s.workloadOnce(ctx, objects.Workload, before, dry)
		if !apierrors.IsConflict(err) || len(conflictsOf(err)) > 0 {
			return w, err
		}
		if cause := context.Cause(ctx); cause != nil {
			return written{}, cause
		}
	}
}

func (s *Steps) workloadOnce(ctx context.Context, wanted *appsac.DeploymentApplyConfiguration, before *manifests.Objects, dry bool) (written, error) {
	api := s.Client.AppsV1().Deployments(s.Request.Namespace)
	live, err := missing(api.Get(ctx, s.Request.ServiceName, metav1.GetOptions{}))
	if err != nil {
		return written{}, err
	}
	version := mustNotExist
	if live != nil {
		if err := s.ours("Deployment/"+live.Name, live.Labels); err != nil {
			return written{}, err
		}
		if live.Spec.Paused {
			return written{}, &PausedError{Object: "Deployment/" + live.Name}
		}
		version = live.ResourceVersion
	}
	if err := s.mayWrite(ctx, dry); err != nil { // after the version was read: see the package comment
		return written{}, err
	}
	apply := func(w *appsac.DeploymentApplyConfiguration, force bool) (*appsv1.Deployment, error) {
		object := *w
		meta := *w.ObjectMetaApplyConfiguration
		object.ObjectMetaApplyConfiguration = &meta
		return api.Apply(ctx, object.WithResourceVersion(version), s.applyOptions(dry, force))
	}
	now, err := apply(wanted, false)
	if conflicts := conflictsOf(err); len(conflicts) > 0 {
		agreed, ok, zero := settle(wanted, live, before, conflicts)
		if !ok {
			return written{}, cmp.Or(zero, err)
		}
		now, err = apply(agreed.wanted, agreed.force)
		return written{live, now, agreed.notes}, err
	}
	return written{live: live, now: now}, err
}

// mayWrite passes when our epoch stands and a write may begin.
func (s *Steps) mayWrite(ctx context.Context, dry bool) error {
	if dry {
		return nil
	}
	if err := s.Effect(ctx); err != nil {
		return err
	}
	return s.fence(ctx)
}
