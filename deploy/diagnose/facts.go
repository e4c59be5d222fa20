package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// where says which part of the cluster states a fact.
type where int

const (
	node     where = 1 << iota // the pod's node, or what took the pod off it
	creation                   // the ReplicaSet: pods can't be created
	schedule                   // the scheduler
	sandbox                    // the node's network and volumes
	pulling                    // the node pulls the image
	waits                      // a container that can't start
	ended                      // a container that ended
	probed                     // a probe fails
	killed                     // a probe failed so often that the container is restarted
	gated                      // ready but for somebody else's word
)

// fact is one thing that is wrong, as the cluster says it.
type fact struct {
	where     where
	container string
	init      bool
	reason    string // Kubernetes' word
	message   string // the tool's own words
	exit      int32
	restarts  int32
	running   bool // after all: it was started again
	log       *Log
}

// text is the fact for people.
func (f fact) text() string {
	if f.where != ended {
		return cmp.Or(strings.TrimSpace(f.message), f.reason)
	}
	runs := "once"
	if f.restarts > 0 {
		runs = fmt.Sprintf("%d times", f.restarts+1)
	}
	s := fmt.Sprintf("container %s ended %s, at last with exit code %d (%s)", f.container, runs, f.exit, f.reason)
	if f.reason == "StartError" || f.reason == "ContainerCannotRun" { // then the message is the runtime's, else the program's output
		s += ": " + strings.TrimSpace(f.message)
	}
	return s
}

func ready(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodRunning && condition(p, corev1.PodReady).Status == corev1.ConditionTrue
}

func condition(p *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

func createFacts(rs *appsv1.ReplicaSet) []fact {
	for _, c := range rs.Status.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue && c.Reason == "FailedCreate" {
			return []fact{{where: creation, reason: c.Reason, message: c.Message}}
		}
	}
	return nil
}

// lostReasons are what pods of nodes in trouble say. "OutOf" + a resource: the node was full after all.
var lostReasons = []string{"NodeLost", "Evicted", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity", "UnexpectedAdmissionError", "OutOfcpu", "OutOfmemory", "OutOfpods"}

func podFacts(p *corev1.Pod, events []*corev1.Event) []fact {
	var out []fact
	if c := condition(p, corev1.DisruptionTarget); c.Status == corev1.ConditionTrue {
		out = append(out, fact{where: node, reason: c.Reason, message: c.Message})
	}
	if slices.Contains(lostReasons, p.Status.Reason) {
		out = append(out, fact{where: node, reason: p.Status.Reason, message: p.Status.Message})
	}
	if c := condition(p, corev1.PodScheduled); c.Status == corev1.ConditionFalse {
		f := fact{where: schedule, reason: c.Reason, message: c.Message}
		if last(events, "TriggeredScaleUp") != nil {
			f.reason = "TriggeredScaleUp"
		}
		out = append(out, f)
	}
	for _, s := range p.Status.InitContainerStatuses {
		out = append(out, containerFacts(p, s, true, events)...)
	}
	for _, s := range p.Status.ContainerStatuses {
		out = append(out, containerFacts(p, s, false, events)...)
	}
	if len(p.Spec.ReadinessGates) > 0 && condition(p, corev1.ContainersReady).Status == corev1.ConditionTrue {
		c := condition(p, corev1.PodReady)
		out = append(out, fact{where: gated, reason: c.Reason, message: c.Message})
	}
	return out
}

func containerFacts(p *corev1.Pod, s corev1.ContainerStatus, init bool, events []*corev1.Event) []fact {
	base := fact{container: s.Name, init: init, restarts: s.RestartCount, running: s.State.Running != nil}
	var out []fact
	add := func(w where, reason, message string) {
		f := base
		f.where, f.reason, f.message = w, reason, message
		out = append(out, f)
	}
	if w := s.State.Waiting; w != nil {
		switch w.Reason {
		case "", "ContainerCreating", "PodInitializing":
			out = append(out, creatingFacts(base, events)...)
		case "CrashLoopBackOff": // the ended run says why
		default:
			add(waits, w.Reason, w.Message+pullError(w, events))
		}
	}
	if t, previous := endedRun(s); t != nil && (!init || t.ExitCode != 0) {
		f := base
		f.where, f.reason, f.message, f.exit = ended, t.Reason, t.Message, t.ExitCode
		f.log = &Log{Pod: p.Name, Container: s.Name, Previous: previous, Kept: t.Message}
		out = append(out, f)
	}
	if !s.Ready && !init {
		base.log = &Log{Pod: p.Name, Container: s.Name, Previous: s.State.Running == nil && s.LastTerminationState.Terminated != nil}
		out = append(out, probeFacts(base, events)...)
	}
	return out
}

// endedRun is the last run that ended, and whether it counts as the one before the current.
func endedRun(s corev1.ContainerStatus) (t *corev1.ContainerStateTerminated, previous bool) {
	if s.State.Terminated != nil {
		return s.State.Terminated, false
	}
	return s.LastTerminationState.Terminated, true
}

func creatingFacts(base fact, events []*corev1.Event) []fact {
	var out []fact
	for _, reason := range []string{"FailedCreatePodSandBox", "NetworkNotReady", "FailedMount", "FailedAttachVolume"} {
		if e := last(events, reason); e != nil {
			f := base
			f.where, f.reason, f.message = sandbox, reason, e.Message
			out = append(out, f)
		}
	}
	if e := last(events, "Pulling"); e != nil && !isAfter(last(events, "Pulled"), e) {
		f := base
		f.where, f.reason, f.message = pulling, "Pulling", e.Message
		out = append(out, f)
	}
	return out
}

// pullError adds what the pull said: older kubelets leave it out while they back off.
func pullError(w *corev1.ContainerStateWaiting, events []*corev1.Event) string {
	if w.Reason != "ImagePullBackOff" || strings.Contains(w.Message, "ErrImagePull") {
		return ""
	}
	for _, e := range slices.Backward(events) {
		if e.Reason == "Failed" && strings.HasPrefix(e.Message, "Failed to pull image") {
			return ": " + e.Message
		}
	}
	return ""
}

// probeFacts reads "Startup probe failed: …" and "Container app failed startup probe, will be restarted".
func probeFacts(base fact, events []*corev1.Event) []fact {
	var out []fact
	for _, probe := range []string{"Startup", "Liveness", "Readiness"} {
		var failed, kill *corev1.Event
		for _, e := range events {
			switch {
			case e.Reason == "Unhealthy" && strings.HasPrefix(e.Message, probe+" probe "):
				failed = e
			case e.Reason == "Killing" && strings.Contains(e.Message, "failed "+strings.ToLower(probe)+" probe"):
				kill = e
			}
		}
		if failed == nil {
			continue
		}
		f := base
		f.where, f.reason, f.message = probed, probe, failed.Message
		if kill != nil {
			f.where = killed
		}
		out = append(out, f)
	}
	return out
}

func eventsOf(all []*corev1.Event, uid string) []*corev1.Event {
	var out []*corev1.Event
	for _, e := range all {
		if string(e.InvolvedObject.UID) == uid {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b *corev1.Event) int { return lastTime(a).Compare(lastTime(b)) })
	return out
}

// last is the newest event of that reason; events are in order.
func last(events []*corev1.Event, reason string) *corev1.Event {
	for _, e := range slices.Backward(events) {
		if e.Reason == reason {
			return e
		}
	}
	return nil
}

func isAfter(a, b *corev1.Event) bool { return a != nil && !lastTime(a).Before(lastTime(b)) }

func lastTime(e *corev1.Event) time.Time {
	switch {
	case e.Series != nil:
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	}
	return e.EventTime.Time
}
