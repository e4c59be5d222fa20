package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// stop ends the cluster of this home and takes away what it left. The caller holds the machine-wide lock.
func (k cluster) stop(ctx context.Context) error {
	finish := func(part string) error { return end(ctx, k.Config, clusterPart(part), endingOf(part)) }
	// First who would start containers anew, then the containers, then the rest.
	problems := []error{finish("kubelet"), finish("kube-proxy")}
	farFiles := k.farFiles()
	problems = append(problems,
		clearContainers(ctx, k.folder()),
		finish("containerd"), // its shims go by its mark
		clearContainers(ctx, k.folder()),
	)
	for _, part := range []string{"scheduler", "controller-manager", "apiserver", "etcd"} {
		problems = append(problems, finish(part))
	}
	problems = append(problems, removeFarFiles(farFiles))
	removeCgroup(k.Home, "kubepods")
	if len(otherClusters()) == 0 {
		problems = append(problems, k.clearNetwork(ctx))
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return ignoring(os.Remove(markerFile()), os.ErrNotExist)
}

// farFiles lists what containers have outside of our folders: their shims' sockets and the network plugins' notes.
func (k cluster) farFiles() []string {
	tasks, _ := filepath.Glob(filepath.Join(k.folder(), "containerd/state/io.containerd.runtime.v2.task/*/*"))
	var files []string
	for _, task := range tasks {
		if socket, err := os.ReadFile(filepath.Join(task, "address")); err == nil {
			files = append(files, strings.TrimPrefix(strings.TrimSpace(string(socket)), "unix://"))
		}
		notes, _ := filepath.Glob("/var/lib/cni/results/*-" + filepath.Base(task) + "-*")
		files = append(files, notes...)
	}
	links, _ := filepath.Glob("/var/log/containers/*")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, k.folder()+"/") {
			files = append(files, link)
		}
	}
	return files
}

// removeFarFiles removes those, what the kubelet keeps for device plugins, and the folders if they are empty then.
func removeFarFiles(files []string) error {
	if len(otherClusters()) == 0 {
		plugins, _ := filepath.Glob("/var/lib/kubelet/device-plugins/*")
		files = append(files, plugins...)
	}
	var problems []error
	for _, file := range files {
		problems = append(problems, ignoring(os.Remove(file), os.ErrNotExist))
	}
	removeIfEmpty("/run/containerd/s", "/run/containerd", "/var/lib/cni/results", "/var/lib/cni", "/var/log/containers",
		"/var/lib/kubelet/device-plugins", "/var/lib/kubelet")
	return errors.Join(problems...)
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
