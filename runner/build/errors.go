package build

import (
	"errors"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
)

// Stage is where a build failed.
type Stage string

// The stages.
const (
	Make Stage = "build"
	Push Stage = "push"
)

// Error is why there is no image: the Dockerfile, what it runs or pulls, or the registry that refuses the push.
type Error struct {
	Stage    Stage
	Step     string   // "[2/3] RUN make", may be empty
	Line     int      // of the Dockerfile, from 1; 0: not known
	ExitCode int      // of the step's program; 0: it wasn't a program that failed
	Message  string   // BuildKit's own
	Tail     []string // last lines of the step's output, at most 200
	Again    bool     // pushes only: may succeed later
}

func (e *Error) Error() string { return e.Message }

// LostError is why a build can't go on with this daemon. The same build may succeed elsewhere, or later.
type LostError struct{ Reason string }

func (e *LostError) Error() string { return e.Reason }

// StoppedError is that ctx ended during a step. It unwraps to why.
type StoppedError struct {
	Step string
	Tail []string // last lines of the step's output, at most 200
	Why  error
}

func (e *StoppedError) Error() string { return e.Why.Error() }
func (e *StoppedError) Unwrap() error { return e.Why }

// stopped names the step that was under way last.
func (p *progress) stopped(why error) error {
	e := &StoppedError{Why: why}
	last := 0
	for _, v := range p.vertices {
		if v.started && v.number > last && (!v.completed || v.cut) {
			last, e.Step, e.Tail = v.number, v.name, v.tail
		}
	}
	return e
}

// explain turns what the solve gave into *Error or *LostError. cause is why the solve was given up, if it was.
func (p *progress) explain(err, cause error, mask func(string) string) error {
	switch {
	case errors.Is(cause, errFrozen):
		return &LostError{errFrozen.Error()}
	case errors.Is(cause, ErrPushTimeout):
		return &Error{Stage: Push, Step: "push", Message: ErrPushTimeout.Error()}
	case lost(err):
		return &LostError{mask("BuildKit was lost: " + err.Error())}
	}
	e := &Error{Stage: Make, Message: mask(message(err))}
	if exit, ok := errors.AsType[*gateway.ExitError](err); ok {
		e.ExitCode = int(exit.ExitCode)
	}
	for _, s := range errdefs.Sources(err) {
		if len(s.Ranges) > 0 && s.Ranges[0].Start != nil {
			e.Line = int(s.Ranges[0].Start.Line)
			break
		}
	}
	var named digest.Digest
	if at, ok := errors.AsType[*errdefs.VertexError](err); ok {
		named = digest.Digest(at.Digest)
	}
	if e.ExitCode == 0 && p.pushFailed() {
		e.Stage, e.Step, e.Message = Push, "push", strings.TrimPrefix(p.export.failure, "failed to push ")
		e.Again = mayMend(e.Message)
		return e
	}
	if v := p.failed(named); v != nil {
		e.Step, e.Tail = v.name, v.tail
	}
	return e
}

// message is the error without the words of the layers that it passed.
func message(err error) string {
	text := err.Error()
	for _, prefix := range []string{"failed to solve: ", "rpc error: code = Unknown desc = "} {
		text = strings.TrimPrefix(text, prefix)
	}
	return text
}

// lost says whether it was the daemon that went away, and not the build that failed.
func lost(err error) bool {
	if _, exited := errors.AsType[*gateway.ExitError](err); exited {
		return false
	}
	// Nobody here cancelled, so it was the daemon, in stopping.
	if grpcerrors.Code(err) == codes.Canceled {
		return true
	}
	if len(errdefs.Sources(err)) > 0 {
		return false // a base image's registry may be unavailable too
	}
	if grpcerrors.Code(err) == codes.Unavailable {
		return true
	}
	return contains(err.Error(), "closing transport", "no active session", "graceful_stop", "error reading from server", "failed to dial grpc", "transport is closing")
}

// mayMend says whether a registry's refusal may be over soon.
func mayMend(message string) bool {
	if contains(message, "denied", "unauthorized", "authorization failed", "insufficient_scope", "name unknown", "immutable", "tagalreadyexists", "quota", "403 forbidden", "401 unauthorized", "400 bad request") {
		return false
	}
	return contains(message,
		"toomanyrequests", "429", "rate exceeded", "throttl", "500 internal", "502 bad", "503 service", "504 gateway", "unavailable",
		"eof", "connection reset", "connection refused", "broken pipe", "i/o timeout", "tls handshake timeout", "no such host",
		"blob upload unknown", "blob upload invalid", "context deadline exceeded",
	)
}

func contains(text string, parts ...string) bool {
	text = strings.ToLower(text)
	for _, part := range parts {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}
