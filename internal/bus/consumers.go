package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// errClosed is ErrUnavailable for good.
var errClosed = fmt.Errorf("bus closed: %w", ErrUnavailable)

// consumers knows the calls that consume, so that Close can end them and wait.
type consumers struct {
	mu      sync.Mutex
	closed  bool
	cancels map[int]context.CancelCauseFunc
	next    int
	all     sync.WaitGroup
}

// join gives a consumer a context that ends with ctx and with the bus; leave must be called at its end.
func (s *consumers) join(ctx context.Context) (joined context.Context, leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, errClosed
	}
	joined, cancel := context.WithCancelCause(ctx)
	id := s.next
	s.next++
	if s.cancels == nil {
		s.cancels = map[int]context.CancelCauseFunc{}
	}
	s.cancels[id] = cancel
	s.all.Add(1)
	return joined, func() {
		cancel(nil)
		s.mu.Lock()
		delete(s.cancels, id)
		s.mu.Unlock()
		s.all.Done()
	}, nil
}

// end ends all consumers and waits for them; false if it was called before.
func (s *consumers) end() bool {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false
	}
	s.closed = true
	for _, cancel := range s.cancels {
		cancel(errClosed)
	}
	s.mu.Unlock()
	s.all.Wait()
	return true
}

// together runs n consumers until all have returned; the first to fail ends the others.
func together(ctx context.Context, n int, run func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if errs[i] = run(ctx, i); errs[i] != nil {
				cancel(errs[i])
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
