package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// identity names one process for ever: pids are used again, a pid with its start time and boot is not.
type identity struct {
	Pid   int    `json:"pid"`
	Start string `json:"start"` // field 22 of /proc/<pid>/stat, in ticks since boot
	Boot  string `json:"boot"`  // /proc/sys/kernel/random/boot_id
}

// identify reads the identity of a live process; a zombie isn't one.
func identify(pid int) (identity, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, err
	}
	// The name, field 2, is in brackets and may hold anything; state is field 3, start time field 22.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return identity{}, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	if state := fields[0][0]; state == 'Z' || state == 'X' {
		// If it was a child of ours, let it go; else its parent does.
		_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		return identity{}, os.ErrProcessDone
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity{}, err
	}
	return identity{Pid: pid, Start: string(fields[19]), Boot: string(bytes.TrimSpace(boot))}, nil
}

func (id identity) alive() bool {
	now, err := identify(id.Pid)
	return err == nil && now == id
}

// signal sends it to this very process; one that has gone is no error.
func (id identity) signal(signal syscall.Signal) error {
	fd, err := unix.PidfdOpen(id.Pid, 0)
	if err != nil {
		return ignoring(err, syscall.ESRCH)
	}
	defer unix.Close(fd) //nolint:errcheck // only looked at
	if !id.alive() {
		return nil
	}
	return ignoring(unix.PidfdSendSignal(fd, signal, nil, 0), syscall.ESRCH)
}

// await returns nil once the process has gone, or the cause of ctx.
func (id identity) await(ctx context.Context) error {
	fd, err := unix.PidfdOpen(id.Pid, 0)
	if err != nil {
		return ignoring(err, syscall.ESRCH)
	}
	defer unix.Close(fd) //nolint:errcheck // only looked at
	for id.alive() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		// The pidfd becomes readable when the process ends; the timeout is for ctx.
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100) //nolint:gosec // a file descriptor
		if err := ignoring(err, syscall.EINTR); err != nil {
			return err
		}
	}
	return nil
}

// startedPart is what a home keeps of a part that was started: who it is, and the form that it was started in.
type startedPart struct {
	identity
	Form string `json:"form"`
}

func (s startedPart) write(path string) error {
	content, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return writeFile(path, content, 0o600)
}

func readStarted(path string) (startedPart, error) {
	var s startedPart
	content, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(content, &s)
}

// marked returns the live processes with that variable, as name=value, in the environment that they started with.
func marked(variable string) []identity {
	return processes(func(folder string) bool {
		environ, err := os.ReadFile(filepath.Join(folder, "environ"))
		return err == nil && slices.Contains(strings.Split(string(environ), "\x00"), variable)
	})
}

// workingIn returns the live processes whose working folder is that one.
func workingIn(path string) []identity {
	return processes(func(folder string) bool {
		cwd, err := os.Readlink(filepath.Join(folder, "cwd"))
		return err == nil && cwd == path
	})
}

func processes(wanted func(procFolder string) bool) []identity {
	folders, _ := filepath.Glob("/proc/[0-9]*")
	var found []identity
	for _, folder := range folders {
		pid, err := strconv.Atoi(filepath.Base(folder))
		if err != nil || !wanted(folder) {
			continue
		}
		if id, err := identify(pid); err == nil {
			found = append(found, id)
		}
	}
	return found
}

func ignoring(err error, expected ...error) error {
	if slices.ContainsFunc(expected, func(e error) bool { return errors.Is(err, e) }) {
		return nil
	}
	return err
}
