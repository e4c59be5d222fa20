package testenv_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/pipeops/pipeops/internal/local"
	"github.com/pipeops/pipeops/internal/testenv"
)

func TestRegistryGivesBackWhatWasPushed(t *testing.T) {
	t.Parallel()
	reference, err := name.ParseReference(testenv.Registry(t) + "/testenv/empty:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(reference, empty.Image, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Head(reference, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if want, err := empty.Image.Digest(); err != nil || got.Digest != want {
		t.Errorf("digest %s, want %s (%v)", got.Digest, want, err)
	}
}

func TestBuildKitBuildsAnOrdinaryGoDockerfileAndPushes(t *testing.T) {
	t.Parallel()
	daemon, registry := testenv.BuildKit(t), testenv.Registry(t)
	testenv.BaseImages(t, local.Golang, local.Busybox)
	folder := t.TempDir()
	for file, content := range map[string]string{
		"go.mod":  "module example.com/app\n\ngo 1.26\n\nrequire github.com/google/uuid v1.6.0\n",
		"go.sum":  "github.com/google/uuid v1.6.0 h1:NIvaJDMOsjHA8n1jAhLSgzrAzy1Hgr+hNrb57e+94F0=\ngithub.com/google/uuid v1.6.0/go.mod h1:TIyPZe4MgqvfeYDBFedMoGGpEw/LqOeaOT+nhxU+yHo=\n",
		"main.go": "package main\n\nimport \"github.com/google/uuid\"\n\nfunc main() { println(uuid.Nil.String()) }\n",
		"Dockerfile": "FROM golang:1.26 AS build\nWORKDIR /src\nCOPY . .\nRUN git --version && go build -o /app .\n" +
			"FROM busybox:stable\nCOPY --from=build /app /app\nRUN /app\nCMD [\"/app\"]\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	image := registry + "/testenv/app:1"
	buildctl := filepath.Join(local.DefaultCache(), "tools", "buildkit", local.BuildKitVersion, "buildctl")
	build := exec.CommandContext(t.Context(), buildctl, "--addr", daemon, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
		"--local", "context="+folder, "--local", "dockerfile="+folder, "--no-cache", "--output", "type=image,push=true,name="+image)
	output, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, output)
	}
	if !strings.Contains(string(output), "00000000-0000-0000-0000-000000000000") {
		t.Errorf("the app built from a module with a dependency did not run:\n%s", output)
	}
	reference, err := name.ParseReference(image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(reference, remote.WithContext(t.Context())); err != nil {
		t.Errorf("pushed image: %v", err)
	}
}
