package local

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// cgroup is the name of the control group, below each hierarchy's root, of all containers of that home.
func cgroup(home string) string { return fmt.Sprintf("pipeops-%.4x", sha256.Sum256([]byte(home))) }

// makeCgroup makes it in every hierarchy: the kubelet wants its root there.
func makeCgroup(name string) error {
	hierarchies := []string{"/sys/fs/cgroup"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil { // version 1: a folder for each controller
		hierarchies, _ = filepath.Glob("/sys/fs/cgroup/*")
	}
	var problems []error
	for _, hierarchy := range hierarchies {
		if err := os.MkdirAll(filepath.Join(hierarchy, name), 0o755); err != nil { //nolint:gosec // the mode means nothing there
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// removeCgroup removes the part's control group with all below it, as far as they hold no process, and the home's if
// no other part has one there.
func removeCgroup(home, part string) {
	for _, hierarchy := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		roots, _ := filepath.Glob(hierarchy + cgroup(home))
		for _, root := range roots {
			folders := []string{root}
			_ = filepath.WalkDir(filepath.Join(root, part), func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					folders = append(folders, path)
				}
				return nil
			})
			slices.Reverse(folders) // from below
			removeIfEmpty(folders...)
		}
	}
}
