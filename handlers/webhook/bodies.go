package webhook

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// maxBody is what GitHub sends at most.
const maxBody = 25 << 20

// Nearly every delivery is small. The few large ones go through a narrow gate,
// so that strangers, whose signature is checked only over the whole body,
// can't fill the memory: 64 MiB and 4 × 25 MiB at most.
const (
	smallBody = 1 << 20
	maxLarge  = 4
)

var (
	errTooLarge = &refusal{status: http.StatusRequestEntityTooLarge, reason: "a delivery has 25 MiB at most"}
	errBusy     = &refusal{status: http.StatusServiceUnavailable, reason: "too many deliveries at once: send it again", retry: 5 * time.Second}
	errSlow     = &refusal{status: http.StatusRequestTimeout, reason: "the body took too long to arrive"}
	errBody     = &refusal{status: http.StatusBadRequest, reason: "the body ended before its announced length"}
)

// bodies reads request bodies, so many at a time.
type bodies struct {
	any    chan struct{} // as many as may be handled at once
	large  chan struct{} // as many of them as may be large
	within time.Duration
}

func newBodies(atOnce int, within time.Duration) *bodies {
	return &bodies{any: make(chan struct{}, atOnce), large: make(chan struct{}, maxLarge), within: within}
}

// read gives the whole body; release is called when it is done with. Errors are *refusal.
func (b *bodies) read(w http.ResponseWriter, r *http.Request) (body []byte, release func(), err error) {
	if r.ContentLength > maxBody {
		return nil, nil, errTooLarge
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), b.within, errBusy)
	defer cancel()
	// Servers that can't set a deadline, as in some tests, go without.
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(b.within)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, nil, errBody
	}
	if !enter(ctx, b.any) {
		return nil, nil, errBusy
	}
	leave := func() { <-b.any }
	buf := new(bytes.Buffer)
	if err := fill(buf, r.Body, smallBody+1); err != nil || buf.Len() <= smallBody {
		return done(buf, leave, err)
	}
	if !enter(ctx, b.large) {
		return done(buf, leave, errBusy)
	}
	leave = func() { <-b.large; <-b.any }
	err = fill(buf, r.Body, maxBody-smallBody)
	if err == nil && buf.Len() > maxBody {
		err = errTooLarge
	}
	return done(buf, leave, err)
}

func done(buf *bytes.Buffer, leave func(), err error) ([]byte, func(), error) {
	if err != nil {
		leave()
		return nil, nil, err
	}
	return buf.Bytes(), leave, nil
}

func enter(ctx context.Context, gate chan struct{}) bool {
	select {
	case gate <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func fill(buf *bytes.Buffer, from io.Reader, n int64) error {
	switch _, err := io.Copy(buf, io.LimitReader(from, n)); {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errSlow
	default:
		return errBody
	}
}
