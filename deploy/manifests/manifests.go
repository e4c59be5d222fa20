// Package manifests receives a deployment's request and the apply step of its strategy from deploy, and hands back the
// Kubernetes objects as typed apply configurations; pure.
//
// The objects are total: every apply gives all fields that PipeOps owns, under one field manager, so that applying the
// same release again changes nothing and leaving a field out gives it back. Nothing in them depends on the attempt, on
// its epoch or on the time. Selectors and names of ids never change during a service's life, because Kubernetes refuses
// to change a selector.
//
//	objects, err := manifests.Render(request, request.Spec.Strategy.Steps(request.Spec.Replicas)[0])
package manifests

import (
	"fmt"

	appsac "k8s.io/client-go/applyconfigurations/apps/v1"
	coreac "k8s.io/client-go/applyconfigurations/core/v1"

	"github.com/pipeops/pipeops/domain"
)

// Manager is the field manager of everything that PipeOps applies.
const Manager = "pipeops"

// Labels of our objects. Those by id are what selectors use.
const (
	LabelManagedBy   = "app.kubernetes.io/managed-by" // = Manager
	LabelName        = "app.kubernetes.io/name"       // the service's name
	LabelInstance    = "app.kubernetes.io/instance"   // the environment's name
	LabelPartOf      = "app.kubernetes.io/part-of"    // the project's name
	LabelVersion     = "app.kubernetes.io/version"    // first 12 of the commit
	LabelProject     = "pipeops.dev/project"          // id
	LabelEnvironment = "pipeops.dev/environment"      // id
	LabelService     = "pipeops.dev/service"          // id
	LabelRelease     = "pipeops.dev/release"          // id; on the workload and its pods
	LabelDeployment  = "pipeops.dev/deployment"       // id; on the fence
)

// Container is the name of the container that runs the program, and Port the name of its port.
const (
	Container = "app"
	Port      = "http"
)

// ServicePort is where the Service answers.
const ServicePort = 80

// Objects are all objects of one service within the environment's namespace, in the order in which they are applied.
type Objects struct {
	Service  *coreac.ServiceApplyConfiguration
	Workload *appsac.DeploymentApplyConfiguration
}

// InvalidError says which setting can't be put into an object.
type InvalidError struct {
	Field string // of the service's settings: "memoryLimit"
	Value string
	Err   error
}

func (e *InvalidError) Error() string { return fmt.Sprintf("%s %q: %v", e.Field, e.Value, e.Err) }

// Unwrap gives the cause.
func (e *InvalidError) Unwrap() error { return e.Err }

// Render gives the objects that run r.Release with r.Spec. The step is the strategy's apply step, which says how many
// pods may be above or below the wanted number meanwhile. The error is an *InvalidError.
func Render(r domain.DeploymentRequested, apply domain.Step) (Objects, error) {
	w, err := workload(r, apply)
	if err != nil {
		return Objects{}, err
	}
	return Objects{Service: service(r), Workload: w}, nil
}

// Address is where the service answers within the cluster: "hello.hello-production-a1b2c3.svc:80".
func Address(r domain.DeploymentRequested) string {
	return fmt.Sprintf("%s.%s.svc:%d", r.ServiceName, r.Namespace, ServicePort)
}

// Labels are what every object of the service carries.
func Labels(r domain.DeploymentRequested) map[string]string {
	l := environmentLabels(r)
	l[LabelName] = r.ServiceName
	l[LabelService] = string(r.Service)
	return l
}

// Selector picks the pods of the service: ids only, because it can't be changed.
func Selector(r domain.DeploymentRequested) map[string]string {
	return map[string]string{
		LabelEnvironment: string(r.Environment),
		LabelService:     string(r.Service),
	}
}

func environmentLabels(r domain.DeploymentRequested) map[string]string {
	return map[string]string{
		LabelManagedBy:   Manager,
		LabelInstance:    r.EnvironmentName,
		LabelPartOf:      r.ProjectName,
		LabelProject:     string(r.Project),
		LabelEnvironment: string(r.Environment),
	}
}

func releaseLabels(r domain.DeploymentRequested) map[string]string {
	l := Labels(r)
	l[LabelVersion] = r.Release.Commit[:min(12, len(r.Release.Commit))]
	l[LabelRelease] = string(r.Release.ID)
	return l
}
