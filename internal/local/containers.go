package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// clearContainers kills the processes of containers whose root file system lies below that folder, and unmounts what
// is mounted below it.
func clearContainers(ctx context.Context, folder string) error {
	for _, id := range containerProcesses(folder) {
		if err := errors.Join(id.signal(syscall.SIGKILL), id.await(ctx)); err != nil {
			return fmt.Errorf("kill process %d of a container in %s: %w", id.Pid, folder, err)
		}
	}
	mounts, err := mountsBelow(folder)
	if err != nil {
		return err
	}
	var problems []error
	for _, mount := range mounts {
		// Whoever mounted it was quicker, and may have removed the folder too.
		if err := ignoring(syscall.Unmount(mount, syscall.MNT_DETACH), syscall.EINVAL, syscall.ENOENT); err != nil {
			problems = append(problems, fmt.Errorf("unmount %s: %w", mount, err))
		}
	}
	return errors.Join(problems...)
}

// containerProcesses finds processes by the overlay that they have as root: its layers lie below the folder.
func containerProcesses(folder string) []identity {
	below := "=" + folder + "/"
	return processes(func(proc string) bool {
		content, err := os.ReadFile(filepath.Join(proc, "mountinfo"))
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(content)) {
			// id parent major:minor root mountpoint options … - type source super-options
			fields := strings.Fields(line)
			if len(fields) > 9 && fields[4] == "/" && strings.Contains(line, " - overlay ") &&
				(strings.Contains(line, below) || strings.Contains(line, ":"+folder+"/")) {
				return true
			}
		}
		return false
	})
}

// mountsBelow lists mount points below the folder, the deepest and latest first.
func mountsBelow(folder string) ([]string, error) {
	content, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], folder+"/") {
			found = append(found, unescapeMount(fields[1]))
		}
	}
	slices.Reverse(found)
	return found, nil
}

// unescapeMount undoes the kernel's octal escapes of blanks and backslashes.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
