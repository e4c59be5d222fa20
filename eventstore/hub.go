package eventstore

import (
	"sync"

	"github.com/pipeops/pipeops/domain"
)

// hub keeps the newest events in memory for all subscribers of this process. It keeps no events per subscriber: each
// brings its own cursor, and whoever has fallen out of the ring reads the database until it is back. Who has seen all
// there is waits here, and is woken by what its filter lets through only: with a thousand subscribers, each of its own
// project, an event wakes one.
type hub struct {
	maxEvents, maxBytes int
	poked               chan struct{} // 1: there may be something new in the database

	mu        sync.Mutex
	following bool                                      // the tail has found where the log stands
	head      domain.Cursor                             // newest event that was published here
	ring      []domain.Recorded                         // positions head-len+1 … head; never changed, only cut and added to
	bytes     int                                       // of the ring's bodies
	restored  int                                       // how often the log turned out to have gone back
	changed   chan struct{}                             // closed, and replaced, when any of these changes
	waiting   map[domain.ProjectID]map[*waiter]struct{} // by each project that the filter names; anyProject: it names none
}

// anyProject stands for waiters that take the events of all projects, and those of none.
const anyProject domain.ProjectID = "*"

// waiter is a subscriber that has seen all there is.
type waiter struct {
	filter Filter
	woken  chan struct{} // closed when there is something for it
	seen   domain.Cursor // nothing up to here is for it; to be read once it is woken
}

func newHub(maxEvents, maxBytes int) *hub {
	return &hub{
		maxEvents: maxEvents, maxBytes: maxBytes,
		poked: make(chan struct{}, 1), changed: make(chan struct{}),
		waiting: map[domain.ProjectID]map[*waiter]struct{}{},
	}
}

// poke says that this process has appended something.
func (h *hub) poke() { signal(h.poked) }

// publish adds what follows the head.
func (h *hub) publish(events []domain.Recorded) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range events {
		h.wakeFor(e)
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
	for _, waiters := range h.waiting {
		for w := range waiters {
			h.wake(w, w.seen)
		}
	}
	h.announce()
}

// wait lets a subscriber that stands at the head wait for what its filter lets through; any other waits for any change
// since now.
func (h *hub) wait(now view, at domain.Cursor, filter Filter) (w *waiter, woken <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w = &waiter{filter: filter, seen: at}
	if !h.following || h.head != at || h.restored != now.restored {
		return w, now.changed
	}
	w.woken = make(chan struct{})
	for _, project := range w.projects() {
		if h.waiting[project] == nil {
			h.waiting[project] = map[*waiter]struct{}{}
		}
		h.waiting[project][w] = struct{}{}
	}
	return w, w.woken
}

func (w *waiter) projects() []domain.ProjectID {
	if len(w.filter.Projects) == 0 {
		return []domain.ProjectID{anyProject}
	}
	return w.filter.Projects
}

// leave ends the wait of a subscriber that goes.
func (h *hub) leave(w *waiter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget(w)
}

// tellIdle wakes those that nothing was for, so that they, too, know how far the log is.
func (h *hub) tellIdle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, waiters := range h.waiting {
		for w := range waiters {
			if w.seen != h.head {
				h.wake(w, h.head)
			}
		}
	}
}

// wakeFor wakes those that an event is for, before it becomes the head.
func (h *hub) wakeFor(e domain.Recorded) {
	for _, project := range [...]domain.ProjectID{e.ProjectID, anyProject} {
		for w := range h.waiting[project] {
			if w.filter.Match(e) {
				h.wake(w, h.head)
			}
		}
	}
}

func (h *hub) wake(w *waiter, seen domain.Cursor) {
	w.seen = seen
	h.forget(w)
	close(w.woken)
}

func (h *hub) forget(w *waiter) {
	for _, project := range w.projects() {
		if delete(h.waiting[project], w); len(h.waiting[project]) == 0 {
			delete(h.waiting, project)
		}
	}
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

// after gives what the filter lets through of the events after a cursor, limit at most, and up to where they were looked
// at; reached is false when the ring doesn't go back that far. When the log has gone back since now, there is nothing.
func (h *hub) after(now view, cursor domain.Cursor, filter Filter, limit int) (batch Batch, reached bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	batch.Cursor = cursor
	behind := h.head.Position - cursor.Position
	switch {
	case behind <= 0 || h.restored != now.restored:
		return batch, true
	case behind > int64(len(h.ring)):
		return batch, false
	}
	fresh := h.ring[len(h.ring)-int(behind):]
	for i := 0; i < len(fresh) && len(batch.Events) < limit; i++ {
		batch.Cursor = fresh[i].Cursor
		if filter.Match(fresh[i]) {
			batch.Events = append(batch.Events, fresh[i])
		}
	}
	return batch, true
}
