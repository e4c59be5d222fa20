package testenv

import (
	"testing"
	"time"

	"github.com/pipeops/pipeops/internal/local"
)

// BaseImages sees to it that BuildKit can build FROM busybox:stable, debian:bookworm(-slim) and golang:1.26: pulled
// from Docker Hub where it answers, else made and pushed into the shared registry. Names, such as local.Busybox,
// restrict it to what the test needs: busybox takes a second, the others a minute the first time.
func BaseImages(tb testing.TB, names ...string) {
	tb.Helper()
	registry := Registry(tb)
	ctx, cancel := starting(tb, 10*time.Minute)
	defer cancel()
	need(tb, "base images", local.EnsureBaseImages(ctx, config(tb), registry, names...))
}
