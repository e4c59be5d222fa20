package deploy

import (
	"context"
	"fmt"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"

	"github.com/pipeops/pipeops/domain"
)

// oldest is the oldest Kubernetes that has what the objects use: containers' own sleep before they end.
const oldest = "1.30"

// rights are what the deployer does in a cluster, and why.
var rights = []struct{ verbs, group, resource, why string }{
	{"get create patch", "", "namespaces", "make an environment's namespace"},
	{"get create update", "", "configmaps", "keep the fence between deployers"},
	{"get", "", "serviceaccounts", "know when a new namespace is ready"},
	{"get create patch", "", "services", "apply services"},
	{"get list watch create patch", "apps", "deployments", "apply workloads and follow them"},
	{"list watch", "apps", "replicasets", "follow rollouts"},
	{"list watch create", "", "pods", "follow rollouts, and try a pod as a dry run"},
	{"get", "", "pods/log", "show a crashing program's last lines"},
	{"list", "", "events", "explain what fails"},
	{"list watch", "discovery.k8s.io", "endpointslices", "know which pods serve"},
}

// Doctor tells what keeps the deployer from working with a cluster: whether it can be reached, is new enough, and
// allows what the deployer does. Nil means that all is well. An empty kubeconfig stands for the pod's own account.
func Doctor(ctx context.Context, kubeconfig string) []domain.Diagnosis {
	c, err := connect(kubeconfig)
	if err != nil {
		return []domain.Diagnosis{unreachable("no cluster is configured", err)}
	}
	client, _, err := clients(c)
	if err != nil {
		return []domain.Diagnosis{unreachable("no cluster is configured", err)}
	}
	server, err := discovery.ToServerVersionInterfaceWithContext(client.Discovery()).ServerVersionWithContext(ctx)
	if err != nil {
		return []domain.Diagnosis{unreachable("the cluster can't be reached", err)}
	}
	var out []domain.Diagnosis
	if v, err := version.ParseGeneric(server.GitVersion); err != nil || !v.AtLeast(version.MustParseGeneric(oldest)) {
		out = append(out, domain.Diagnosis{
			Code: "CLUSTER_TOO_OLD", Title: "Cluster check failed: Kubernetes is too old", Step: "version",
			Error:  "the API server says " + server.GitVersion,
			Reason: "PipeOps needs Kubernetes " + oldest + " or newer",
			Fixes:  []string{"Update the cluster", "Use another cluster: set KUBECONFIG"},
		})
	}
	missing, err := missingRights(ctx, client)
	if err != nil {
		return append(out, unreachable("the cluster doesn't say what is allowed", err))
	}
	if len(missing) > 0 {
		out = append(out, domain.Diagnosis{
			Code: "CLUSTER_FORBIDDEN", Title: "Cluster check failed: rights are missing", Step: "rights",
			Error:  strings.Join(missing, "; "),
			Reason: "The deployer's account may not do all that deployments need, in all namespaces",
			Fixes:  []string{"Give the account a ClusterRole with the verbs above", "Use an account that has them: set KUBECONFIG"},
			Run:    "kubectl auth can-i --list",
		})
	}
	return out
}

func unreachable(what string, err error) domain.Diagnosis {
	return domain.Diagnosis{
		Code: "CLUSTER_UNREACHABLE", Title: "Cluster check failed: " + what, Step: "connect",
		Error:  err.Error(),
		Reason: "Without a cluster PipeOps builds and pushes images, but can't deploy them",
		Fixes: []string{
			"Set KUBECONFIG to the file of your cluster",
			"Check that the cluster runs and that this machine reaches it: kubectl version",
			"Start the local one: pipeops up --with-local-cluster",
		},
		Run: "pipeops doctor",
	}
}

// missingRights asks for every verb, in all namespaces.
func missingRights(ctx context.Context, client kubernetes.Interface) ([]string, error) {
	var out []string
	for _, r := range rights {
		resource, sub, _ := strings.Cut(r.resource, "/")
		for verb := range strings.FieldsSeq(r.verbs) {
			review, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: verb, Group: r.group, Resource: resource, Subresource: sub,
				}},
			}, metav1.CreateOptions{})
			if err != nil {
				return nil, fmt.Errorf("ask whether %s %s is allowed: %w", verb, r.resource, err)
			}
			if !review.Status.Allowed {
				out = append(out, fmt.Sprintf("can't %s %s (to %s)", verb, r.resource, r.why))
			}
		}
	}
	return out, nil
}
