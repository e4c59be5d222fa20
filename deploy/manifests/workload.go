package manifests

import (
	"errors"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	appsac "k8s.io/client-go/applyconfigurations/apps/v1"
	coreac "k8s.io/client-go/applyconfigurations/core/v1"
	metaac "k8s.io/client-go/applyconfigurations/meta/v1"

	"github.com/pipeops/pipeops/domain"
)

const (
	// keptReplicaSets is for people who look; our own rollback renders from the log.
	keptReplicaSets = 3
	// drainSeconds is how long an ending pod goes on serving, until every node has taken it out of the Service.
	drainSeconds = 5
	// graceSeconds is how long it may take to end in all.
	graceSeconds = 30
	// deadlineSlack keeps Kubernetes' own deadline behind ours: the verdict is PipeOps'.
	deadlineSlack = 60
)

func workload(r domain.DeploymentRequested, apply domain.Step) (*appsac.DeploymentApplyConfiguration, error) {
	c, err := container(r)
	if err != nil {
		return nil, err
	}
	s := r.Spec.Strategy
	return appsac.Deployment(r.ServiceName, r.Namespace).
		WithLabels(releaseLabels(r)).
		WithSpec(appsac.DeploymentSpec().
			WithReplicas(small(r.Spec.Replicas)).
			WithSelector(metaac.LabelSelector().WithMatchLabels(Selector(r))).
			WithStrategy(appsac.DeploymentStrategy().
				WithType(appsv1.RollingUpdateDeploymentStrategyType).
				WithRollingUpdate(appsac.RollingUpdateDeployment().
					WithMaxSurge(intstr.FromInt32(small(apply.MaxSurge))).
					WithMaxUnavailable(intstr.FromInt32(small(apply.MaxUnavailable))))).
			WithMinReadySeconds(small(s.MinReady)).
			WithProgressDeadlineSeconds(small(s.Deadline + s.MinReady + deadlineSlack)).
			WithRevisionHistoryLimit(keptReplicaSets).
			WithTemplate(coreac.PodTemplateSpec().
				WithLabels(releaseLabels(r)).
				WithSpec(coreac.PodSpec().
					WithAutomountServiceAccountToken(false).
					WithEnableServiceLinks(false). // else neighbours' addresses appear as variables, and collide with PORT
					WithTerminationGracePeriodSeconds(graceSeconds).
					WithSecurityContext(coreac.PodSecurityContext().
						WithSeccompProfile(coreac.SeccompProfile().WithType(corev1.SeccompProfileTypeRuntimeDefault))).
					WithContainers(c)))), nil
}

func container(r domain.DeploymentRequested) (*coreac.ContainerApplyConfiguration, error) {
	if !strings.Contains(r.Release.Image, "@sha256:") {
		return nil, &InvalidError{Field: "image", Value: r.Release.Image, Err: errors.New("want a reference by digest, for example ghcr.io/acme/shop@sha256:…")}
	}
	resources, err := resources(r.Spec)
	if err != nil {
		return nil, err
	}
	h := r.Spec.Health
	c := coreac.Container().
		WithName(Container).
		WithImage(r.Release.Image).
		WithImagePullPolicy(corev1.PullIfNotPresent).
		WithEnv(variables(r)...).
		WithPorts(coreac.ContainerPort().
			WithName(Port).
			WithProtocol(corev1.ProtocolTCP).
			WithContainerPort(small(r.Spec.Port))).
		WithStartupProbe(probe(h.Path, h.Startup)).
		WithReadinessProbe(probe(h.Path, h.Readiness)).
		WithLivenessProbe(probe(h.Path, h.Liveness)).
		WithLifecycle(coreac.Lifecycle().
			WithPreStop(coreac.LifecycleHandler().WithSleep(coreac.SleepAction().WithSeconds(drainSeconds)))).
		WithTerminationMessagePolicy(corev1.TerminationMessageFallbackToLogsOnError).
		WithSecurityContext(coreac.SecurityContext().WithAllowPrivilegeEscalation(false)).
		WithResources(resources)
	for _, word := range r.Spec.Command {
		c.WithCommand(literal(word))
	}
	return c, nil
}

func probe(path string, p domain.Probe) *coreac.ProbeApplyConfiguration {
	out := coreac.Probe().
		WithHTTPGet(coreac.HTTPGetAction().WithPath(path).WithPort(intstr.FromString(Port))).
		WithPeriodSeconds(small(p.Period)).
		WithTimeoutSeconds(small(p.Timeout)).
		WithFailureThreshold(small(p.Failures))
	if p.InitialDelay > 0 { // the server drops zeros; to own a field that isn't there would look like drift
		out.WithInitialDelaySeconds(small(p.InitialDelay))
	}
	return out
}

// small fits a number into Kubernetes' own type; what is beyond it is refused there anyway, as out of range.
func small[T ~int | ~int64](n T) int32 {
	if n > math.MaxInt32 || n < math.MinInt32 {
		return math.MaxInt32
	}
	return int32(n)
}

// variables are the user's and ours, which win, sorted by name.
func variables(r domain.DeploymentRequested) []*coreac.EnvVarApplyConfiguration {
	all := map[string]string{}
	maps.Copy(all, r.Spec.Variables)
	all["PORT"] = strconv.Itoa(r.Spec.Port)
	all["PIPEOPS_COMMIT"] = r.Release.Commit
	all["PIPEOPS_RELEASE"] = string(r.Release.ID)
	var out []*coreac.EnvVarApplyConfiguration
	for _, name := range slices.Sorted(maps.Keys(all)) {
		v := coreac.EnvVar().WithName(name)
		if all[name] != "" {
			v.WithValue(literal(all[name]))
		}
		out = append(out, v)
	}
	return out
}

// literal keeps Kubernetes from reading $(NAME) and $$ in what shall reach the program as it stands.
func literal(s string) string { return strings.ReplaceAll(s, "$", "$$") }

func resources(s domain.ServiceSpec) (*coreac.ResourceRequirementsApplyConfiguration, error) {
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	for _, q := range []struct {
		field, value string
		name         corev1.ResourceName
		into         corev1.ResourceList
	}{
		{"cpuRequest", s.CPURequest, corev1.ResourceCPU, requests},
		{"memoryRequest", s.MemoryRequest, corev1.ResourceMemory, requests},
		{"cpuLimit", s.CPULimit, corev1.ResourceCPU, limits},
		{"memoryLimit", s.MemoryLimit, corev1.ResourceMemory, limits},
	} {
		if q.value == "" {
			continue
		}
		amount, err := resource.ParseQuantity(q.value)
		if err != nil {
			return nil, &InvalidError{Field: q.field, Value: q.value, Err: err}
		}
		q.into[q.name] = amount
	}
	out := coreac.ResourceRequirements()
	if len(requests) > 0 {
		out.WithRequests(requests)
	}
	if len(limits) > 0 {
		out.WithLimits(limits)
	}
	return out, nil
}
