package diagnose_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/pipeops/pipeops/deploy/diagnose"
	"github.com/pipeops/pipeops/domain"
)

func TestEachRefusalOfTheServerHasItsDiagnosis(t *testing.T) {
	t.Parallel()
	pods := schema.GroupResource{Resource: "pods"}
	ending := apierrors.NewForbidden(pods, "web", errors.New("unable to create new content in namespace x because it is being terminated"))
	ending.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause, Message: "being terminated", Field: "metadata.namespace"}}
	for _, row := range []struct {
		name       string
		err        error
		code, says string
	}{
		{"invalid value", apierrors.NewInvalid(schema.GroupKind{Kind: "Deployment"}, "web", field.ErrorList{field.Invalid(field.NewPath("spec", "x"), "y", "no")}), "OBJECT_INVALID", "spec.x"},
		{"quota", apierrors.NewForbidden(pods, "web", errors.New("exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1")), "QUOTA_EXCEEDED", "limited: pods=1"},
		{"pod security", apierrors.NewForbidden(pods, "web", errors.New(`violates PodSecurity "restricted:latest": runAsNonRoot != true`)), "POLICY_REFUSED", "runAsNonRoot"},
		{"right missing", apierrors.NewForbidden(pods, "web", errors.New(`User "u" cannot create resource "pods" in API group "" in the namespace "n"`)), "CLUSTER_FORBIDDEN", `User "u"`},
		{"namespace ends", ending, "NAMESPACE_TERMINATING", "terminated"},
		{
			"field of another manager", apierrors.NewApplyConflict([]metav1.StatusCause{{
				Type: metav1.CauseTypeFieldManagerConflict, Message: `conflict with "kubectl-edit" using apps/v1`, Field: `.spec.template.spec.containers[name="app"].image`,
			}}, "Apply failed with 1 conflict"), "FIELD_CONFLICT", `"kubectl-edit" using apps/v1 owns .spec.template.spec.containers[name="app"].image`,
		},
		{"webhook down", apierrors.NewInternalError(errors.New(`failed calling webhook "p.example": no endpoints available`)), "ADMISSION_UNREACHABLE", "p.example"},
		{"anything else", apierrors.NewMethodNotSupported(pods, "patch"), "CLUSTER_REFUSED", "patch"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			d := diagnose.Refused(request(), "dry run", fmt.Errorf("apply Deployment/web: %w", row.err))
			if d.Code != row.code || d.Step != "dry run" || !strings.Contains(d.Error, row.says) || len(d.Fixes) == 0 {
				t.Errorf("got %+v, want %s with %q", d, row.code, row.says)
			}
		})
	}
}

func TestOurOwnRefusalsHaveTheirDiagnoses(t *testing.T) {
	t.Parallel()
	err := errors.New("as it was said")
	for code, d := range map[string]domain.Diagnosis{
		"OBJECT_INVALID":  diagnose.Invalid(request(), err),
		"OBJECT_NOT_OURS": diagnose.Foreign(request(), err),
		"SCALED_TO_ZERO":  diagnose.ScaledToZero(request(), err),
		"WORKLOAD_PAUSED": diagnose.Paused(request(), err),
	} {
		if d.Code != code || d.Error != err.Error() || d.Step == "" || len(d.Fixes) == 0 {
			t.Errorf("got %+v, want %s", d, code)
		}
	}
}
