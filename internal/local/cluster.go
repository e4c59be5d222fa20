package local

import (
	"bytes"
	"context"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
	"time"
)

//go:embed cluster/*
var clusterFiles embed.FS

var clusterTemplates = template.Must(template.ParseFS(clusterFiles, "cluster/*"))

// The local cluster's fixed places. The node has an address of its own on lo, because with 127.0.0.1 it would have no
// InternalIP: then logs and exec fail, and kube-proxy waits half a minute before its first rule.
const (
	nodeName     = "pipeops-local"
	nodeAddress  = "10.243.0.1"
	podCIDR      = "10.244.0.0/16"
	nodePodCIDR  = "10.244.0.0/24" // the first that the controller manager hands out
	serviceCIDR  = "10.96.0.0/16"
	apiService   = "10.96.0.1"
	bridge       = "pipeops0"
	networkName  = "pipeops"
	clusterState = "/run/pipeops" // what is machine-wide: the lock, and the marker of who has the cluster
)

// marker says which home has the machine's one local cluster: there is one bridge, one node address, one kube-proxy.
type marker struct {
	Home       string `json:"home"`
	Cache      string `json:"cache"`
	Kubeconfig string `json:"kubeconfig"`
	Registry   string `json:"registry"`
}

func markerFile() string { return filepath.Join(clusterState, "cluster.json") }

// StartCluster runs a one-node Kubernetes in <home>/cluster and returns the path of its administrator's kubeconfig.
// The machine has one: if another home has started it, that one is used (and mended, if a part of it died), and
// belongs to that home. The registry, host:port over HTTP, gets the pause image and is the mirror of docker.io; pods
// may pull from any registry at 127.0.0.1. Root only.
func StartCluster(ctx context.Context, c Config, registry string) (string, error) {
	c, err := c.withDefaults()
	if err != nil {
		return "", err
	}
	if err := needRoot("a local Kubernetes", "KUBECONFIG"); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(clusterState, "cluster.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	owner, taken, err := readMarker()
	if err != nil {
		return "", err
	}
	if taken && owner.Home != c.Home {
		if other := (cluster{Config: c.at(owner)}); other.anyAlive() {
			c, registry = other.Config, owner.Registry
		} else if err := other.stop(ctx); err != nil {
			return "", fmt.Errorf("clear away the cluster that ended in %s: %w", owner.Home, err)
		}
	}
	k, err := newCluster(ctx, c, registry)
	if err != nil {
		return "", err
	}
	if !taken { // what an earlier boot noted is void
		if err := ignoring(os.Remove(k.settingsFile()), os.ErrNotExist); err != nil {
			return "", err
		}
	}
	return k.kubeconfig(), k.start(ctx)
}

// StopCluster ends the local cluster if it belongs to that home, and takes away exactly what it made: processes,
// containers, mounts, bridge, addresses, firewall chains, kernel settings. The cluster's data stays.
func StopCluster(ctx context.Context, c Config) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return nil
	}
	unlock, err := lock(ctx, filepath.Join(clusterState, "cluster.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	owner, taken, err := readMarker()
	if err != nil {
		return err
	}
	k := cluster{Config: c}
	ours := taken && owner.Home == c.Home || !taken && k.anyAlive() // the second: somebody removed the marker
	if !ours {
		return nil
	}
	return k.stop(ctx)
}

func readMarker() (marker, bool, error) {
	content, err := os.ReadFile(markerFile())
	if errors.Is(err, os.ErrNotExist) {
		return marker{}, false, nil
	}
	if err != nil {
		return marker{}, false, err
	}
	var m marker
	if err := json.Unmarshal(content, &m); err != nil {
		return marker{}, false, fmt.Errorf("read %s: %w", markerFile(), err)
	}
	return m, true, nil
}

// at is this configuration for the home that has the cluster.
func (c Config) at(m marker) Config {
	c.Home, c.Cache = m.Home, m.Cache
	return c
}

// cluster is the local cluster of one home. Its fields beside Config are set by newCluster.
type cluster struct {
	Config
	registry string
	pki      pki
	ports    map[string]int
	programs map[string]string // by name: kube, pause, etcd, containerd
	admin    string            // the administrator's token
}

func (k cluster) folder() string     { return filepath.Join(k.Home, "cluster") }
func (k cluster) kubeconfig() string { return filepath.Join(k.folder(), "kubeconfig") }

// clusterParts, in the order of starting.
var clusterParts = []string{"etcd", "apiserver", "controller-manager", "scheduler", "containerd", "kubelet", "kube-proxy"}

func clusterPart(name string) string { return filepath.Join("cluster", name) }

func (k cluster) anyAlive() bool {
	for _, part := range clusterParts {
		if started, err := readStarted(startedFile(k.Home, clusterPart(part))); err == nil && started.alive() {
			return true
		}
	}
	return false
}

// newCluster finds the programs and writes what the parts read. Nothing of it changes while the cluster runs.
func newCluster(ctx context.Context, c Config, registry string) (cluster, error) {
	k := cluster{Config: c, registry: registry, pki: pki{filepath.Join(c.Home, "cluster", "pki")}, ports: map[string]int{}, programs: map[string]string{}}
	err := k.findPrograms()
	if err != nil {
		return k, err
	}
	for _, name := range []string{"etcd", "etcd-peer", "apiserver", "kubelet-health", "kube-proxy-health"} {
		port, err := c.port(ctx, name)
		if err != nil {
			return k, err
		}
		k.ports[name] = port
	}
	if err := fitsSocket(filepath.Join(k.folder(), "kubelet", "pod-resources", "kubelet.sock")); err != nil {
		return k, err
	}
	for _, folder := range []string{"cni", "containerd", "kubelet"} {
		if err := os.MkdirAll(filepath.Join(k.folder(), folder), 0o700); err != nil {
			return k, err
		}
	}
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(apiService), net.ParseIP(nodeAddress)}
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	if err := k.pki.ensure(names, addresses, net.ParseIP(nodeAddress)); err != nil {
		return k, fmt.Errorf("make the local cluster's certificates: %w", err)
	}
	if k.admin, err = secret(filepath.Join(k.folder(), "admin-token")); err != nil {
		return k, err
	}
	return k, k.writeFiles()
}

func (k cluster) findPrograms() error {
	var problems []error
	for _, tool := range []struct{ name, version, binary string }{
		{"kube", KubeVersion, "kube"}, {"kube", KubeVersion, "pause"}, {"etcd", EtcdVersion, "etcd"},
	} {
		path, err := k.tool(tool.name, tool.version, tool.binary)
		problems = append(problems, err)
		k.programs[tool.binary] = path
	}
	problems = append(problems, needPrograms(map[string]string{
		"containerd": "containerd", "runc": "runc", "iptables": "iptables", "ip": "iproute2",
	}))
	k.programs["containerd"], _ = findProgram("containerd") // its absence is a problem by now
	if k.pluginsFolder() == "" {
		problems = append(problems, &MissingError{What: "the network plugins of containers", Fix: "apt-get install --no-install-recommends containernetworking-plugins"})
	}
	return errors.Join(problems...)
}

func (k cluster) pluginsFolder() string {
	for _, folder := range []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		if _, err := os.Stat(filepath.Join(folder, "bridge")); err == nil {
			return folder
		}
	}
	return ""
}

func (k cluster) writeFiles() error {
	node, err := secret(filepath.Join(k.folder(), "node-token"))
	if err != nil {
		return err
	}
	tokens := fmt.Sprintf("%s,admin,admin,\"system:masters\"\n%s,system:node:%s,node,\"system:nodes\"\n", k.admin, node, nodeName)
	if err := writeFile(filepath.Join(k.folder(), "tokens.csv"), []byte(tokens), 0o600); err != nil {
		return err
	}
	authority, err := os.ReadFile(k.pki.path("ca.crt"))
	if err != nil {
		return err
	}
	values := map[string]string{
		"Folder": k.folder(), "Node": nodeName, "NodeAddress": nodeAddress, "PodCIDR": podCIDR, "NodePodCIDR": nodePodCIDR,
		"Bridge": bridge, "Network": networkName, "Cgroup": cgroup(k.Home), "Plugins": k.pluginsFolder(), "Registry": k.registry, "Pause": k.pauseImage(),
		"KubeletHealth": strconv.Itoa(k.ports["kubelet-health"]), "ProxyHealth": strconv.Itoa(k.ports["kube-proxy-health"]),
		"ResolvConf": resolvConf(), "API": loopback(k.ports["apiserver"]), "CA": base64.StdEncoding.EncodeToString(authority),
	}
	for _, file := range []struct{ template, path, user, token string }{
		{template: "containerd.toml", path: "containerd/containerd.toml"},
		{template: "network.conflist", path: "cni/10-pipeops.conflist"},
		{template: "kubelet.yaml", path: "kubelet.yaml"},
		{template: "kube-proxy.yaml", path: "kube-proxy.yaml"},
		{template: "kubeconfig.yaml", path: "kubeconfig", user: "admin", token: k.admin},
		{template: "kubeconfig.yaml", path: "node.kubeconfig", user: "node", token: node},
	} {
		values["User"], values["Token"] = file.user, file.token
		var content bytes.Buffer
		if err := clusterTemplates.ExecuteTemplate(&content, file.template, values); err != nil {
			return err
		}
		if err := writeFile(filepath.Join(k.folder(), file.path), content.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// resolvConf is what pods use to look up names outside: of a local stub resolver they need what stands behind it.
func resolvConf() string {
	if _, err := os.Stat("/run/systemd/resolve/resolv.conf"); err == nil {
		return "/run/systemd/resolve/resolv.conf"
	}
	return "/etc/resolv.conf"
}

// start brings every part up, those that run already included, and returns when the node takes pods.
func (k cluster) start(ctx context.Context) error {
	fresh := !k.anyAlive()
	if fresh {
		if other := otherClusters(); len(other) > 0 {
			return fmt.Errorf("another Kubernetes runs on this machine (%s); set KUBECONFIG to use it", other[0])
		}
		k.Progress("starting a local Kubernetes " + KubeVersion)
	}
	// The marker comes first: what follows is found and taken away by it, whatever happens.
	content, err := json.Marshal(marker{Home: k.Home, Cache: k.Cache, Kubeconfig: k.kubeconfig(), Registry: k.registry})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(clusterState, 0o755); err != nil { //nolint:gosec // holds no secret
		return err
	}
	if err := writeFile(markerFile(), content, 0o644); err != nil {
		return err
	}
	if err := makeCgroup(cgroup(k.Home)); err != nil {
		return fmt.Errorf("make the control group of the local cluster's pods: %w", err)
	}
	if err := k.prepareNetwork(ctx); err != nil {
		return fmt.Errorf("prepare the local cluster's network: %w", err)
	}
	for _, part := range k.daemons() {
		if err := part.start(ctx, k.Config); err != nil {
			return err
		}
	}
	if err := k.awaitNode(ctx); err != nil {
		return fmt.Errorf("wait for the local cluster's node: %w%s", err, lastLines(filepath.Join(k.folder(), "kubelet", "log"), 12))
	}
	if fresh {
		k.Progress("the local Kubernetes is ready")
	}
	return nil
}

func (k cluster) awaitNode(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("not ready within 2 minutes"))
	defer cancel()
	for {
		err := errors.Join(k.nodeReady(ctx), k.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil))
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
