package testenv

import (
	"testing"
	"time"

	"github.com/pipeops/pipeops/internal/local"
)

// BaseImages sees to it that BuildKit can build FROM busybox:stable, debian:bookworm(-slim) and golang:1.26: pulled
// from Docker Hub where it answers, else made and pushed into the shared registry. Names, such as local.Busybox,
// restrict it to what the test needs: busybox takes a second, the others a minute the first time.
func BaseImages(t testing.TB, names ...string) {
	t.Helper()
	registry := Registry(t)
	ctx, cancel := starting(t, 10*time.Minute)
	defer cancel()
	need(t, "base images", local.EnsureBaseImages(ctx, config(t), registry, names...))
}
