package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/pipeops/pipeops/deploy/manifests"
	"github.com/pipeops/pipeops/deploy/steps"
	"github.com/pipeops/pipeops/domain"
)

func (s *service) workload(t *testing.T) *appsv1.Deployment {
	t.Helper()
	d, err := s.client.AppsV1().Deployments(s.request.Namespace).Get(t.Context(), s.request.ServiceName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAnEarlierEpochIsRefusedWithoutAWordAndChangesNothing(t *testing.T) {
	t.Parallel()
	s := setup(t)
	one := s.release(t, "c1", nil)
	s.deployed(t, one, try{epoch: 5})
	before := s.versions(t)
	a, err := s.try(t, s.release(t, "stale", nil), try{epoch: 4, previous: &one})
	var fenced *steps.FencedError
	if !errors.As(err, &fenced) || fenced.Ours != 4 || fenced.Highest != 5 {
		t.Errorf("got %v, want a FencedError", err)
	}
	if len(a.events) != 0 {
		t.Errorf("reported %s", describe(a.events))
	}
	if d := cmp.Diff(before, s.versions(t)); d != "" {
		t.Errorf("resourceVersions changed (-before +after):\n%s", d)
	}
}

// frozen stops one write of a workload just before it leaves, until another worker is done.
type frozen struct {
	http.RoundTripper

	once sync.Once
	do   func()
}

func (f *frozen) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/deployments/") && !strings.Contains(r.URL.RawQuery, "dryRun") {
		f.once.Do(f.do)
	}
	return f.RoundTripper.RoundTrip(r)
}

func TestAWriteThatWaitedWhileALaterWorkerTookOverDoesNoHarm(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name  string
		first bool // nothing is deployed yet: both create
	}{{"update", false}, {"create", true}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := setup(t)
			var previous *domain.DeploymentRequested
			if !row.first {
				one := s.release(t, "c1", nil)
				s.deployed(t, one, try{epoch: 1})
				previous = &one
			}
			old, later := s.release(t, "old", nil), s.release(t, "later", nil)
			c, err := connect(s.kubeconfig)
			if err != nil {
				t.Fatal(err)
			}
			c.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return &frozen{RoundTripper: next, do: func() { s.deployed(t, later, try{epoch: 3, previous: previous}) }}
			})
			slow := *s
			deposed := *s.Deployer
			slow.Deployer = &deposed
			if deposed.client, err = kubernetes.NewForConfig(c); err != nil {
				t.Fatal(err)
			}
			a, err := slow.try(t, old, try{epoch: 2, previous: previous})
			var fenced *steps.FencedError
			if !errors.As(err, &fenced) || len(a.events) != 0 {
				t.Errorf("the deposed worker got %v, want a FencedError, and reported %s", err, describe(a.events))
			}
			if image := s.workload(t).Spec.Template.Spec.Containers[0].Image; image != later.Release.Image {
				t.Errorf("the cluster runs %s, want the later worker's %s", image, later.Release.Image)
			}
			s.served(t, "later")
		})
	}
}

func TestALaterAttemptGoesOnWhereAKilledOneStopped(t *testing.T) {
	t.Parallel()
	s := setup(t)
	r := s.release(t, "c1", func(p *domain.ServiceSpec) { p.Strategy.MinReady = 3 })
	ctx, kill := context.WithCancelCause(t.Context())
	killed := errors.New("killed")
	first := &recorder{}
	done := make(chan error, 1)
	go func() { done <- s.do(ctx, first, s.grant(r, try{epoch: 1})) }()
	await[domain.ManifestsApplied](t, first)
	kill(killed)
	if err := <-done; !errors.Is(err, killed) {
		t.Fatalf("got %v, want the cause of the end", err)
	}
	generation := s.workload(t).Generation
	second := s.deployed(t, r, try{n: 2, epoch: 2})
	if m := only[domain.ManifestsApplied](t, second); m.Changed != 0 {
		t.Errorf("the second attempt changed %d objects", m.Changed)
	}
	if got := s.workload(t).Generation; got != generation {
		t.Errorf("generation went from %d to %d", generation, got)
	}
}

func TestALaterAttemptAfterTheFailureOnlyRollsBack(t *testing.T) {
	t.Parallel()
	s := setup(t)
	good := s.release(t, "good", nil)
	s.deployed(t, good, try{epoch: 1})
	bad := s.release(t, "bad", mode("exit"))
	ctx, kill := context.WithCancelCause(t.Context())
	first := &recorder{}
	done := make(chan error, 1)
	go func() { done <- s.do(ctx, first, s.grant(bad, try{epoch: 2, previous: &good})) }()
	await[domain.ManifestsApplied](t, first)
	kill(errors.New("killed"))
	if err := <-done; err == nil {
		t.Fatal("the killed attempt came to an end")
	}
	second, err := s.try(t, bad, try{n: 2, epoch: 3, previous: &good, rollback: true})
	if got, want := typesOf(second.events), []string{"ManifestsApplied", "RolledBack"}; err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %v and %v, want %v", err, got, want)
	}
	s.served(t, "good")
}

func TestAFirstReleaseThatFailsIsStopped(t *testing.T) {
	t.Parallel()
	s := setup(t)
	r := s.release(t, "c1", func(p *domain.ServiceSpec) { mode("deaf")(p); p.Health.Startup.Failures = 2 })
	a, err := s.try(t, r, try{epoch: 1})
	if got, want := typesOf(a.events), []string{"ManifestsApplied", "DeploymentFailed"}; err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %v and %v, want %v", err, got, want)
	}
	if d := only[domain.DeploymentFailed](t, a).Diagnosis; d.Code != "PORT_NOT_LISTENING" || !strings.Contains(d.Reason, "scaled to zero") {
		t.Errorf("got %+v", d)
	}
	if n := *s.workload(t).Spec.Replicas; n != 0 {
		t.Errorf("%d replicas go on", n)
	}
	s.deployed(t, s.release(t, "c2", nil), try{epoch: 2})
	s.served(t, "c2")
}

func TestWhatTheServerRefusesIsKnownBeforeAnythingChanges(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, code, step, says string
		prepare                func(*testing.T, *service)
		change                 func(*domain.ServiceSpec)
	}{
		{
			"quota used up", "QUOTA_EXCEEDED", "dry run", "pods=1",
			func(t *testing.T, s *service) {
				t.Helper()
				quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "one"}}
				quota.Spec.Hard = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("1")}
				api := s.client.CoreV1().ResourceQuotas(s.request.Namespace)
				if _, err := api.Create(t.Context(), quota, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				until(t, "the quota counts", func() bool {
					live, err := api.Get(t.Context(), "one", metav1.GetOptions{})
					used := live.Status.Used[corev1.ResourcePods]
					return err == nil && used.Value() == 1
				})
			}, nil,
		},
		{
			"policy of the namespace", "POLICY_REFUSED", "dry run", "runAsNonRoot",
			func(t *testing.T, s *service) {
				t.Helper()
				patch := `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`
				if _, err := s.client.CoreV1().Namespaces().Patch(t.Context(), s.request.Namespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
					t.Fatal(err)
				}
			}, nil,
		},
		{"request above limit", "OBJECT_INVALID", "dry run", "memory", nil, func(p *domain.ServiceSpec) { p.MemoryRequest, p.MemoryLimit = "64Mi", "32Mi" }},
		{"variable's name", "OBJECT_INVALID", "dry run", "env", nil, func(p *domain.ServiceSpec) { p.Variables = map[string]string{"A=B": "x"} }},
		{"quantity that is none", "OBJECT_INVALID", "render", "lots", nil, func(p *domain.ServiceSpec) { p.MemoryLimit = "lots" }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := setup(t)
			good := s.release(t, "good", nil)
			s.deployed(t, good, try{epoch: 1})
			if row.prepare != nil {
				row.prepare(t, s)
			}
			before := s.versions(t)
			a, err := s.try(t, s.release(t, "refused", row.change), try{epoch: 2, previous: &good})
			if got, want := typesOf(a.events), []string{"DeploymentFailed", "ManifestsApplied", "RolledBack"}; err != nil || !slices.Equal(got, want) {
				t.Fatalf("got %v and %v, want %v: %s", err, got, want, describe(a.events))
			}
			if d := only[domain.DeploymentFailed](t, a).Diagnosis; d.Code != row.code || d.Step != row.step || !strings.Contains(d.Error, row.says) {
				t.Errorf("got %+v, want %s in %s with %q", d, row.code, row.step, row.says)
			}
			if d := cmp.Diff(before, s.versions(t)); d != "" {
				t.Errorf("resourceVersions changed (-before +after):\n%s", d)
			}
		})
	}
}

// edit changes the workload as another field manager would.
func (s *service) edit(t *testing.T, manager, patch string, subresources ...string) {
	t.Helper()
	_, err := s.client.AppsV1().Deployments(s.request.Namespace).Patch(t.Context(), s.request.ServiceName, types.StrategicMergePatchType,
		[]byte(patch), metav1.PatchOptions{FieldManager: manager}, subresources...)
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatOthersChangedIsTakenBackLeftOrNamed(t *testing.T) {
	t.Parallel()
	s := setup(t)
	one := s.release(t, "c1", nil)
	s.deployed(t, one, try{epoch: 1})

	s.edit(t, "kubectl-scale", `{"spec":{"replicas":2}}`)
	s.edit(t, "kubectl-edit", `{"spec":{"minReadySeconds":2}}`)
	two := s.release(t, "c2", nil)
	a := s.deployed(t, two, try{epoch: 2, previous: &one})
	w := s.workload(t)
	if *w.Spec.Replicas != 2 || w.Spec.MinReadySeconds != 1 {
		t.Errorf("got %d replicas, %d seconds; want the replicas left and the seconds taken back", *w.Spec.Replicas, w.Spec.MinReadySeconds)
	}
	if done := only[domain.DeploymentSucceeded](t, a); done.Available != 2 {
		t.Errorf("got %+v, want both pods", done)
	}
	if p := only[domain.RolloutProgressed](t, a); !strings.Contains(p.Message, `left to "kubectl-scale"`) || !strings.Contains(p.Message, `taken back from "kubectl-edit"`) {
		t.Errorf("progress doesn't tell: %q", p.Message)
	}

	s.edit(t, "kubectl-edit", `{"spec":{"template":{"spec":{"containers":[{"name":"app","resources":{"limits":{"memory":"100Mi"}}}]}}}}`)
	before := s.versions(t)
	b, err := s.try(t, s.release(t, "c3", func(p *domain.ServiceSpec) { p.MemoryLimit = "200Mi" }), try{epoch: 3, previous: &two})
	failed := only[domain.DeploymentFailed](t, b).Diagnosis
	if err != nil || failed.Code != "FIELD_CONFLICT" || !strings.Contains(failed.Error, `"kubectl-edit" using apps/v1 owns .spec.template.spec.containers[name="app"].resources.limits.memory`) {
		t.Errorf("got %v, %+v", err, failed)
	}
	if only[domain.ManifestsApplied](t, b).Changed != 0 || s.versions(t)["Service/web"] != before["Service/web"] {
		t.Error("the refused release changed something")
	}
}

func TestAnObjectOfSomebodyElseIsntTouched(t *testing.T) {
	t.Parallel()
	s := setup(t)
	if _, err := s.client.CoreV1().Namespaces().Apply(t.Context(), manifests.Namespace(s.request), metav1.ApplyOptions{FieldManager: "admin"}); err != nil {
		t.Fatal(err)
	}
	foreign := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}}
	foreign.Spec.Ports = []corev1.ServicePort{{Port: 8080}}
	if _, err := s.client.CoreV1().Services(s.request.Namespace).Create(t.Context(), foreign, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	a, err := s.try(t, s.release(t, "c1", nil), try{epoch: 1})
	if err != nil || only[domain.DeploymentFailed](t, a).Diagnosis.Code != "OBJECT_NOT_OURS" || len(a.events) != 1 {
		t.Errorf("got %v and %s", err, describe(a.events))
	}
	if got := s.versions(t); len(got) != 1 {
		t.Errorf("got %v, want the other's Service alone", got)
	}
}

func TestAWorkloadThatIsDeletedMeanwhileIsAppliedAgain(t *testing.T) {
	t.Parallel()
	s := setup(t)
	r := s.release(t, "c1", func(p *domain.ServiceSpec) { p.Strategy.MinReady = 5 })
	a := &recorder{}
	done := make(chan error, 1)
	go func() { done <- s.do(t.Context(), a, s.grant(r, try{epoch: 1})) }()
	await[domain.RolloutProgressed](t, a)
	foreground := metav1.DeletePropagationForeground
	if err := s.client.AppsV1().Deployments(r.Namespace).Delete(t.Context(), "web", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("got %v after %s", err, describe(a.events))
	}
	if got, want := typesOf(a.events), []string{"ManifestsApplied", "ManifestsApplied", "DeploymentSucceeded"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAGrantThatCantBeReadIsNoVerdict(t *testing.T) {
	t.Parallel()
	a := &recorder{}
	g := (&service{}).grant(fresh(), try{})
	g.Context = json.RawMessage(`[]`)
	if err := new(Deployer).do(t.Context(), a, g); err == nil || len(a.events) != 0 {
		t.Errorf("got %v and %s", err, describe(a.events))
	}
}
