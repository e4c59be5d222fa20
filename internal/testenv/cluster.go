package testenv

import (
	"testing"
	"time"

	"github.com/pipeops/pipeops/internal/local"
)

// Cluster returns the path of the administrator's kubeconfig of the machine's local Kubernetes: the one that `make up`
// started, if there is one, else a shared one of the tests. Its pods can pull from testenv.Registry. Tests choose
// namespaces of their own and delete them.
func Cluster(tb testing.TB) string {
	tb.Helper()
	registry := Registry(tb)
	ctx, cancel := starting(tb, 6*time.Minute)
	defer cancel()
	kubeconfig, err := local.StartCluster(ctx, config(tb), registry)
	need(tb, "Kubernetes", err)
	return kubeconfig
}
