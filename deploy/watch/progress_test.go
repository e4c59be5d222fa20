package watch_test

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pipeops/pipeops/deploy/watch"
)

func template(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: image}}},
	}
}

func ownedBy(uid types.UID) []metav1.OwnerReference {
	return []metav1.OwnerReference{{UID: uid, Controller: new(true)}}
}

func set(uid types.UID, image string, n int32) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{UID: uid, OwnerReferences: ownedBy("d")}}
	rs.Spec.Template = template(image)
	rs.Spec.Template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = string(uid)
	rs.Status = appsv1.ReplicaSetStatus{Replicas: n, ReadyReplicas: n, AvailableReplicas: n}
	return rs
}

func pod(uid, owner types.UID) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid, OwnerReferences: ownedBy(owner)}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "proxy", ImageID: "x@sha256:bb"}, {Name: "app", ImageID: "registry.example/web@sha256:aa"}}
	return p
}

func endpoint(uid types.UID) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		TargetRef:  &corev1.ObjectReference{UID: uid},
		Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
	}
}

// done is a rollout of two pods that is complete, and what was applied for it.
func done() (watch.Snapshot, *appsv1.Deployment) {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{UID: "d", Generation: 2}}
	d.Spec = appsv1.DeploymentSpec{Replicas: new(int32(2)), Template: template("new")}
	applied := d.DeepCopy()
	d.Status = appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2, ReadyReplicas: 2, AvailableReplicas: 2}
	ending := pod("o1", "old")
	ending.DeletionTimestamp = &metav1.Time{}
	return watch.Snapshot{
		Workload:    d,
		ReplicaSets: []*appsv1.ReplicaSet{set("old", "old", 0), set("new", "new", 2)},
		Pods:        []*corev1.Pod{ending, pod("n1", "new"), pod("n2", "new")},
		Slices:      []*discoveryv1.EndpointSlice{{Endpoints: []discoveryv1.Endpoint{endpoint("n1"), endpoint("n2")}}},
	}, applied
}

func TestARolloutIsCompleteWhenOnlyTheReleaseIsThereAndServes(t *testing.T) {
	t.Parallel()
	s, applied := done()
	p := s.Progress(applied)
	if p.State != watch.Complete || p.Wanted != 2 || p.Updated != 2 || p.Ready != 2 || p.Available != 2 || p.Serving != 2 || p.Trailing != 1 {
		t.Errorf("got %+v", p)
	}
	if p.Digest != "sha256:aa" || p.ReplicaSet.UID != "new" || len(p.Pods) != 2 {
		t.Errorf("got digest %s, ReplicaSet %s, %d pods", p.Digest, p.ReplicaSet.UID, len(p.Pods))
	}
}

func TestEachThingThatIsMissingKeepsARolloutFromBeingComplete(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		change func(s *watch.Snapshot, d *appsv1.Deployment)
		want   watch.State
	}{
		{"nothing is seen", func(s *watch.Snapshot, _ *appsv1.Deployment) { s.Workload = nil }, watch.Unseen},
		{"an object of before is seen", func(_ *watch.Snapshot, d *appsv1.Deployment) { d.UID = "other" }, watch.Unseen},
		{"a generation of before is seen", func(_ *watch.Snapshot, d *appsv1.Deployment) { d.Generation = 1 }, watch.Unseen},
		{"the controller hasn't seen the generation", func(_ *watch.Snapshot, d *appsv1.Deployment) { d.Status.ObservedGeneration = 1 }, watch.Moving},
		{"an old pod counts still", func(_ *watch.Snapshot, d *appsv1.Deployment) { d.Status.Replicas = 3 }, watch.Moving},
		{"not all are updated", func(_ *watch.Snapshot, d *appsv1.Deployment) { d.Status.UpdatedReplicas = 1 }, watch.Moving},
		{"not all are available", func(_ *watch.Snapshot, d *appsv1.Deployment) { d.Status.AvailableReplicas = 1 }, watch.Moving},
		{"those available are of another ReplicaSet", func(s *watch.Snapshot, _ *appsv1.Deployment) { s.ReplicaSets[1].Status.AvailableReplicas = 1 }, watch.Moving},
		{"there is no ReplicaSet of the template", func(s *watch.Snapshot, _ *appsv1.Deployment) { s.ReplicaSets = s.ReplicaSets[:1] }, watch.Moving},
		{"the Service doesn't lead to all", func(s *watch.Snapshot, _ *appsv1.Deployment) { s.Slices[0].Endpoints = s.Slices[0].Endpoints[:1] }, watch.Moving},
		{"an endpoint isn't ready", func(s *watch.Snapshot, _ *appsv1.Deployment) { s.Slices[0].Endpoints[0].Conditions.Ready = new(false) }, watch.Moving},
		{"an endpoint is ending", func(s *watch.Snapshot, _ *appsv1.Deployment) {
			s.Slices[0].Endpoints[0].Conditions.Terminating = new(true)
		}, watch.Moving},
		{"the Service leads to an old pod as well", func(s *watch.Snapshot, _ *appsv1.Deployment) {
			s.Slices[0].Endpoints = append(s.Slices[0].Endpoints, endpoint("o1"))
		}, watch.Moving},
		{"somebody paused it", func(_ *watch.Snapshot, d *appsv1.Deployment) { d.Spec.Paused = true }, watch.Paused},
		{"somebody changed the template", func(_ *watch.Snapshot, d *appsv1.Deployment) {
			d.Generation, d.Spec.Template = 3, template("other")
		}, watch.Replaced},
		{"somebody scaled it to zero", func(_ *watch.Snapshot, d *appsv1.Deployment) { d.Spec.Replicas = new(int32(0)) }, watch.Replaced},
		{"an autoscaler wants more", func(_ *watch.Snapshot, d *appsv1.Deployment) { d.Generation, d.Spec.Replicas = 3, new(int32(3)) }, watch.Moving},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s, applied := done()
			row.change(&s, s.Workload)
			if got := s.Progress(applied).State; got != row.want {
				t.Errorf("got state %d, want %d", got, row.want)
			}
		})
	}
}
