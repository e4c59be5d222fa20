package diagnose_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pipeops/pipeops/deploy/diagnose"
	"github.com/pipeops/pipeops/domain"
)

const image = "registry.example/acme/web@sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"

func request() domain.DeploymentRequested {
	return domain.DeploymentRequested{
		ProjectName: "hello", ServiceName: "web", Namespace: "hello-production-a1b2c3",
		Release: domain.Release{Image: image}, Spec: domain.DefaultSpec(),
	}
}

type change func(*corev1.Pod)

func pod(uid string, changes ...change) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web-" + uid, UID: types.UID(uid)}}
	p.Status.Phase = corev1.PodRunning
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app"}}
	for _, c := range changes {
		c(p)
	}
	return p
}

func waiting(reason, message string) change {
	return func(p *corev1.Pod) {
		p.Status.ContainerStatuses[0].State.Waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: message}
	}
}

// crash is a container that has ended exit+1 times and waits for its next start.
func crash(restarts, exit int32, reason, message string) change {
	return func(p *corev1.Pod) {
		waiting("CrashLoopBackOff", "back-off 20s restarting failed container")(p)
		s := &p.Status.ContainerStatuses[0]
		s.RestartCount = restarts
		s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: exit, Reason: reason, Message: message}
	}
}

func running(restarts int32) change {
	return func(p *corev1.Pod) {
		p.Status.ContainerStatuses[0].RestartCount = restarts
		p.Status.ContainerStatuses[0].State.Running = &corev1.ContainerStateRunning{}
	}
}

func condition(kind corev1.PodConditionType, status corev1.ConditionStatus, reason, message string) change {
	return func(p *corev1.Pod) {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: status, Reason: reason, Message: message})
	}
}

func unschedulable(message string) change {
	return func(p *corev1.Pod) {
		p.Status.Phase, p.Status.ContainerStatuses = corev1.PodPending, nil
		condition(corev1.PodScheduled, corev1.ConditionFalse, "Unschedulable", message)(p)
	}
}

func initCrash(p *corev1.Pod) {
	p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
		Name: "proxy", RestartCount: 3,
		State:                corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
		LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error"}},
	}}
	waiting("PodInitializing", "")(p)
}

func gated(p *corev1.Pod) {
	running(0)(p)
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "lb"}}
	condition(corev1.ContainersReady, corev1.ConditionTrue, "", "")(p)
	condition(corev1.PodReady, corev1.ConditionFalse, "ReadinessGatesNotReady", `corresponding condition of pod readiness gate "lb" does not exist.`)(p)
}

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func event(reason, message string) *corev1.Event {
	return &corev1.Event{
		InvolvedObject: corev1.ObjectReference{UID: "1"}, Reason: reason, Message: message, LastTimestamp: metav1.NewTime(start),
	}
}

func refusedBy(message string) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{UID: "rs"},
		Status: appsv1.ReplicaSetStatus{Conditions: []appsv1.ReplicaSetCondition{{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: message,
		}}},
	}
}

// blamed are the causes that lie in the image or its settings: the same release would fail again.
var blamed = []string{
	"IMAGE_NAME_INVALID", "IMAGE_PLATFORM", "RUNS_AS_ROOT", "NO_COMMAND", "EXEC_FORMAT", "NOT_EXECUTABLE", "START_COMMAND",
	"HEALTH_PATH_NOT_FOUND", "PORT_NOT_LISTENING", "HEALTH_CHECK_FAILED", "OUT_OF_MEMORY", "EXITED", "COMMAND_NOT_FOUND",
	"NATIVE_CRASH", "KILLED", "TERMINATED", "APP_CRASHED",
}

func TestEachSignatureIsToldFromTheOthersAndFinalInItsTime(t *testing.T) {
	t.Parallel()
	const (
		refused = `dial tcp 10.244.0.9:8080: connect: connection refused`
		pull    = `failed to pull and unpack image "` + image + `": failed to resolve reference "` + image + `": `
		never   = 0
	)
	startup := event("Unhealthy", `Startup probe failed: Get "http://10.244.0.9:8080/health": `+refused)
	startupKill := event("Killing", "Container app failed startup probe, will be restarted")
	livenessKill := event("Killing", "Container app failed liveness probe, will be restarted")
	for _, row := range []struct {
		name   string
		pod    *corev1.Pod
		set    *appsv1.ReplicaSet
		events []*corev1.Event
		code   string
		after  time.Duration // at which it is final, and not a second earlier; 0 = at the deadline only
	}{
		{name: "credentials wanted", pod: pod("1", waiting("ImagePullBackOff", pull+"401 Unauthorized")), code: "IMAGE_PULL_AUTH", after: 15 * time.Second},
		{name: "no such manifest", pod: pod("1", waiting("ErrImagePull", pull+image+": not found")), code: "IMAGE_NOT_FOUND", after: 15 * time.Second},
		{
			name: "older kubelets leave the pull's error out", pod: pod("1", waiting("ImagePullBackOff", "Back-off pulling image "+image)),
			events: []*corev1.Event{event("Failed", "Failed to pull image "+image+": manifest unknown")}, code: "IMAGE_NOT_FOUND", after: 15 * time.Second,
		},
		{name: "hub hides a missing repository", pod: pod("1", waiting("ErrImagePull", "pull access denied, repository does not exist or may require authorization")), code: "IMAGE_NOT_FOUND", after: 15 * time.Second},
		{name: "platform before not found", pod: pod("1", waiting("ErrImagePull", pull+"no match for platform in manifest: not found")), code: "IMAGE_PLATFORM", after: time.Nanosecond},
		{name: "registry's certificate", pod: pod("1", waiting("ErrImagePull", pull+"tls: failed to verify certificate: x509: certificate signed by unknown authority")), code: "REGISTRY_TLS", after: 15 * time.Second},
		{name: "registry's rate limit", pod: pod("1", waiting("ErrImagePull", pull+"429 Too Many Requests")), code: "REGISTRY_RATE_LIMIT", after: never},
		{name: "registry away", pod: pod("1", waiting("ErrImagePull", pull+"dial tcp: lookup registry.example: no such host")), code: "REGISTRY_UNREACHABLE", after: never},
		{name: "pull error that nobody knows", pod: pod("1", waiting("ErrImagePull", "something odd")), code: "IMAGE_PULL", after: never},
		{name: "image name", pod: pod("1", waiting("InvalidImageName", "couldn't parse image name")), code: "IMAGE_NAME_INVALID", after: time.Nanosecond},
		{name: "never pull", pod: pod("1", waiting("ErrImageNeverPull", "not present with pull policy of Never")), code: "IMAGE_NEVER_PULLED", after: time.Nanosecond},
		{name: "signature", pod: pod("1", waiting("SignatureValidationFailed", "no signature")), code: "IMAGE_SIGNATURE", after: time.Nanosecond},
		{name: "image store", pod: pod("1", waiting("ImageInspectError", "inspect")), code: "IMAGE_STORE_BROKEN", after: 2 * time.Minute},
		{name: "slow pull", pod: pod("1", waiting("ContainerCreating", "")), events: []*corev1.Event{event("Pulling", "Pulling image")}, code: "IMAGE_PULL_SLOW", after: never},
		{name: "secret missing", pod: pod("1", waiting("CreateContainerConfigError", `secret "db" not found`)), code: "CONFIG_MISSING", after: time.Minute},
		{name: "root forbidden", pod: pod("1", waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")), code: "RUNS_AS_ROOT", after: 10 * time.Second},
		{name: "no command", pod: pod("1", waiting("CreateContainerError", "no command specified")), code: "NO_COMMAND", after: time.Nanosecond},
		{name: "runtime overloaded", pod: pod("1", waiting("CreateContainerError", "context deadline exceeded")), code: "CONTAINER_REFUSED", after: 2 * time.Minute},
		{name: "start command", pod: pod("1", crash(1, 128, "StartError", `exec: "/nope": stat /nope: no such file or directory`)), code: "START_COMMAND", after: time.Nanosecond},
		{name: "start command, first time", pod: pod("1", crash(0, 128, "StartError", `exec: "/nope": stat /nope: no such file or directory`)), code: "START_COMMAND", after: never},
		{name: "not executable for the runtime", pod: pod("1", crash(1, 128, "StartError", `exec: "/app": permission denied`)), code: "NOT_EXECUTABLE", after: time.Nanosecond},
		{name: "not executable for the shell", pod: pod("1", crash(2, 126, "Error", "")), code: "NOT_EXECUTABLE", after: time.Nanosecond},
		{name: "command not found", pod: pod("1", crash(2, 127, "Error", "")), code: "COMMAND_NOT_FOUND", after: time.Nanosecond},
		{name: "other CPU", pod: pod("1", crash(2, 255, "Error", "exec /app: exec format error")), code: "EXEC_FORMAT", after: time.Nanosecond},
		{name: "ends by itself", pod: pod("1", crash(3, 0, "Completed", "")), code: "EXITED", after: time.Nanosecond},
		{name: "application error", pod: pod("1", crash(3, 1, "Error", "panic: no database")), code: "APP_CRASHED", after: time.Nanosecond},
		{name: "application error, twice restarted", pod: pod("1", crash(2, 1, "Error", "")), code: "APP_CRASHED", after: never},
		{name: "memory", pod: pod("1", crash(1, 137, "OOMKilled", "")), code: "OUT_OF_MEMORY", after: time.Nanosecond},
		{name: "SIGKILL", pod: pod("1", crash(3, 137, "Error", "")), code: "KILLED", after: time.Nanosecond},
		{name: "native crash", pod: pod("1", crash(3, 139, "Error", "")), code: "NATIVE_CRASH", after: time.Nanosecond},
		{name: "SIGTERM", pod: pod("1", crash(9, 143, "Error", "")), code: "TERMINATED", after: never},
		{name: "no room", pod: pod("1", unschedulable("0/1 nodes are available: 1 Insufficient cpu.")), code: "INSUFFICIENT_RESOURCES", after: time.Minute},
		{
			name: "no room, but the autoscaler is at it", pod: pod("1", unschedulable("0/1 nodes are available: 1 Insufficient cpu.")),
			events: []*corev1.Event{event("TriggeredScaleUp", "pod triggered scale-up")}, code: "INSUFFICIENT_RESOURCES", after: 5 * time.Minute,
		},
		{name: "tainted", pod: pod("1", unschedulable("0/1 nodes are available: 1 node(s) had untolerated taint(s).")), code: "NO_NODE_ALLOWED", after: time.Minute},
		{name: "no volume", pod: pod("1", unschedulable("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.")), code: "VOLUME_UNBOUND", after: 2 * time.Minute},
		{name: "scheduler's own words", pod: pod("1", unschedulable("something odd")), code: "UNSCHEDULABLE", after: time.Minute},
		{name: "startup window over, nobody listens", pod: pod("1", running(0)), events: []*corev1.Event{startup, startupKill}, code: "PORT_NOT_LISTENING", after: time.Nanosecond},
		{name: "startup window not over", pod: pod("1", running(0)), events: []*corev1.Event{startup}, code: "PORT_NOT_LISTENING", after: never},
		{
			name: "probe's kill before the exit code", pod: pod("1", crash(1, 137, "Error", "")),
			events: []*corev1.Event{startup, startupKill}, code: "PORT_NOT_LISTENING", after: time.Nanosecond,
		},
		{
			name: "third liveness kill", pod: pod("1", running(3)),
			events: []*corev1.Event{event("Unhealthy", "Liveness probe failed: "+refused), livenessKill}, code: "PORT_NOT_LISTENING", after: time.Nanosecond,
		},
		{name: "404", pod: pod("1", running(0)), events: []*corev1.Event{event("Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 404")}, code: "HEALTH_PATH_NOT_FOUND", after: 30 * time.Second},
		{name: "500", pod: pod("1", running(0)), events: []*corev1.Event{event("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500")}, code: "HEALTH_CHECK_FAILED", after: never},
		{
			name: "500 until the startup window is over", pod: pod("1", running(0)),
			events: []*corev1.Event{event("Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 500"), startupKill}, code: "HEALTH_CHECK_FAILED", after: time.Nanosecond,
		},
		{name: "mount, missing object", pod: pod("1", waiting("ContainerCreating", "")), events: []*corev1.Event{event("FailedMount", `secret "x" not found`)}, code: "VOLUME_MOUNT", after: 30 * time.Second},
		{name: "mount, attached elsewhere", pod: pod("1", waiting("ContainerCreating", "")), events: []*corev1.Event{event("FailedAttachVolume", "Multi-Attach error")}, code: "VOLUME_MOUNT", after: 6 * time.Minute},
		{name: "network", pod: pod("1", waiting("ContainerCreating", "")), events: []*corev1.Event{event("FailedCreatePodSandBox", "no IP addresses available")}, code: "POD_NETWORK", after: 3 * time.Minute},
		{name: "quota", set: refusedBy(`pods "web-1" is forbidden: exceeded quota: q, requested: pods=1`), code: "QUOTA_EXCEEDED", after: time.Minute},
		{name: "policy", set: refusedBy(`pods "web-1" is forbidden: violates PodSecurity "restricted:latest"`), code: "POLICY_REFUSED", after: 10 * time.Second},
		{name: "service account", set: refusedBy(`error looking up service account ns/default: serviceaccount "default" not found`), code: "SERVICE_ACCOUNT_MISSING", after: 15 * time.Second},
		{name: "webhook", set: refusedBy(`failed calling webhook "p.example": no endpoints`), code: "ADMISSION_UNREACHABLE", after: 2 * time.Minute},
		{name: "any other refusal", set: refusedBy(`something odd`), code: "PODS_REFUSED", after: 30 * time.Second},
		{name: "disruption", pod: pod("1", condition(corev1.DisruptionTarget, corev1.ConditionTrue, "EvictionByEvictionAPI", "evicted"), crash(9, 1, "Error", "")), code: "NODE_PROBLEM", after: never},
		{name: "eviction", pod: pod("1", func(p *corev1.Pod) { p.Status.Reason = "Evicted" }), code: "NODE_PROBLEM", after: never},
		{name: "readiness gate", pod: pod("1", gated), code: "READINESS_GATE", after: never},
		{name: "init container", pod: pod("1", initCrash), code: "APP_CRASHED", after: time.Nanosecond},
		{name: "state that nobody knows", pod: pod("1", waiting("PostStartHookError", "hook")), code: "CONTAINER_NOT_STARTED", after: never},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			e := diagnose.Evidence{ReplicaSet: row.set, Events: row.events, Now: start}
			if row.pod != nil {
				e.Pods = []*corev1.Pod{row.pod}
			}
			x := diagnose.NewExaminer(request())
			first := x.Examine(e)
			if first.Diagnosis.Code != row.code {
				t.Fatalf("got %s (%s), want %s", first.Diagnosis.Code, first.Message, row.code)
			}
			if first.Message == "" || first.Diagnosis.Error == "" || len(first.Diagnosis.Fixes) == 0 || strings.ContainsAny(fmt.Sprint(first.Diagnosis), "{}") {
				t.Errorf("diagnosis isn't whole: %+v", first.Diagnosis)
			}
			if got := first.Diagnosis.ReleaseAtFault; got != slices.Contains(blamed, row.code) {
				t.Errorf("the release is at fault: %v", got)
			}
			if got := first.Final; got != (row.after == time.Nanosecond) {
				t.Errorf("at once: final is %v", got)
			}
			e.Now = start.Add(row.after - time.Second)
			if row.after > time.Second && x.Examine(e).Final {
				t.Errorf("after %s: final too early", row.after-time.Second)
			}
			e.Now = start.Add(max(row.after, time.Nanosecond))
			if row.after == never {
				e.Now = start.Add(time.Hour)
			}
			if got, want := x.Examine(e).Final, row.after != never; got != want {
				t.Errorf("in the end: final is %v, want %v", got, want)
			}
			if v := x.Overdue(e, "1 of 2 pods"); !v.Final || v.Diagnosis.Code != row.code {
				t.Errorf("at the deadline: got %s, final %v", v.Diagnosis.Code, v.Final)
			}
		})
	}
}

func ok(p *corev1.Pod) {
	running(0)(p)
	condition(corev1.PodReady, corev1.ConditionTrue, "", "")(p)
}

func TestOneBadPodAmongOthersThatStillStartIsntFinal(t *testing.T) {
	t.Parallel()
	bad, starting, other := pod("1", crash(3, 1, "Error", "")), pod("2", running(0)), pod("3", crash(4, 1, "Error", ""))
	x := diagnose.NewExaminer(request())
	if v := x.Examine(diagnose.Evidence{Pods: []*corev1.Pod{bad, starting, pod("4", ok)}, Now: start}); v.Final || v.Message == "" {
		t.Errorf("one of two that aren't ready: got final %v, message %q", v.Final, v.Message)
	}
	if v := x.Examine(diagnose.Evidence{Pods: []*corev1.Pod{bad, starting, other}, Now: start}); !v.Final {
		t.Error("two of three with the same cause: want final")
	}
	if v := x.Examine(diagnose.Evidence{Pods: []*corev1.Pod{bad, pod("4", ok)}, Now: start}); !v.Final {
		t.Error("all that aren't ready: want final")
	}
}

func TestPodsThatEndOrAreReadyAreNotBlamed(t *testing.T) {
	t.Parallel()
	ending := pod("1", crash(9, 1, "Error", ""))
	ending.DeletionTimestamp = &metav1.Time{Time: start}
	v := diagnose.NewExaminer(request()).Examine(diagnose.Evidence{Pods: []*corev1.Pod{ending, pod("2", ok)}, Now: start})
	if v.Diagnosis.Code != "" || v.Message != "" || v.Final {
		t.Errorf("got %+v, want nothing", v)
	}
}

func TestALostNodeDoesntHideTheReleasesOwnFault(t *testing.T) {
	t.Parallel()
	evicted := pod("1", func(p *corev1.Pod) { p.Status.Reason = "Evicted" })
	v := diagnose.NewExaminer(request()).Examine(diagnose.Evidence{Pods: []*corev1.Pod{evicted, pod("2", crash(3, 1, "Error", ""))}, Now: start})
	if v.Diagnosis.Code != "APP_CRASHED" || !v.Final {
		t.Errorf("got %s, final %v; want APP_CRASHED, final", v.Diagnosis.Code, v.Final)
	}
}

func TestACrashNamesTheLogOfTheRunThatEnded(t *testing.T) {
	t.Parallel()
	v := diagnose.NewExaminer(request()).Examine(diagnose.Evidence{Pods: []*corev1.Pod{pod("1", crash(3, 2, "Error", "kept"))}, Now: start})
	if v.Log == nil || *v.Log != (diagnose.Log{Pod: "web-1", Container: "app", Previous: true, Kept: "kept"}) {
		t.Errorf("got %+v", v.Log)
	}
	if want := "container app ended 4 times, at last with exit code 2 (Error)"; v.Diagnosis.Error != want {
		t.Errorf("got %q, want %q", v.Diagnosis.Error, want)
	}
}

func TestAnImageErrorNamesTheImage(t *testing.T) {
	t.Parallel()
	v := diagnose.NewExaminer(request()).Examine(diagnose.Evidence{Pods: []*corev1.Pod{pod("1", waiting("ErrImagePull", "manifest unknown"))}, Now: start})
	if want := fmt.Sprintf("image %q: manifest unknown", image); v.Diagnosis.Error != want {
		t.Errorf("got %q, want %q", v.Diagnosis.Error, want)
	}
}

func TestNothingSeenAtTheDeadlineSaysHowFarItCame(t *testing.T) {
	t.Parallel()
	v := diagnose.NewExaminer(request()).Overdue(diagnose.Evidence{Now: start}, "1 of 2 pods available")
	if v.Diagnosis.Code != "ROLLOUT_TIMEOUT" || v.Diagnosis.Error != "1 of 2 pods available" {
		t.Errorf("got %+v", v.Diagnosis)
	}
}

func TestTailIsShortAndPrintable(t *testing.T) {
	t.Parallel()
	lines := diagnose.Tail(strings.Repeat("line\n", 50) + "\x1b[31mred\x00 end\n")
	if len(lines) != 20 || lines[19] != "[31mred end" {
		t.Errorf("got %d lines, the last is %q", len(lines), lines[len(lines)-1])
	}
	if got := diagnose.Tail(strings.Repeat("x", 10<<10)); len(got) != 1 || len(got[0]) != 4<<10 {
		t.Errorf("got %d lines", len(got))
	}
	if got := diagnose.Tail(""); got != nil {
		t.Errorf("got %q for no output", got)
	}
}
