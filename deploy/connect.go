package deploy

import (
	"fmt"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// requestTimeout bounds every request but watches.
const requestTimeout = 30 * time.Second

// connect reads how to reach a cluster: from the kubeconfig at path, or, with an empty path, as a pod of the cluster.
// It makes no request.
func connect(path string) (*rest.Config, error) {
	read := rest.InClusterConfig
	if path != "" {
		read = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", path) }
	}
	c, err := read()
	if err != nil {
		return nil, fmt.Errorf("read how to reach the cluster (kubeconfig %q): %w", path, err)
	}
	c.UserAgent = "pipeops-deployer"
	c.QPS = -1 // the API server's own priorities and fairness do the limiting
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return c, nil
}

// clients gives one client for requests, whose time is bounded, and one for watches.
func clients(c *rest.Config) (requests, watches kubernetes.Interface, err error) {
	bounded := rest.CopyConfig(c)
	bounded.Timeout = requestTimeout
	requests, err = kubernetes.NewForConfig(bounded)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	watches, err = kubernetes.NewForConfig(c)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	return requests, watches, nil
}
