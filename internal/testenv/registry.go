package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pipeops/pipeops/internal/local"
)

// Registry returns host:port of the shared image registry, over HTTP. What tests push stays, so choose repository
// names of the test's own.
func Registry(tb testing.TB) string {
	tb.Helper()
	ctx, cancel := starting(tb, 5*time.Minute)
	defer cancel()
	address, err := startRegistry(ctx, config(tb))
	need(tb, "image registry", err)
	return address
}

// BuildKit returns the address of the shared buildkitd, unix:///…, to which the shared registry is the mirror of
// docker.io and a registry over HTTP.
func BuildKit(tb testing.TB) string {
	tb.Helper()
	registry := Registry(tb)
	ctx, cancel := starting(tb, 2*time.Minute)
	defer cancel()
	address, err := local.StartBuildkitd(ctx, config(tb), registry)
	need(tb, "BuildKit", err)
	return address
}

// startRegistry runs the registry as a program built from this module, because it must outlive the test process.
func startRegistry(ctx context.Context, c local.Config) (string, error) {
	program := filepath.Join(c.Home, "bin", "registryd")
	running, err := local.Running(c)
	if err != nil {
		return "", err
	}
	for _, part := range running {
		if part.Name == "registry" {
			return local.StartRegistry(ctx, c, program, c.Home)
		}
	}
	if err := os.MkdirAll(filepath.Dir(program), 0o711); err != nil { //nolint:gosec // as the home
		return "", err
	}
	fresh := fmt.Sprintf("%s.%d", program, os.Getpid())
	build := exec.CommandContext(ctx, "go", "build", "-o", fresh, "github.com/pipeops/pipeops/internal/testenv/registryd") //nolint:gosec // our own
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the registry's program: %w\n%s", err, output)
	}
	if err := os.Rename(fresh, program); err != nil {
		return "", err
	}
	return local.StartRegistry(ctx, c, program, c.Home)
}
