package watch

import (
	"maps"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pipeops/pipeops/deploy/manifests"
)

// State is where a rollout stands.
type State int

// The states of a rollout.
const (
	Unseen   State = iota // what was applied isn't seen yet, or is gone
	Moving                // on its way
	Paused                // somebody paused it
	Replaced              // somebody changed what shall run: it must be applied again
	Complete              // every wanted pod is of the release, available, and in the Service; no other is wanted
)

// Progress is how far the rollout of an applied workload is.
type Progress struct {
	State                             State
	Wanted, Updated, Ready, Available int                // pods of the release
	Serving                           int                // of them in the Service
	Leaving                           int                // other pods that are still in the Service
	Trailing                          int                // other pods of the service that still exist
	Digest                            string             // as the pods run it; empty while none says
	ReplicaSet                        *appsv1.ReplicaSet // of the release's template; nil while there is none
	Pods                              []*corev1.Pod      // of that ReplicaSet
}

// Progress compares the snapshot with the workload as the server answered when it was applied.
func (s Snapshot) Progress(applied *appsv1.Deployment) Progress {
	d := s.Workload
	if d == nil || d.UID != applied.UID || d.Generation < applied.Generation {
		return Progress{State: Unseen, Wanted: wanted(applied)}
	}
	p := Progress{State: Moving, Wanted: wanted(d), ReplicaSet: s.replicaSet(d)}
	p.Pods, p.Trailing = s.podsOf(p.ReplicaSet)
	if rs := p.ReplicaSet; rs != nil {
		p.Updated, p.Ready, p.Available = int(rs.Status.Replicas), int(rs.Status.ReadyReplicas), int(rs.Status.AvailableReplicas)
	}
	p.Serving, p.Leaving = s.serving(p.Pods)
	p.Digest = digest(p.Pods)
	switch {
	case d.Spec.Paused:
		p.State = Paused
	case !equality.Semantic.DeepEqual(d.Spec.Template, applied.Spec.Template), p.Wanted == 0:
		p.State = Replaced
	case s.complete(d, p):
		p.State = Complete
	}
	return p
}

// complete is the Deployment controller's own rule, on the ReplicaSet of our template, and the Service's view of it.
func (s Snapshot) complete(d *appsv1.Deployment, p Progress) bool {
	st := d.Status
	return st.ObservedGeneration >= d.Generation &&
		int(st.UpdatedReplicas) == p.Wanted && int(st.Replicas) == p.Wanted && int(st.AvailableReplicas) >= p.Wanted &&
		p.ReplicaSet != nil && p.Available >= p.Wanted && p.Serving >= p.Wanted && p.Leaving == 0
}

func wanted(d *appsv1.Deployment) int {
	if d.Spec.Replicas == nil {
		return 1
	}
	return int(*d.Spec.Replicas)
}

// replicaSet finds the one of the workload's present template, as the Deployment controller does.
func (s Snapshot) replicaSet(d *appsv1.Deployment) *appsv1.ReplicaSet {
	for _, rs := range s.ReplicaSets {
		if metav1.IsControlledBy(rs, d) && sameTemplate(rs.Spec.Template, d.Spec.Template) {
			return rs
		}
	}
	return nil
}

func sameTemplate(of, wanted corev1.PodTemplateSpec) bool {
	of.Labels = maps.Clone(of.Labels)
	delete(of.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return equality.Semantic.DeepEqual(of, wanted)
}

// podsOf gives the pods of the ReplicaSet that aren't ending, and how many others still exist.
func (s Snapshot) podsOf(rs *appsv1.ReplicaSet) (ours []*corev1.Pod, others int) {
	for _, p := range s.Pods {
		if rs != nil && metav1.IsControlledBy(p, rs) && p.DeletionTimestamp == nil {
			ours = append(ours, p)
		} else {
			others++
		}
	}
	return ours, others
}

// serving counts the pods that the Service leads to: ours, and others.
func (s Snapshot) serving(pods []*corev1.Pod) (ours, others int) {
	ready := map[types.UID]bool{}
	for _, slice := range s.Slices {
		for _, e := range slice.Endpoints {
			c := e.Conditions
			if e.TargetRef != nil && isTrue(c.Ready, true) && !isTrue(c.Terminating, false) {
				ready[e.TargetRef.UID] = true
			}
		}
	}
	for _, p := range pods {
		if ready[p.UID] {
			ours++
		}
	}
	return ours, len(ready) - ours
}

func isTrue(b *bool, unknown bool) bool {
	if b == nil {
		return unknown
	}
	return *b
}

// digest is that of the image that the pods' runtime says it runs.
func digest(pods []*corev1.Pod) string {
	for _, p := range pods {
		for _, c := range p.Status.ContainerStatuses {
			if _, d, ok := strings.Cut(c.ImageID, "@"); ok && c.Name == manifests.Container {
				return d
			}
		}
	}
	return ""
}
