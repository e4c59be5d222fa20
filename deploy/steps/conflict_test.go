package steps

import (
	"errors"
	"testing"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/pipeops/pipeops/deploy/manifests"
	"github.com/pipeops/pipeops/domain"
)

func objects(t *testing.T) manifests.Objects {
	t.Helper()
	spec := domain.DefaultSpec()
	o, err := manifests.Render(domain.DeploymentRequested{ServiceName: "web", Namespace: "ns", Service: "svc_1", Environment: "env_1", Spec: spec, Release: domain.Release{Image: "x@sha256:y"}}, spec.Strategy.Steps(1)[0])
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestAFieldIsFoundInWhatWasApplied(t *testing.T) {
	t.Parallel()
	o := objects(t)
	for field, want := range map[string]bool{
		`.spec.template.spec.containers[name="app"].image`:                                         true,
		`.spec.template.spec.containers[name="app"].env[name="PORT"].value`:                        true,
		`.spec.template.spec.containers[name="app"].ports[containerPort=8080,protocol="TCP"].name`: true,
		`.metadata.labels.app.kubernetes.io/name`:                                                  true,
		`.spec.selector`: true,
		`.spec.template.spec.containers[name="app"].resources.limits.memory`: false,
		`.spec.template.spec.containers[name="proxy"].image`:                 false,
		`.spec.template.spec.containers[name="app"].env[name="OTHER"].value`: false,
		`.metadata.labels.app.kubernetes.io`:                                 false,
		`.metadata.annotations.x`:                                            false,
		`.spec.template.spec.containers["`:                                   false,
		`.spec.template.spec.containers[name`:                                false,
	} {
		if got := sets(o.Workload, field); got != want {
			t.Errorf("%s: got %v, want %v", field, got, want)
		}
	}
	if !sets(o.Service, `.spec.ports[port=80,protocol="TCP"].targetPort`) {
		t.Error("the Service's port wasn't found")
	}
}

func TestConflictsAreSettledOneByOne(t *testing.T) {
	t.Parallel()
	image := conflict{`.spec.template.spec.containers[name="app"].image`, `"kubectl-edit"`}
	limit := conflict{`.spec.template.spec.containers[name="app"].resources.limits.memory`, `"kubectl-edit"`}
	scale := conflict{`.spec.replicas`, `"kubectl"`}
	two, zero := int32(2), int32(0)
	for _, row := range []struct {
		name      string
		conflicts []conflict
		fresh     bool // nothing serves
		live      *int32
		ok, force bool
		left      bool // the replicas
	}{
		{name: "what was ours is taken back", conflicts: []conflict{image}, live: &two, ok: true, force: true},
		{name: "what never was stands", conflicts: []conflict{image, limit}, live: &two},
		{name: "all is taken back where nothing serves", conflicts: []conflict{limit}, fresh: true, live: &two, ok: true, force: true},
		{name: "replicas are left", conflicts: []conflict{scale}, live: &two, ok: true, left: true},
		{name: "replicas are left beside another", conflicts: []conflict{image, scale}, live: &two, ok: true, force: true, left: true},
		{name: "zero replicas stand", conflicts: []conflict{scale}, live: &zero},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			o := objects(t)
			before := &o
			if row.fresh {
				before = nil
			}
			got, ok, err := settle(o.Workload, &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: row.live}}, before, row.conflicts)
			if ok != row.ok || got.force != row.force || ok && (len(got.notes) != len(row.conflicts) || (got.wanted.Spec.Replicas == nil) != row.left) {
				t.Errorf("got %+v, %v, %v", got, ok, err)
			}
			var zeroErr *ZeroError
			if errors.As(err, &zeroErr) != (*row.live == 0) {
				t.Errorf("got %v", err)
			}
			if o.Workload.Spec.Replicas == nil {
				t.Error("the caller's object was changed")
			}
		})
	}
}
