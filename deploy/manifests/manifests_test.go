package manifests_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pipeops/pipeops/deploy/manifests"
	"github.com/pipeops/pipeops/domain"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func request(change func(*domain.DeploymentRequested)) domain.DeploymentRequested {
	spec := domain.DefaultSpec()
	image := "registry.example/acme/hello@sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
	r := domain.DeploymentRequested{
		Deployment: "dep_01930000-0000-7000-8000-000000000001", Project: "prj_01930000-0000-7000-8000-000000000002", ProjectName: "hello",
		Environment: "env_01930000-0000-7000-8000-000000000003", EnvironmentName: "production",
		Namespace: "hello-production-a1b2c3", Service: "svc_01930000-0000-7000-8000-000000000004", ServiceName: "web",
		Release: domain.Release{
			ID: "rel_5f0c6d1e-0000-5000-8000-000000000005", Commit: "0123456789abcdef0123456789abcdef01234567", Image: image, ConfigVersion: 3,
		},
		Spec: spec,
	}
	if change != nil {
		change(&r)
	}
	return r
}

func render(t *testing.T, r domain.DeploymentRequested) manifests.Objects {
	t.Helper()
	o, err := manifests.Render(r, r.Spec.Strategy.Steps(r.Spec.Replicas)[0])
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestObjectsAreTheGoldenOnes(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]domain.DeploymentRequested{
		"default": request(nil),
		"full": request(func(r *domain.DeploymentRequested) {
			r.Spec.Replicas = 8
			r.Spec.Port = 3000
			r.Spec.Command = []string{"/app", "serve", "--greeting=$(GREETING)"}
			r.Spec.Variables = map[string]string{"ZONE": "b", "GREETING": "hi $USER", "PORT": "1"}
			r.Spec.CPULimit, r.Spec.MemoryLimit = "500m", "128Mi"
			r.Spec.Strategy = domain.Strategy{Kind: domain.Rolling, MinReady: 1, Deadline: 60}
			r.Spec.Health.Path = "/healthz"
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := render(t, r)
			got, err := json.MarshalIndent([]any{manifests.Namespace(r), o.Service, o.Workload}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("objects differ from %s (-want +got):\n%s", file, d)
			}
		})
	}
}

func TestAnotherDeploymentOfTheSameReleaseGivesTheSameObjects(t *testing.T) {
	t.Parallel()
	first, second := request(nil), request(func(r *domain.DeploymentRequested) {
		r.Deployment, r.Reason, r.Release.ConfigVersion = "dep_01930000-0000-7000-8000-000000000009", "manual", 9
	})
	if d := cmp.Diff(render(t, first), render(t, second)); d != "" {
		t.Errorf("objects differ (-first +second):\n%s", d)
	}
}

func TestAQuantityThatIsNoneIsRefusedByName(t *testing.T) {
	t.Parallel()
	r := request(func(r *domain.DeploymentRequested) { r.Spec.MemoryLimit = "lots" })
	_, err := manifests.Render(r, r.Spec.Strategy.Steps(1)[0])
	var invalid *manifests.InvalidError
	if !errors.As(err, &invalid) || invalid.Field != "memoryLimit" || !strings.Contains(err.Error(), `memoryLimit "lots"`) {
		t.Errorf("got %v, want an InvalidError of memoryLimit", err)
	}
}

func TestAnImageByTagIsRefused(t *testing.T) {
	t.Parallel()
	r := request(func(r *domain.DeploymentRequested) { r.Release.Image = "registry.example/acme/hello:latest" })
	_, err := manifests.Render(r, r.Spec.Strategy.Steps(1)[0])
	var invalid *manifests.InvalidError
	if !errors.As(err, &invalid) || invalid.Field != "image" {
		t.Errorf("got %v, want an InvalidError of image", err)
	}
}

func TestAddressIsTheServiceWithinTheCluster(t *testing.T) {
	t.Parallel()
	if got, want := manifests.Address(request(nil)), "web.hello-production-a1b2c3.svc:80"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
