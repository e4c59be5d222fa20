package diagnose

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/pipeops/pipeops/domain"
)

// What the API server refuses before any pod is made.
var (
	invalid = advice{
		code: "OBJECT_INVALID", title: "Kubernetes doesn't accept the settings",
		reason: "The API server finds a value that can't be; the message names the field",
		fixes: []string{
			"Change the value that the message names in the service's settings",
			"A request can't be above its limit, and names of variables can't begin with a digit or hold spaces",
		},
		run: runProject, blames: true,
	}
	forbidden = advice{
		code: "CLUSTER_FORBIDDEN", title: "the deployer may not do this in the cluster",
		reason: "The deployer's account lacks a right",
		fixes:  []string{"Give the deployer's account the right that the message names", "See all that are missing: pipeops doctor"},
		run:    runDoctor,
	}
	terminating = advice{
		code: "NAMESPACE_TERMINATING", title: "the namespace is being deleted",
		reason: "Somebody deleted the namespace {namespace}, and Kubernetes is still at it",
		fixes: []string{
			"Wait until it is gone, and deploy again: it is made anew",
			"If it doesn't go, see what holds it: kubectl get namespace {namespace} -o yaml",
		},
		run: runDoctor,
	}
	conflict = advice{
		code: "FIELD_CONFLICT", title: "another field manager owns what PipeOps must set",
		reason: "Somebody else set these fields, which PipeOps never did before; it doesn't overwrite them",
		fixes: []string{
			"Let the other manager, which the message names, give the fields up",
			"Or remove the setting from the service in PipeOps, and leave it to the other",
		},
		run: runProject,
	}
	foreign = advice{
		code: "OBJECT_NOT_OURS", title: "an object of that name belongs to somebody else",
		reason: "The namespace {namespace} holds an object of that name which this service of PipeOps didn't make; it isn't taken over",
		fixes: []string{
			"Delete or rename the other object",
			"Or give the service another name",
		},
		run: runProject,
	}
	refused = advice{
		code: "CLUSTER_REFUSED", title: "the cluster refuses the objects",
		reason: "The API server refuses; the message says why",
		fixes:  []string{"Change what the message names", "Check the cluster"},
		run:    runDoctor,
	}
	paused = advice{
		code: "WORKLOAD_PAUSED", title: "the rollout is paused in the cluster",
		reason: "Somebody paused the Deployment, so Kubernetes doesn't roll out anything",
		fixes:  []string{"Resume it: kubectl rollout resume deployment/{service} -n {namespace}"},
		run:    runProject,
	}
	scaledToZero = advice{
		code: "SCALED_TO_ZERO", title: "the workload is scaled to zero",
		reason: "Another field manager keeps the number of replicas at zero, so nothing can serve",
		fixes: []string{
			"Scale it up: kubectl scale deployment/{service} -n {namespace} --replicas=1",
			"Or let the other manager, which the message names, give the field up",
		},
		run: runProject,
	}
)

// Refused explains why the API server refuses what shall be applied. Step is what was being done: "dry run", "apply".
func Refused(r domain.DeploymentRequested, step string, err error) domain.Diagnosis {
	return told(reasonOf(err), r, step, err)
}

// Invalid is the diagnosis of a setting that can't be put into an object.
func Invalid(r domain.DeploymentRequested, err error) domain.Diagnosis {
	return told(&invalid, r, "render", err)
}

// Foreign is the diagnosis of an object of our name that isn't this service's.
func Foreign(r domain.DeploymentRequested, err error) domain.Diagnosis {
	return told(&foreign, r, "apply", err)
}

// ScaledToZero is the diagnosis of replicas that somebody else keeps at zero.
func ScaledToZero(r domain.DeploymentRequested, err error) domain.Diagnosis {
	return told(&scaledToZero, r, "apply", err)
}

// Paused is the diagnosis of a workload that somebody paused.
func Paused(r domain.DeploymentRequested, err error) domain.Diagnosis {
	return told(&paused, r, Step, err)
}

func told(a *advice, r domain.DeploymentRequested, step string, err error) domain.Diagnosis {
	d := a.diagnosis(r, fact{message: message(err)})
	d.Step = step
	return d
}

func reasonOf(err error) *advice {
	text := strings.ToLower(err.Error())
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return &terminating
	case len(conflicts(err)) > 0:
		return &conflict
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return &invalid
	case strings.Contains(text, "failed calling webhook"):
		return &webhookDown
	case !apierrors.IsForbidden(err) && !strings.Contains(text, "admission webhook"):
		return &refused
	case strings.Contains(text, "exceeded quota"):
		return &quota
	case strings.Contains(text, "error looking up service account"):
		return &serviceAccount
	case strings.Contains(text, "cannot ") && strings.Contains(text, "in api group"):
		return &forbidden
	}
	return &policyRefused
}

// conflicts lists what a refused server-side apply names: who owns which field.
func conflicts(err error) []string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return nil
	}
	var out []string
	for _, c := range status.Status().Details.Causes {
		if c.Type == metav1.CauseTypeFieldManagerConflict {
			out = append(out, fmt.Sprintf("%s owns %s", strings.TrimPrefix(c.Message, "conflict with "), c.Field))
		}
	}
	return out
}

func message(err error) string {
	return cmp.Or(strings.Join(conflicts(err), "; "), err.Error())
}
