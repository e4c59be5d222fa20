package manifests

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	coreac "k8s.io/client-go/applyconfigurations/core/v1"

	"github.com/pipeops/pipeops/domain"
)

// Namespace is the environment's.
func Namespace(r domain.DeploymentRequested) *coreac.NamespaceApplyConfiguration {
	return coreac.Namespace(r.Namespace).WithLabels(environmentLabels(r))
}

// service leads to the container's port by name, so that each pod of a rollout is asked on the port that its own
// release listens on.
func service(r domain.DeploymentRequested) *coreac.ServiceApplyConfiguration {
	return coreac.Service(r.ServiceName, r.Namespace).
		WithLabels(Labels(r)).
		WithSpec(coreac.ServiceSpec().
			WithSelector(Selector(r)).
			WithPorts(coreac.ServicePort().
				WithName(Port).
				WithProtocol(corev1.ProtocolTCP).
				WithPort(ServicePort).
				WithTargetPort(intstr.FromString(Port))))
}
