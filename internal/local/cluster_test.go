package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// isolated runs the test again in a process with a network and mounts of its own, because there is one cluster per
// network, and other tests use the machine's. In that process it returns true.
func isolated(t *testing.T) bool {
	t.Helper()
	const mark = "PIPEOPS_TEST_ISOLATED"
	if os.Getenv(mark) != "" {
		enterIsolation(t)
		return true
	}
	again := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	again.Env = append(os.Environ(), mark+"=1")
	again.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	output, err := again.CombinedOutput()
	if err != nil {
		t.Fatalf("in a network of its own: %v\n%s", err, output)
	}
	return false
}

func enterIsolation(t *testing.T) {
	t.Helper()
	const layers = "/mnt" // in our own mounts only
	overlay := fmt.Sprintf("lowerdir=/var/lib,upperdir=%s/upper,workdir=%s/work", layers, layers)
	if err := errors.Join(
		syscall.Mount("tmpfs", layers, "tmpfs", 0, ""),
		os.Mkdir(layers+"/upper", 0o755), os.Mkdir(layers+"/work", 0o755),
		syscall.Mount("overlay", "/var/lib", "overlay", 0, overlay),
		syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"),
		syscall.Mount("tmpfs", "/var/log", "tmpfs", 0, "mode=755"),
		run(t.Context(), "ip", "link", "set", "lo", "up"),
	); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/var/lib/cni", "/var/lib/kubelet"} { // of the machine's cluster
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

// traces are what a cluster may leave on a machine.
func traces(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, command := range []string{
		"iptables-save | grep -e ^-A -e '^:.* - '", "ip6tables-save | grep -e ^-A -e '^:.* - '", // rules and chains of one's own
		"ip -br address", "ip route", "cat /proc/self/mounts",
		"find /run /var/log /var/lib/cni /var/lib/kubelet | grep -v ^/run/mount", // the program mount makes that
	} {
		// Without the status: grep has one when it finds nothing, find when a folder isn't there.
		output, err := exec.CommandContext(t.Context(), "/bin/sh", "-c", "PATH=$PATH:/sbin:/usr/sbin; "+command+"; true").Output()
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		found[command] = string(output)
	}
	for _, setting := range kernelSettings {
		value, _ := os.ReadFile(filepath.Join("/proc/sys", setting))
		found[setting] = string(value)
	}
	return found
}

func TestClusterRunsPodsIsMendedSharedAndGoesWithoutTrace(t *testing.T) {
	t.Parallel()
	if !isolated(t) {
		return
	}
	if err := errors.Join(os.Mkdir(clusterState, 0o755), os.WriteFile(filepath.Join(clusterState, "cluster.lock"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	before := traces(t)
	c := testHome(t)
	registry, err := StartRegistry(t.Context(), c, registryProgram(t), c.Home)
	if err != nil {
		t.Fatal(err)
	}
	if err := EnsureBaseImages(t.Context(), c, registry, Busybox); err != nil {
		t.Fatal(err)
	}
	start := func(c Config) string {
		t.Helper()
		kubeconfig, err := StartCluster(t.Context(), c, registry)
		if err != nil {
			t.Fatal(err)
		}
		return kubeconfig
	}
	kubeconfig := start(c)
	k, err := newCluster(t.Context(), c, registry)
	if err != nil {
		t.Fatal(err)
	}

	// One image by the registry's own address, one by its name on Docker Hub.
	for name, image := range map[string]string{"by-address": registry + "/library/busybox:stable", "by-name": "busybox:stable"} {
		address := runPod(t, k, name, image)
		eventually(t, func(ctx context.Context) error { return answers(ctx, "http://"+address+":8080/") })
	}

	server, kubelet := pid(t, c, "cluster/apiserver"), pid(t, c, "cluster/kubelet")
	if err := errors.Join(kubelet.signal(syscall.SIGKILL), kubelet.await(t.Context())); err != nil {
		t.Fatal(err)
	}
	elsewhere := testHome(t)
	if shared := start(elsewhere); shared != kubeconfig {
		t.Errorf("another home gets %s, want the running cluster's %s", shared, kubeconfig)
	}
	if pid(t, c, "cluster/apiserver") != server || !pid(t, c, "cluster/kubelet").alive() {
		t.Error("a start with a dead kubelet must bring that back and adopt the rest")
	}
	if err := Down(t.Context(), elsewhere); err != nil {
		t.Fatal(err)
	}
	if !server.alive() {
		t.Error("the other home's Down ended the cluster")
	}

	if err := Down(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, traces(t)); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
	left := slices.Concat(containerProcesses(c.Home), processes(func(folder string) bool {
		environ, err := os.ReadFile(filepath.Join(folder, "environ"))
		return err == nil && bytes.Contains(environ, []byte("PIPEOPS_PART="+c.Home+":"))
	}))
	if len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
	if groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + cgroup(c.Home)); len(groups) > 0 {
		t.Errorf("control groups left: %v", groups)
	}
}

// runPod starts a pod that serves HTTP and returns its address.
func runPod(t *testing.T, k cluster, name, image string) string {
	t.Helper()
	pod := map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"containers": []any{map[string]any{
			"name": "web", "image": image, "command": []string{"sh", "-c", "echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"},
		}}},
	}
	body, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.ask(t.Context(), http.MethodPost, "/api/v1/namespaces/default/pods", bytes.NewReader(body), nil); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Status struct {
			Phase, PodIP      string
			ContainerStatuses []struct {
				State struct {
					Waiting struct{ Reason, Message string }
				}
			}
		}
	}
	eventually(t, func(ctx context.Context) error {
		if err := k.get(ctx, "/api/v1/namespaces/default/pods/"+name, &got); err != nil {
			return err
		}
		if got.Status.Phase != "Running" || got.Status.PodIP == "" {
			return fmt.Errorf("pod %s: %+v", name, got.Status)
		}
		return nil
	})
	return got.Status.PodIP
}

func eventually(t *testing.T, condition func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("not within a minute"))
	defer cancel()
	for {
		err := condition(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%v: %v", context.Cause(ctx), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestFirewallRemovalsTouchOnlyOurs(t *testing.T) {
	t.Parallel()
	saved := strings.Join([]string{
		"# Generated", "*nat", ":PREROUTING ACCEPT [1:2]", ":DOCKER - [0:0]", ":KUBE-SERVICES - [0:0]", ":KUBE-SVC-X - [0:0]",
		`-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`,
		"-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
		`-A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -m comment --comment "pipeops local cluster" -j MASQUERADE`,
		"-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-X", "COMMIT",
		"*filter", ":INPUT ACCEPT [0:0]", "-A INPUT -p tcp --dport 22 -j ACCEPT", "COMMIT", "",
	}, "\n")
	want := strings.Join([]string{
		"*nat", `-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`,
		`-D POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -m comment --comment "pipeops local cluster" -j MASQUERADE`,
		"-F KUBE-SERVICES", "-F KUBE-SVC-X", "-X KUBE-SERVICES", "-X KUBE-SVC-X", "COMMIT", "*filter", "COMMIT", "",
	}, "\n")
	if diff := cmp.Diff(want, firewallRemovals(saved)); diff != "" {
		t.Errorf("removals (-want +got):\n%s", diff)
	}
	if got := firewallRemovals("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n"); got != "" {
		t.Errorf("with nothing of ours there: %q", got)
	}
}
