package local

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"text/template"
	"time"
)

//go:embed buildkitd.toml
var buildkitdConfig string

var buildkitdTemplate = template.Must(template.New("buildkitd.toml").Parse(buildkitdConfig))

// StartBuildkitd runs a private buildkitd with runc and overlayfs in <home>/buildkitd, and returns its address,
// unix:///…/buildkitd.sock. The registry, host:port over HTTP, also serves as mirror of docker.io; empty: there is
// none. Root only.
func StartBuildkitd(ctx context.Context, c Config, registry string) (string, error) {
	c, err := c.withDefaults()
	if err != nil {
		return "", err
	}
	unlock, err := c.lockPart(ctx, "buildkitd")
	if err != nil {
		return "", err
	}
	defer unlock()
	program, err := c.tool("buildkit", BuildKitVersion, "buildkitd")
	if err != nil {
		return "", err
	}
	if err := needRoot("buildkitd", "BUILDKIT_HOST"); err != nil {
		return "", err
	}
	if err := needPrograms(map[string]string{"runc": "runc"}); err != nil {
		return "", err
	}
	folder := filepath.Join(c.Home, "buildkitd")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", err
	}
	socket := filepath.Join(folder, "buildkitd.sock")
	if err := fitsSocket(socket); err != nil {
		return "", err
	}
	var config bytes.Buffer
	if err := buildkitdTemplate.Execute(&config, map[string]string{"Folder": folder, "Registry": registry, "Cgroup": cgroup(c.Home)}); err != nil {
		return "", err
	}
	if err := writeFile(filepath.Join(folder, "buildkitd.toml"), config.Bytes(), 0o600); err != nil {
		return "", err
	}
	part := daemon{
		part: "buildkitd", path: program, within: 30 * time.Second,
		files: []string{filepath.Join(folder, "buildkitd.toml")},
		args:  []string{"--config", filepath.Join(folder, "buildkitd.toml"), "--addr", "unix://" + socket},
		env:   []string{"BUILDKIT_STEP_LOG_MAX_SIZE=16777216", "BUILDKIT_STEP_LOG_MAX_SPEED=1048576"},
		ready: func(ctx context.Context) error { return accepts(ctx, "unix", socket) },
		// What a killed daemon left: its steps' processes hold mounts that the new one would trip over.
		before: func(ctx context.Context) error { return clearContainers(ctx, folder) },
	}
	return "unix://" + socket, part.start(ctx, c)
}

// StopBuildkitd ends the daemon of that home, the containers of steps that it ran, and their mounts; the cache stays.
func StopBuildkitd(ctx context.Context, c Config) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	unlock, err := c.lockPart(ctx, "buildkitd")
	if err != nil {
		return err
	}
	defer unlock()
	err = errors.Join(
		end(ctx, c, "buildkitd", endingOf("buildkitd")),
		clearContainers(ctx, filepath.Join(c.Home, "buildkitd")),
	)
	removeCgroup(c.Home, "buildkit")
	return err
}

// accepts wants a connection to be accepted there.
func accepts(ctx context.Context, network, address string) error {
	connection, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return connection.Close()
}

func needRoot(part, variable string) error {
	if os.Getuid() == 0 {
		return nil
	}
	return &MissingError{What: "the right to run " + part + ", which needs root,", Fix: "sudo -E make up, or set " + variable + " to one of yours"}
}

// needPrograms wants each program, by its Debian package, on the path that parts get.
func needPrograms(packages map[string]string) error {
	var problems []error
	for program, pkg := range packages {
		if _, err := findProgram(program); err != nil {
			problems = append(problems, &MissingError{What: program, Fix: "apt-get install --no-install-recommends " + pkg})
		}
	}
	return errors.Join(problems...)
}

func findProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, folder := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(folder, name)); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

// fitsSocket: the kernel takes 107 bytes at most.
func fitsSocket(path string) error {
	if len(path) > 107 {
		return fmt.Errorf("socket path %s is longer than 107 bytes; set PIPEOPS_HOME to a shorter one", path)
	}
	return nil
}
