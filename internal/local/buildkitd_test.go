package local

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// buildctl builds a Dockerfile on busybox, which is the whole context; it returns at once.
func buildctl(t *testing.T, c Config, daemon, dockerfile string) *exec.Cmd {
	t.Helper()
	program, err := c.tool("buildkit", BuildKitVersion, "buildctl")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := findProgram("busybox")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(busybox)
	folder := t.TempDir()
	if err := errors.Join(err, os.WriteFile(filepath.Join(folder, "Dockerfile"), []byte(dockerfile), 0o600),
		os.WriteFile(filepath.Join(folder, "busybox"), content, 0o755)); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), program, "--addr", daemon, "build", "--progress", "plain",
		"--frontend", "dockerfile.v0", "--local", "context="+folder, "--local", "dockerfile="+folder)
	if err := build.Start(); err != nil {
		t.Fatal(err)
	}
	return build
}

func nothingOf(t *testing.T, folder string) {
	t.Helper()
	mounts, err := mountsBelow(folder)
	if err != nil || len(mounts) > 0 {
		t.Errorf("mounts left: %v (%v)", mounts, err)
	}
	if left := containerProcesses(folder); len(left) > 0 {
		t.Errorf("processes of steps left: %v", left)
	}
}

func TestBuildkitdClearsWhatAKillLeftAndStopsWithoutTrace(t *testing.T) {
	t.Parallel()
	c := testHome(t)
	folder := filepath.Join(c.Home, "buildkitd")
	start := func(registry string) string {
		t.Helper()
		address, err := StartBuildkitd(t.Context(), c, registry)
		if err != nil {
			t.Fatal(err)
		}
		return address
	}
	address := start("")
	first := pid(t, c, "buildkitd")
	build := buildctl(t, c, address, "FROM scratch\nCOPY busybox /bin/sh\nRUN sleep 1000\n")
	eventually(t, func(context.Context) error {
		if len(containerProcesses(folder)) == 0 {
			return errors.New("the step doesn't run yet")
		}
		return nil
	})
	if err := errors.Join(first.signal(syscall.SIGKILL), first.await(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := build.Wait(); err == nil {
		t.Error("a build outlived its daemon")
	}
	if again := start(""); again != address {
		t.Errorf("address after a kill: %s, was %s", again, address)
	}
	nothingOf(t, folder)
	if err := buildctl(t, c, address, "FROM scratch\nCOPY busybox /bin/sh\nRUN echo works\n").Wait(); err != nil {
		t.Errorf("build after a kill: %v", err)
	}

	second := pid(t, c, "buildkitd")
	start("127.0.0.1:1")
	if pid(t, c, "buildkitd") == second {
		t.Error("a start with another configuration adopted the old process")
	}
	if err := Down(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	nothingOf(t, folder)
	if groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + cgroup(c.Home)); len(groups) > 0 {
		t.Errorf("control groups left: %v", groups)
	}
}

func TestRegistryKeepsImagesAndAddressOverARestart(t *testing.T) {
	t.Parallel()
	c := testHome(t)
	address, err := StartRegistry(t.Context(), c, registryProgram(t), c.Home)
	if err != nil {
		t.Fatal(err)
	}
	if err := EnsureBaseImages(t.Context(), c, address, Busybox); err != nil {
		t.Fatal(err)
	}
	if err := StopRegistry(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	again, err := StartRegistry(t.Context(), c, registryProgram(t), c.Home)
	if err != nil || again != address {
		t.Fatalf("address %s, was %s (%v)", again, address, err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+address+"/v2/library/busybox/manifests/stable", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("image after a restart: %s (%v)", response.Status, err)
	}
}

// registryProgram builds the program that serves images, as the tests' environment does.
func registryProgram(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "registryd")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "github.com/pipeops/pipeops/internal/testenv/registryd")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return program
}
