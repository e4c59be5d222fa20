package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stop ends the cluster of this home and takes away what it left. The caller holds the machine-wide lock.
func (k cluster) stop(ctx context.Context) error {
	finish := func(part string, grace time.Duration) error {
		return end(ctx, k.Config, clusterPart(part), syscall.SIGTERM, grace)
	}
	// First who would start containers anew, then the containers, then the rest.
	problems := []error{finish("kubelet", 10*time.Second), finish("kube-proxy", 5*time.Second)}
	sockets := k.shimSockets()
	problems = append(problems,
		clearContainers(ctx, k.folder()),
		finish("containerd", 10*time.Second), // its shims go by its mark
		clearContainers(ctx, k.folder()),
	)
	for _, part := range []string{"scheduler", "controller-manager", "apiserver", "etcd"} {
		problems = append(problems, finish(part, 15*time.Second))
	}
	for _, socket := range sockets {
		problems = append(problems, ignoring(os.Remove(socket), os.ErrNotExist))
	}
	removeIfEmpty("/run/containerd/s", "/run/containerd")
	if len(otherClusters()) == 0 {
		problems = append(problems, k.clearNetwork(ctx))
		removeEmptyCgroups("kubepods")
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return ignoring(os.Remove(markerFile()), os.ErrNotExist)
}

// shimSockets lists the sockets of the containers' shims: they lie outside of our folders.
func (k cluster) shimSockets() []string {
	files, _ := filepath.Glob(filepath.Join(k.folder(), "containerd/state/io.containerd.runtime.v2.task/*/*/address"))
	var sockets []string
	for _, file := range files {
		if content, err := os.ReadFile(file); err == nil { //nolint:gosec // in our folder
			sockets = append(sockets, strings.TrimPrefix(strings.TrimSpace(string(content)), "unix://"))
		}
	}
	return sockets
}

// otherClusters names the processes of a Kubernetes that isn't ours but shares our network.
func otherClusters() []string {
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil
	}
	var found []string
	for _, id := range processes(func(folder string) bool {
		network, err := os.Readlink(filepath.Join(folder, "ns/net"))
		if err != nil || network != ours {
			return false
		}
		name, err := os.ReadFile(filepath.Join(folder, "comm"))
		return err == nil && slices.Contains([]string{"kubelet", "kube-proxy", "k3s", "k3s-server", "k3s-agent", "k0s", "rke2"}, strings.TrimSpace(string(name)))
	}) {
		if name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(id.Pid), "comm")); err == nil {
			found = append(found, strings.TrimSpace(string(name))+", process "+strconv.Itoa(id.Pid))
		}
	}
	return found
}

func removeIfEmpty(folders ...string) {
	for _, folder := range folders {
		_ = os.Remove(folder) // refuses when something is in it
	}
}

// removeEmptyCgroups removes that cgroup and those below it in every hierarchy; the kernel keeps what holds processes.
func removeEmptyCgroups(name string) {
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		roots, _ := filepath.Glob(pattern)
		for _, root := range roots {
			var folders []string
			_ = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					folders = append(folders, path)
				}
				return nil
			})
			slices.Reverse(folders)
			removeIfEmpty(folders...)
		}
	}
}
