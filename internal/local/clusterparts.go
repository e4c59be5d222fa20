package local

import (
	"archive/tar"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// daemons are the cluster's parts in the order of starting.
func (k cluster) daemons() []daemon {
	file := func(name string) string { return filepath.Join(k.folder(), name) }
	etcd, peer := "http://"+loopback(k.ports["etcd"]), "http://"+loopback(k.ports["etcd-peer"])
	running := func(context.Context) error { return nil }
	healthy := func(port string) func(context.Context) error {
		return func(ctx context.Context) error { return answers(ctx, "http://"+loopback(k.ports[port])+"/healthz") }
	}
	kube := func(part, component string, ready func(context.Context) error, args ...string) daemon {
		return daemon{
			part: clusterPart(part), path: k.programs["kube"], args: append([]string{component}, args...), within: 2 * time.Minute,
			ready: ready, files: k.filesOf(part),
		}
	}
	containerd := daemon{
		part: clusterPart("containerd"), path: k.programs["containerd"], args: []string{"-c", file("containerd/containerd.toml")},
		files:  []string{file("containerd/containerd.toml"), file("cni/10-pipeops.conflist")},
		before: k.pushPause, within: time.Minute,
		ready: func(ctx context.Context) error { return accepts(ctx, "unix", file("containerd/sock")) },
	}
	return []daemon{
		{
			part: clusterPart("etcd"), path: k.programs["etcd"], within: time.Minute,
			args: []string{
				"--data-dir", file("etcd/data"), "--unsafe-no-fsync", // after a power failure the projects are deployed anew
				"--listen-client-urls", etcd, "--advertise-client-urls", etcd,
				"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer,
				"--log-level", "warn",
			},
			ready: func(ctx context.Context) error { return answers(ctx, etcd+"/health") },
		},
		kube("apiserver", "kube-apiserver", func(ctx context.Context) error { return k.get(ctx, "/readyz", nil) },
			"--etcd-servers", etcd, "--service-cluster-ip-range", serviceCIDR, "--allow-privileged=true",
			"--bind-address", "127.0.0.1", "--secure-port", strconv.Itoa(k.ports["apiserver"]), "--advertise-address", "127.0.0.1",
			"--endpoint-reconciler-type", "none", "--anonymous-auth=false",
			"--tls-cert-file", k.pki.path("apiserver.crt"), "--tls-private-key-file", k.pki.path("apiserver.key"),
			"--token-auth-file", file("tokens.csv"), "--authorization-mode", "Node,RBAC",
			"--service-account-key-file", k.pki.path("service-accounts.pub"), "--service-account-signing-key-file", k.pki.path("service-accounts.key"),
			"--service-account-issuer", "https://kubernetes.default.svc",
			"--kubelet-certificate-authority", k.pki.path("ca.crt"), "--kubelet-preferred-address-types", "InternalIP",
			"--kubelet-client-certificate", k.pki.path("apiserver-kubelet-client.crt"), "--kubelet-client-key", k.pki.path("apiserver-kubelet-client.key")),
		kube("controller-manager", "kube-controller-manager", running,
			"--kubeconfig", k.kubeconfig(), "--service-account-private-key-file", k.pki.path("service-accounts.key"), "--root-ca-file", k.pki.path("ca.crt"),
			"--use-service-account-credentials", "--allocate-node-cidrs", "--cluster-cidr", podCIDR, "--secure-port", "0", "--leader-elect=false"),
		kube("scheduler", "kube-scheduler", running, "--kubeconfig", k.kubeconfig(), "--secure-port", "0", "--leader-elect=false"),
		containerd,
		kube("kubelet", "kubelet", healthy("kubelet-health"),
			"--config", file("kubelet.yaml"), "--kubeconfig", file("node.kubeconfig"), "--hostname-override", nodeName, "--node-ip", nodeAddress,
			"--root-dir", file("kubelet"), "--cert-dir", file("kubelet/certificates")),
		kube("kube-proxy", "kube-proxy", healthy("kube-proxy-health"), "--config", file("kube-proxy.yaml")),
	}
}

// filesOf lists the configuration that a part reads once, when it starts.
func (k cluster) filesOf(part string) []string {
	files := map[string][]string{
		"apiserver":  {k.pki.path("ca.crt"), filepath.Join(k.folder(), "tokens.csv")},
		"kubelet":    {filepath.Join(k.folder(), "kubelet.yaml"), filepath.Join(k.folder(), "node.kubeconfig")},
		"kube-proxy": {filepath.Join(k.folder(), "kube-proxy.yaml"), k.kubeconfig()},
	}
	return files[part]
}

// get asks the API server as the administrator; the answer, if wanted, is decoded from JSON.
func (k cluster) get(ctx context.Context, path string, answer any) error {
	return k.ask(ctx, http.MethodGet, path, http.NoBody, answer)
}

func (k cluster) ask(ctx context.Context, method, path string, body io.Reader, answer any) error {
	pool, err := k.pki.pool()
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "https://"+loopback(k.ports["apiserver"])+path, body)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+k.admin)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // only read
	if response.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("the API server answers %s to %s %s", response.Status, method, path)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

func (k cluster) nodeReady(ctx context.Context) error {
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := k.get(ctx, "/api/v1/nodes/"+nodeName, &node); err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" {
			if condition.Status == "True" {
				return nil
			}
			return errors.New(condition.Message)
		}
	}
	return errors.New("the node has not reported yet")
}

// pauseImage is the image of every pod's first process.
func (k cluster) pauseImage() string { return k.registry + "/pipeops/pause:" + KubeVersion }

// pushPause makes the pause image out of the one static program and pushes it.
func (k cluster) pushPause(ctx context.Context) error {
	reference, err := name.ParseReference(k.pauseImage(), name.Insecure)
	if err != nil {
		return err
	}
	if _, err := remote.Head(reference, remote.WithContext(ctx)); err == nil {
		return nil
	}
	program, err := os.ReadFile(k.programs["pause"])
	if err != nil {
		return err
	}
	path := filepath.Join(k.folder(), "pause.tar.gz")
	err = writeGzip(path, func(out io.Writer) error {
		archive := tar.NewWriter(out)
		return errors.Join(packContent(archive, "pause", program, 0o755), archive.Close())
	})
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromFile(path, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"},
	})
	if err != nil {
		return err
	}
	if image, err = mutate.AppendLayers(image, layer); err != nil {
		return err
	}
	return pushImage(ctx, k.pauseImage(), image)
}
