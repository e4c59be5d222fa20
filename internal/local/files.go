package local

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// account is the user that runs a part.
type account struct {
	name     string
	uid, gid int
}

func findAccount(name string) (*account, error) {
	found, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(found.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(found.Gid)
	return &account{name: name, uid: uid, gid: gid}, err
}

func (a *account) credential() *syscall.Credential {
	return &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)} //nolint:gosec // ids of the system
}

// canReach says which folder above path that user can't enter.
func (a *account) canReach(path string) error {
	for folder := filepath.Dir(path); folder != "/"; folder = filepath.Dir(folder) {
		info, err := os.Stat(folder)
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if ok && int(stat.Uid) != a.uid && int(stat.Gid) != a.gid && info.Mode()&0o001 == 0 {
			return fmt.Errorf("user %s can't enter %s; set PIPEOPS_HOME to a folder that all may pass, such as /var/lib/pipeops", a.name, folder)
		}
	}
	return nil
}

// lock waits for the exclusive lock on a file, which ends with the process at the latest.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil { //nolint:gosec // as the home
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for the lock on %s: %w", path, context.Cause(ctx)), file.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lockPart serialises starting and stopping one part, over processes.
func (c Config) lockPart(ctx context.Context, part string) (unlock func(), err error) {
	return lock(ctx, filepath.Join(c.Home, part+".lock"))
}

// writeFile replaces a file as a whole: readers see the old or the new content.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	err = errors.Join(err, file.Chmod(mode), file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}

// secret returns the random hexadecimal secret kept in a file of mode 0600, made at the first call.
func secret(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err == nil && len(content) > 0 {
		return strings.TrimSpace(string(content)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	made := strings.ToLower(rand.Text())
	return made, writeFile(path, []byte(made+"\n"), 0o600)
}

// port returns the loopback port of that name, chosen at the first call and kept in <home>/ports.json.
func (c Config) port(ctx context.Context, name string) (int, error) {
	path := filepath.Join(c.Home, "ports.json")
	unlock, err := lock(ctx, path+".lock")
	if err != nil {
		return 0, err
	}
	defer unlock()
	ports := map[string]int{}
	content, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(content, &ports)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("read kept ports %s: %w", path, err)
	}
	if port, ok := ports[name]; ok {
		return port, nil
	}
	taken := map[int]bool{}
	for _, port := range ports {
		taken[port] = true
	}
	port, err := freePort(taken)
	if err != nil {
		return 0, fmt.Errorf("choose a port for %s: %w", name, err)
	}
	ports[name] = port
	content, err = json.MarshalIndent(ports, "", "  ")
	if err != nil {
		return 0, err
	}
	return port, writeFile(path, append(content, '\n'), 0o644)
}

// freePort stays below the range that outgoing connections take their ports from (32768 and up), so that a kept port
// isn't found in use by one of them later.
func freePort(taken map[int]bool) (int, error) {
	const low, high = 20000, 32000
	var last error
	for range 200 {
		offset, err := rand.Int(rand.Reader, big.NewInt(high-low))
		if err != nil {
			return 0, err
		}
		port := low + int(offset.Int64())
		if taken[port] {
			continue
		}
		if last = portFree(port); last == nil {
			return port, nil
		}
	}
	return 0, last
}

func portFree(port int) error {
	listener, err := net.Listen("tcp", loopback(port)) //nolint:noctx // closed at once
	if err != nil {
		return err
	}
	return listener.Close()
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
