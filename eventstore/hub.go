package eventstore

import (
	"sync"

	"github.com/pipeops/pipeops/domain"
)

// hub keeps the newest events in memory for all subscribers of this process. It holds nothing per subscriber: each
// brings its own cursor, and whoever has fallen out of the ring reads the database until it is back.
type hub struct {
	maxEvents, maxBytes int
	poked               chan struct{} // 1: there may be something new in the database
	notify              chan struct{} // 1: other processes may want to know

	mu        sync.Mutex
	following bool              // the tail has found where the log stands
	head      domain.Cursor     // newest event that was published here
	ring      []domain.Recorded // positions head-len+1 … head; never changed, only cut and added to
	bytes     int               // of the ring's bodies
	restored  int               // how often the log turned out to have gone back
	changed   chan struct{}     // closed, and replaced, when any of these changes
}

func newHub(maxEvents, maxBytes int) *hub {
	return &hub{
		maxEvents: maxEvents, maxBytes: maxBytes,
		poked: make(chan struct{}, 1), notify: make(chan struct{}, 1), changed: make(chan struct{}),
	}
}

// poke says that this process has appended something.
func (h *hub) poke(domain.Cursor) {
	signal(h.poked)
	signal(h.notify)
}

// publish adds what follows the head.
func (h *hub) publish(events []domain.Recorded) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range events {
		h.ring = append(h.ring, e)
		h.bytes += len(e.Body)
		h.head = e.Cursor
	}
	cut := 0
	for len(h.ring)-cut > h.maxEvents || h.bytes > h.maxBytes {
		h.bytes -= len(h.ring[cut].Body)
		h.ring[cut] = domain.Recorded{} // the array lives on until it is grown; the body need not
		cut++
	}
	h.ring = h.ring[cut:]
	h.announce()
}

// place sets where the log stands: at the start, and when it has gone back. Whoever is beyond must look again.
func (h *hub) place(head domain.Cursor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.following {
		h.restored++
	}
	h.following, h.head, h.ring, h.bytes = true, head, nil, 0
	h.announce()
}

func (h *hub) announce() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// view is what a subscriber sees at one moment.
type view struct {
	following bool
	head      domain.Cursor
	restored  int
	changed   <-chan struct{}
}

func (h *hub) view() view {
	h.mu.Lock()
	defer h.mu.Unlock()
	return view{following: h.following, head: h.head, restored: h.restored, changed: h.changed}
}

// after gives up to limit of the events after the cursor, and whether the ring reaches back that far.
func (h *hub) after(cursor domain.Cursor, limit int) (events []domain.Recorded, reached bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	behind := h.head.Position - cursor.Position
	if behind > int64(len(h.ring)) {
		return nil, false
	}
	if behind <= 0 {
		return nil, true
	}
	start := len(h.ring) - int(behind)
	return append(events, h.ring[start:min(start+limit, len(h.ring))]...), true
}
