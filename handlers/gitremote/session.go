package gitremote

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// finishWithin is how long requests under way get when the server ends.
const finishWithin = 20 * time.Second

// maxSocket is how long the path of a Unix socket may be on every system.
const maxSocket = 100

// session is one time of leading.
type session struct {
	ctx    context.Context //nolint:containedctx // the session is this context's life
	socket string
	server *http.Server
	served sync.WaitGroup
	tidy   func()

	mu       sync.Mutex
	closed   bool
	requests sync.WaitGroup
}

// open listens for git's hooks.
func (r *Remote) open(ctx context.Context) (*session, error) {
	socket, tidy, err := r.socket(ctx)
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err == nil {
		err = os.Chmod(socket, 0o600)
	}
	if err != nil {
		tidy()
		return nil, fmt.Errorf("git remote: listen for git's hooks at %s: %w", socket, err)
	}
	s := &session{ctx: ctx, socket: socket, tidy: tidy}
	s.server = &http.Server{Handler: http.HandlerFunc(r.serveHook), ReadHeaderTimeout: 10 * time.Second}
	s.served.Go(func() {
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			r.cfg.Log.ErrorContext(ctx, "git's hooks can't be heard any more", "err", err)
		}
	})
	return s, nil
}

// socket names where hooks call: beside the repositories, or where the path is
// short enough. The name is new each time: hooks of a session that ends still call the old one.
func (r *Remote) socket(ctx context.Context) (path string, tidy func(), err error) {
	r.sweepSockets(ctx)
	path = filepath.Join(r.cfg.Root, socketPrefix+rand.Text()[:8])
	if len(path) <= maxSocket {
		return path, func() { _ = os.Remove(path) }, nil
	}
	folder, err := os.MkdirTemp("", "pipeops-git-")
	if err != nil {
		return "", nil, fmt.Errorf("git remote: make a folder for the socket of hooks: %w", err)
	}
	return filepath.Join(folder, "hooks"), func() { _ = os.RemoveAll(folder) }, nil
}

const socketPrefix = "hooks-"

// sweepSockets removes those that nobody listens at: their process was killed.
func (r *Remote) sweepSockets(ctx context.Context) {
	left, _ := filepath.Glob(filepath.Join(r.cfg.Root, socketPrefix+"*")) // the pattern is good
	for _, path := range left {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
		if err == nil {
			_ = conn.Close()
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			_ = os.Remove(path)
		}
	}
}

// enter counts a request in; false when the session has ended.
func (s *session) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.requests.Add(1)
	return true
}

// close waits until the requests under way have ended, whose hooks are still heard.
func (s *session) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.requests.Wait()
	_ = s.server.Close()
	s.served.Wait()
	s.tidy()
}
