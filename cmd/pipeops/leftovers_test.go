package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// leavesNothing waits until nothing of builds and deleted pods is left.
func leavesNothing(t *testing.T, s *system) {
	t.Helper()
	eventually(t, 30*time.Second, "nothing is left behind", func() error { return s.leftovers(nil) })
}

// leftovers says what is there that no running build and no pod of the cluster needs: workspaces, processes and mounts.
// A frozen runner can't have cleaned up.
func (s *system) leftovers(frozen *process) error {
	var found []error
	for _, r := range s.runners {
		if r == frozen {
			continue
		}
		for _, pattern := range []string{"*bld_*", "*/*bld_*"} {
			left, err := filepath.Glob(filepath.Join(r.home, "workspaces", pattern))
			found = append(found, err)
			for _, workspace := range left {
				found = append(found, fmt.Errorf("workspace %s", workspace))
			}
		}
	}
	pods, err := s.pods()
	if err != nil {
		return err
	}
	// Of this BuildKit's: others may run on the machine.
	steps := filepath.Join(filepath.Dir(strings.TrimPrefix(s.buildkit, "unix://")), "root", "runc-overlayfs", "executor")
	processes, err := containerProcesses()
	if err != nil {
		return err
	}
	for pid, cgroup := range processes {
		if pod := podIn.FindStringSubmatch(cgroup); pod != nil && !pods[pod[1]] {
			found = append(found, fmt.Errorf("process %s of pod %s, which is gone", pid, pod[1]))
		} else if step := stepIn.FindStringSubmatch(cgroup); step != nil && exists(filepath.Join(steps, step[1])) {
			found = append(found, fmt.Errorf("process %s of build step %s", pid, step[1]))
		}
	}
	all := strings.Join(slices.Collect(maps.Values(processes)), "\n")
	for pid := range processes {
		// A shim outlives its sandbox's processes only for a moment.
		args, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		if shim := shimOf.FindSubmatch(args); shim != nil && !strings.Contains(all, string(shim[1])) {
			found = append(found, fmt.Errorf("shim %s of sandbox %s, which is gone", pid, shim[1]))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		at := strings.Fields(line)[4]
		if pod := podIn.FindStringSubmatch(at); pod != nil && !pods[pod[1]] {
			found = append(found, fmt.Errorf("mount %s of a pod that is gone", at))
		} else if strings.HasPrefix(at, steps) || strings.HasPrefix(at, s.dir) {
			found = append(found, fmt.Errorf("mount %s of a build", at))
		}
	}
	return errors.Join(found...)
}

// stepIn finds the step of a build in the path of a cgroup.
var stepIn = regexp.MustCompile(`/buildkit/([0-9a-z]+)`)

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// shimOf finds the sandbox in the arguments of containerd's shim.
var shimOf = regexp.MustCompile("containerd-shim.*\x00-id\x00([0-9a-f]{64})\x00")

// podIn finds a pod's uid in the path of a cgroup, or of a volume.
var podIn = regexp.MustCompile(`/pods?/?([0-9a-f]{8}-[0-9a-f-]{27})(?:/|$)`)

func (s *system) pods() (map[string]bool, error) {
	list, err := cluster4(s.t, s.kubeconfig).CoreV1().Pods("").List(s.t.Context(), metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	uids := map[string]bool{}
	for _, pod := range list.Items {
		uids[string(pod.UID)] = true
	}
	return uids, nil
}

// containerProcesses gives the cgroups of all processes of this machine, by pid.
func containerProcesses() (map[string]string, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil { // else it has just ended
			out[filepath.Base(filepath.Dir(file))] = string(b)
		}
	}
	return out, nil
}
