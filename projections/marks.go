package projections

import (
	"sync"

	"github.com/pipeops/pipeops/domain"
)

// marks are where this process knows the checkpoints to be, with a way to wait for them.
type marks struct {
	mu      sync.Mutex
	cursors map[string]domain.Cursor
	led     map[string]bool   // this process moves them itself
	moves   map[string]uint64 // how often each has moved
	changed chan struct{}     // closed, and replaced, when one moves
}

func newMarks() *marks {
	return &marks{cursors: map[string]domain.Cursor{}, led: map[string]bool{}, moves: map[string]uint64{}, changed: make(chan struct{})}
}

func (m *marks) reach(name string, cursor domain.Cursor) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at, here := m.cursors[name]; here && at == cursor {
		return
	}
	m.cursors[name] = cursor
	m.moves[name]++
	close(m.changed)
	m.changed = make(chan struct{})
}

// of gives a projection's checkpoint, if this process keeps it, and what is closed when that may have changed.
func (m *marks) of(name string) (cursor domain.Cursor, here bool, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cursor, here = m.cursors[name]
	return cursor, here, m.changed
}

// count gives how often any of these has moved, and what is closed when that may have changed.
func (m *marks) count(names []string) (moves uint64, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range names {
		moves += m.moves[n]
	}
	return moves, m.changed
}

// lead says whether this process keeps a projection current itself.
func (m *marks) lead(name string, leads bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.led[name] = leads
}

func (m *marks) leads(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.led[name]
}
