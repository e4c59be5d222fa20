package projections

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/pipeops/pipeops/domain"
)

// kind is one table of rows of type T, seen from the projection that writes it. A row is a JSON document; what it is
// found by is taken from the value.
type kind[T any] struct {
	table string // without the projection's version: "builds"
	index func(T) index
}

// index is what rows are found by besides their key. It is set when a row begins, and never changes: so the rows of any
// moment are found by those of now.
type index struct {
	project domain.ProjectID
	lookup  string // one thing more; what it is, the kind says
	place   int64  // position of the event that the row began with: the order of lists
}

// get gives a row as it stands before the event at hand. It is the caller's to change.
func (k kind[T]) get(r *rows, key string) (value T, ok bool) {
	s := r.state(ref{k.table, key})
	if s == nil || s.now.from == 0 {
		return value, false
	}
	if held, ok := s.value.(T); ok {
		s.value = nil // whoever gets it may change what it points to; put brings it back
		return held, true
	}
	if err := json.Unmarshal(s.now.doc, &value); err != nil {
		r.fail(fmt.Errorf("row %s of %s: %w", key, k.table, err))
		return value, false
	}
	return value, true
}

// put sets a row as of the event at hand; one that says the same as before stays as it is.
func (k kind[T]) put(r *rows, key string, value T) {
	had := r.state(ref{k.table, key}) // what it replaces goes into the history
	if had == nil {
		return // it is missing: the event is applied again
	}
	doc, err := r.encode(value)
	if err != nil {
		r.fail(fmt.Errorf("row %s of %s: %w", key, k.table, err))
		return
	}
	if bytes.Equal(had.now.doc, doc) {
		had.value = value
		return
	}
	found := k.index(value)
	if had.now.from != 0 {
		found = had.now.index
	}
	doc = append(r.spare[:0], doc...)
	r.spare = nil
	r.writes = append(r.writes, write{ref{k.table, key}, version{from: r.at, index: found, doc: doc}, value})
}

// keep hands back what get gave, unchanged: the next one to get it needn't decode it again.
func (k kind[T]) keep(r *rows, key string, value T) {
	if s := r.states[ref{k.table, key}]; s != nil && len(r.writes) == 0 {
		s.value = value
	}
}

// add puts a row that can't be there yet, because its key holds the position of the event at hand: it isn't looked up.
func (k kind[T]) add(r *rows, key string, value T) {
	of := ref{k.table, key}
	if _, known := r.states[of]; !known {
		r.states[of] = &rowState{batch: r.batch, fresh: true}
	}
	k.put(r, key, value)
}

// change puts what f makes of a row, if there is such a row.
func (k kind[T]) change(r *rows, key string, f func(*T)) {
	if value, ok := k.get(r, key); ok {
		f(&value)
		k.put(r, key, value)
	}
}

// ref names a row.
type ref struct{ table, key string }

// version is what a row says from a position on.
type version struct {
	from int64 // 0: there is no such row
	index
	doc []byte
}

// rowState is a row in memory, as it stands.
type rowState struct {
	now     version
	value   any   // what now.doc says, when it was put here and nobody has got it since
	fresh   bool  // the table has no such row
	changed bool  // since it was last written
	batch   int64 // that it was asked for in last
}

type write struct {
	ref
	version
	value any
}

// rows are rows in memory. Applying an event reads and writes only these, so it is a pure function: rows that it asks
// for and that aren't in memory are noted in missing, and then its writes don't count; they are loaded and the event is
// applied again. What was written stays, for the next batch, within bounds.
type rows struct {
	states  map[ref]*rowState
	missing map[ref]bool
	at      int64   // position of the event at hand
	writes  []write // of the event at hand
	err     error   // of the event at hand

	batch   int64              // the one at hand, from 1
	written atomic.Int64       // the last batch that stands in the tables
	bytes   int                // of all documents in states
	dirty   []ref              // rows that were not written yet
	past    map[string]*copier // by table: versions that were replaced since the last write
	pending int                // bytes of what was put since the last write

	text    bytes.Buffer // of the row that is encoded
	encoder *json.Encoder
	spare   []byte // room of a document that was replaced
}

// Bounds of what is kept in memory for the next batch.
const (
	maxRows     = 16 << 10
	maxRowBytes = 32 << 20
)

func newRows() *rows {
	r := &rows{states: map[ref]*rowState{}, missing: map[ref]bool{}, past: map[string]*copier{}, batch: 1}
	r.encoder = json.NewEncoder(&r.text)
	return r
}

// encode is json.Marshal into the same room each time.
func (r *rows) encode(value any) ([]byte, error) {
	r.text.Reset()
	err := r.encoder.Encode(value)
	return bytes.TrimSuffix(r.text.Bytes(), []byte{'\n'}), err
}

func (r *rows) state(of ref) *rowState {
	s, ok := r.states[of]
	if !ok {
		r.missing[of] = true
		return nil
	}
	s.batch = r.batch
	for _, w := range slices.Backward(r.writes) { // what the same event wrote counts
		if w.ref == of {
			return &rowState{now: w.version}
		}
	}
	return s
}

func (r *rows) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// try applies an event. complete says whether all rows that it asked for were there; only then its writes are kept.
func (r *rows) try(p *projection, e decoded) (complete bool, err error) {
	r.at, r.writes, r.err = e.Cursor.Position, r.writes[:0], nil
	clear(r.missing)
	defer func() {
		if cause := recover(); cause != nil {
			complete, err = true, fmt.Errorf("panic: %v", cause)
		}
	}()
	p.apply(r, e.Recorded, e.event)
	if len(r.missing) > 0 {
		return false, nil
	}
	if r.err != nil {
		return true, r.err
	}
	r.keep()
	return true, nil
}

// keep takes over the writes of the event at hand.
func (r *rows) keep() {
	for _, w := range r.writes {
		s := r.states[w.ref]
		if s.now.from != 0 && s.now.from != w.from {
			r.replaced(w.ref, s.now, w.from)
		}
		r.bytes -= len(s.now.doc)
		r.spare = s.now.doc
		if !s.changed {
			s.changed = true
			r.dirty = append(r.dirty, w.ref)
		}
		s.now, s.value = w.version, w.value
		r.bytes += len(w.doc)
		r.pending += len(w.doc)
	}
}

// replaced takes down a history row.
func (r *rows) replaced(of ref, v version, to int64) {
	c := r.past[of.table]
	if c == nil {
		c = newCopier()
		r.past[of.table] = c
	}
	c.past(of.key, v, to)
}

// take hands over what has changed, to be written, and begins a batch. Rows that weren't asked for lately are forgotten
// when there are too many, but never one that isn't written yet: what a table says of it is old.
func (r *rows) take(tables []string) (batch int64, changes map[string]*tableChanges) {
	fresh := map[string]int{}
	for _, of := range r.dirty {
		if r.states[of].fresh {
			fresh[of.table]++
		}
	}
	changes = map[string]*tableChanges{}
	for _, t := range tables {
		changes[t] = &tableChanges{&columns{}, newCopier(), r.past[t]}
		delete(r.past, t)
	}
	for _, of := range r.dirty {
		s := r.states[of]
		if s.fresh && fresh[of.table] >= manyRows {
			changes[of.table].added.now(of.key, s.now)
		} else {
			changes[of.table].changed.add(of.key, s.now)
		}
		s.fresh, s.changed = false, false
	}
	r.dirty, r.pending = r.dirty[:0], 0
	if written := r.written.Load(); r.full() {
		for of, s := range r.states {
			if s.batch <= written {
				r.bytes -= len(s.now.doc)
				delete(r.states, of)
			}
		}
	}
	r.batch++
	return r.batch - 1, changes
}

// stand says that the changes of a batch, and of all before it, stand in the tables.
func (r *rows) stand(c *changes) {
	r.written.Store(c.batch)
	for _, t := range c.tables {
		t.added.free()
		t.past.free()
	}
}

func (r *rows) full() bool { return len(r.states) > maxRows || r.bytes > maxRowBytes }
