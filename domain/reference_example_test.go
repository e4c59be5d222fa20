package domain

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// What the examples of the reference tell: a push to the project "shop", whose service "web" is built and goes to
// production. They are for people; what is stored for ever is held by testdata/events.
const (
	exampleProject     = ProjectID("prj_0198c2d4-6a10-7c31-9b52-3f0d8e41a7c5")
	exampleService     = ServiceID("svc_0198c2d4-6a10-7d02-8e17-5b9c20f4d683")
	exampleEnvironment = EnvironmentID("env_0198c2d4-6a10-7e5a-a3c8-71d6094be2f0")
	examplePush        = PushID("psh_019ab3f1-08c4-7a26-8d41-c2e95b07f63a")
	exampleBuild       = BuildID("bld_019ab3f1-0a7e-7b93-9f05-6e1d84c3a2b7")
	exampleDeployment  = DeploymentID("dep_019ab3f1-b5d2-7c48-8a6e-03f79d1c54e8")
	exampleRunner      = WorkerID("wrk_0198c2d9-41b3-7f08-b2d7-95a0c6e8134f")
	exampleDeployer    = WorkerID("wrk_0198c2d9-5e60-7a1c-8c39-d4f2071b6ea5")
	exampleImages      = "ghcr.io/acme/shop/web"
	exampleCause       = "5c1f0a34-7d29-5e86-9b40-e8a3c6d2f715" // what BuildRequested has as its id
)

var (
	exampleCommit     = shortHash("commit", 40)
	exampleBefore     = shortHash("commit before", 40)
	exampleDigest     = "sha256:" + shortHash("image", 64)
	exampleTime       = At(time.Date(2026, 11, 24, 9, 41, 7, 318204000, time.UTC))
	exampleNamespace  = Namespace("shop", "production", exampleEnvironment)
	examplePerson     = "act_" + shortHash("person", 32)
	exampleSettings   = ProjectSettings{Repository: "https://github.com/acme/shop.git", Branch: "main", Registry: "ghcr.io/acme"}
	exampleRelease    = NewRelease(exampleService, exampleBuild, exampleCommit, exampleImages+"@"+exampleDigest, 7, exampleSpec)
	exampleSpec       = newExampleSpec()
	exampleActivation = Activation{
		Deployment: "dep_019aae02-73c9-7d15-9e8b-48f6a1c0d327", Spec: exampleSpec,
		Release: NewRelease(exampleService, "bld_019aae01-c8f0-7e64-8b2a-97d35c1ef408", exampleBefore, exampleImages+"@sha256:"+shortHash("image before", 64), 7, exampleSpec),
	}
	exampleCrash = Diagnosis{
		Code: "APP_CRASHED", Title: "Deployment failed: CrashLoopBackOff", Step: "rollout",
		Error:  "the program ended with exit code 1, 3 times in a row",
		Reason: "The program ends right after its start",
		Fixes:  []string{"Read the last lines of its output below", "Start the image on your own machine: docker run " + exampleImages + "@" + exampleDigest},
		Run:    "pipeops status shop", Log: []string{"listening on :8080", "panic: DATABASE_URL is empty"}, ReleaseAtFault: true,
	}
	exampleMissing = Diagnosis{
		Code: "COPY_SOURCE_MISSING", Title: "Build failed: COPY finds no such file", Step: "[build 2/5] COPY go.mod go.sum ./",
		Error:  `failed to calculate checksum of ref: "/go.sum": not found`,
		Reason: "A COPY or ADD on line 4 names something that isn't in what the builder was given",
		Fixes:  []string{"Write the path relative to the service's root directory, not to the Dockerfile", "Check that it was committed: git ls-files"},
		Run:    "pipeops logs shop", Log: []string{"#6 [build 2/5] COPY go.mod go.sum ./", `#6 ERROR: "/go.sum": not found`},
	}
	exampleLate = ReceivePush{Ref: "refs/heads/main", Commit: exampleCommit}
)

func newExampleSpec() ServiceSpec {
	s := DefaultSpec()
	s.BuildArgs, s.Command = map[string]string{"GO_TAGS": "netgo"}, []string{"/app/web", "--log=json"}
	s.Variables = map[string]string{"LOG_LEVEL": "info"}
	s.Replicas, s.CPULimit, s.MemoryLimit = 3, "1", "256Mi"
	return s
}

// samples by "Type.field" or by the field's name alone. Where there are both, the first one is taken.
var samples = map[string]any{
	"projectName": "shop", "ProjectCreated.name": "shop", "ProjectNameClaimed.name": "shop",
	"serviceName": "web", "ServiceAdded.name": "web", "ServiceAdded.spec": DefaultSpec(),
	"environmentName": "production", "EnvironmentAdded.name": "production", "namespace": exampleNamespace,
	"provider": "github", "revision": 2, "SecretSet.name": "git-credential/github.com",

	"source": "github", "delivery": "f3a1c6d0-c92b-11f0-9b6e-5d27c08e41aa", "ref": "refs/heads/main", "branch": "main",
	"before": exampleBefore, "after": exampleCommit, "commit": exampleCommit, "forced": true,
	"pusher": sealed("pusher"), "author": sealed("author"), "message": sealed("message"), "PushReceived.timestamp": At(exampleTime.Add(-3 * time.Minute)),
	"kind": "push", "PushIgnored.reason": "overtaken",
	"PushIgnored.diagnosis": exampleLate.overtaken(&Project{Name: "shop"}, &Ref{Head: shortHash("newer commit", 40)}),
	"body":                  shortHash("delivery", 64),

	"repository": exampleSettings.Repository, "services": []ServiceID{exampleService}, "image": exampleImages, "tag": exampleCommit, "configVersion": 7,
	"BuildRequested.plan": BuildPlan{RootDir: exampleSpec.RootDir, Dockerfile: exampleSpec.Dockerfile, Args: exampleSpec.BuildArgs},
	"incarnation":         "019ab2c7-3d18-7450-9af2-b60e81d5c397",
	"files":               214, "bytes": 1_803_442, "SourceFetched.durationMs": 1_240,
	"passed": []string{"GO_TAGS", "PIPEOPS_GIT_COMMIT"}, "dropped": []string{"NODE_ENV"},
	"LayerCached.name": "[build 2/5] COPY go.mod go.sum ./", "LayerBuilt.name": "[build 5/5] RUN go build -o /app/web .",
	"LayerCached.digest": "sha256:" + shortHash("vertex 2", 64), "LayerBuilt.digest": "sha256:" + shortHash("vertex 5", 64),
	"LayerBuilt.durationMs": 18_730, "steps": 7, "cached": 4, "ImageBuilt.durationMs": 24_115,
	"try": 1, "error": "unexpected status from PUT request: 503 Service Unavailable", "waitMs": 2_310,
	"ImagePushed.reference": exampleImages + "@" + exampleDigest, "ImageTagged.reference": exampleImages + ":" + exampleCommit, "digest": exampleDigest,
	"platforms": []string{"linux/amd64"}, "sizeBytes": 14_680_231,
	"BuildSucceeded.durationMs": 31_904, "BuildFailed.diagnosis": exampleMissing,
	"BuildSuperseded.by": BuildID("bld_019ab3f2-4c01-7e8d-a5b9-10d7c6f3e924"),
	"AttemptLost.reason": "worker stopped", "stopped": true,

	"DeploymentRequested.reason": "push", "behind": exampleActivation.Deployment,
	"DeploymentStarted.attempt": NewAttemptID(string(exampleDeployment), 1), "DeploymentClaimed.attempt": NewAttemptID(string(exampleDeployment), 1),
	"DeploymentStarted.worker": exampleDeployer, "fencingEpoch": 12, "deadline": At(exampleTime.Add(5 * time.Minute)),
	"objects": []string{"Namespace/" + exampleNamespace, "Service/web", "Deployment/web"}, "changed": 1,
	"wanted": 3, "updated": 2, "ready": 2, "RolloutProgressed.available": 1, "RolloutProgressed.message": "1 pod waits for its image",
	"available": 3, "trailing": 1, "address": "web." + exampleNamespace + ".svc:80", "DeploymentSucceeded.durationMs": 42_518,
	"DeploymentFailed.diagnosis": exampleCrash, "RolledBack.to": exampleActivation.Release.ID, "RolledBack.durationMs": 9_076,
	"RollbackFailed.diagnosis": exhausted("Rollback", "its worker was not heard of for 15s",
		"Once the cause is gone, bring back what served: pipeops rollback shop --environment production --service web --to "+string(exampleActivation.Release.ID)),
	"DeploymentSuperseded.by":  DeploymentID("dep_019ab3f4-9e57-7a20-8d13-f5c4b6a07e91"),
	"ReleaseActivated.release": exampleRelease, "DeploymentRequested.release": exampleRelease, "why": exampleCrash.Title,

	"WorkerEnrolled.class": "build", "publicKey": []byte(shortHash("key", 32)),

	"token": "6f1c2a84-0f5e-4b7d-9c53-27d1a8e0b946", "TokenCreated.name": "laptop", "TokenRevoked.name": "laptop", "key": "tree-heads/2",

	"SubjectErased.subject": examplePerson, "keys": 1, "reason": "request 4711",
	"projection": "builds", "version": 1, "event": exampleCause, "position": 48_207,
	"ReplayRun.kind": "projections", "ReplayRun.subject": "builds, timeline", "from": Cursor{}, "to": Cursor{1, 48_210},
	"counts":    []ReplayCount{{Name: "projections", Count: 1}, {Name: "rows", Count: 9_114}},
	"different": 3, "differences": []ReplayDifference{{Subject: "builds", What: "3 rows differ"}},
	"projections": []ReplayedProjection{{
		Name: "builds", Version: 2, Cursor: Cursor{1, 48_210}, Rows: 9_114, Checksum: "42447cf322c864d6253b4b85de1c8a2d",
		InUse: "1cabd591f2cad5501d2866d53f6fd7b0", Different: 3, Replaced: true,
	}},
	"ended": "cut at projection timeline: whoever wanted it left, or the server stopped",
}

// samplesOf types stand where no field's name says more.
var samplesOf = map[reflect.Type]any{
	reflect.TypeFor[ProjectID](): exampleProject, reflect.TypeFor[ServiceID](): exampleService, reflect.TypeFor[EnvironmentID](): exampleEnvironment,
	reflect.TypeFor[PushID](): examplePush, reflect.TypeFor[BuildID](): exampleBuild, reflect.TypeFor[DeploymentID](): exampleDeployment,
	reflect.TypeFor[WorkerID](): exampleRunner, reflect.TypeFor[AttemptID](): NewAttemptID(string(exampleBuild), 1), reflect.TypeFor[ReleaseID](): exampleRelease.ID,
	reflect.TypeFor[ProjectSettings](): exampleSettings, reflect.TypeFor[ServiceSpec](): exampleSpec, reflect.TypeFor[Activation](): exampleActivation,
	reflect.TypeFor[Time](): exampleTime,
}

// sealed is a personal field as it is stored. Nobody has its key.
func sealed(field string) Personal {
	text := sha256.Sum256([]byte(field))
	return Personal{Subject: examplePerson, sealed: "1." + base64.RawURLEncoding.EncodeToString(text[:])}
}

// exampleBody gives a body of the type as it may stand in the log.
func exampleBody(t *testing.T, eventType string) []byte {
	t.Helper()
	zero, err := Zero(eventType)
	if err != nil {
		t.Fatal(err)
	}
	v := reflect.New(reflect.TypeOf(zero)).Elem()
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			give(t, v.Field(i), eventType, name)
		}
	}
	body, err := Encode(v.Interface().(Event), "", func(_, _, _, _ string) (string, error) { return "", errors.New("not sealed") })
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// give sets a field to its sample.
func give(t *testing.T, field reflect.Value, eventType, name string) {
	t.Helper()
	of := field.Type()
	if of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	given, ok := samples[eventType+"."+name]
	if !ok {
		given, ok = samplesOf[of]
	}
	if !ok {
		given, ok = samples[name]
	}
	value := reflect.ValueOf(given)
	switch {
	case !ok:
		t.Errorf("%s.%s has no sample: give it one in %q", eventType, name, "domain/reference_example_test.go")
	case value.Type() == field.Type():
		field.Set(value)
	case field.Kind() == reflect.Pointer && value.Type() == of:
		field.Set(reflect.New(of))
		field.Elem().Set(value)
	case field.CanInt() && value.CanInt():
		field.SetInt(value.Int())
	default:
		t.Errorf("%s.%s: a sample of type %s doesn't fit into %s", eventType, name, value.Type(), field.Type())
	}
}

// exampleLine gives an event as it is printed.
func exampleLine(t *testing.T) []byte {
	t.Helper()
	recorded := Recorded{
		Cursor: Cursor{1, 48_209}, ID: "b7e0d3c5-2f14-5a98-8c61-94d7f0a3e62b", Stream: BuildStream(exampleBuild), Version: 3, ProjectID: exampleProject,
		Type: "SourceFetched", SchemaVersion: 1, Body: exampleBody(t, "SourceFetched"),
		OccurredAt: exampleTime.Time, RecordedAt: exampleTime.Add(41_877 * time.Microsecond),
		Actor: "worker", CorrelationID: string(examplePush), CausationID: exampleCause,
		Attempt: NewAttemptID(string(exampleBuild), 1), AttemptSeq: 1, Trace: NewTrace(string(examplePush)),
	}
	line, err := json.Marshal(recorded.Line())
	if err != nil {
		t.Fatal(err)
	}
	return line
}
