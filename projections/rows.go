package projections

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

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

// get gives a copy of a row as it stands before the event at hand.
func (k kind[T]) get(r *rows, key string) (value T, ok bool) {
	s := r.state(ref{k.table, key})
	if s == nil || s.now.from == 0 {
		return value, false
	}
	if err := json.Unmarshal(s.now.doc, &value); err != nil {
		r.fail(fmt.Errorf("row %s of %s: %w", key, k.table, err))
		return value, false
	}
	return value, true
}

// put sets a row as of the event at hand; one that says the same as before stays as it is.
func (k kind[T]) put(r *rows, key string, value T) {
	doc, err := json.Marshal(value)
	if err != nil {
		r.fail(fmt.Errorf("row %s of %s: %w", key, k.table, err))
		return
	}
	had := r.state(ref{k.table, key}) // what it replaces goes into the history
	if had != nil && bytes.Equal(had.now.doc, doc) {
		return
	}
	found := k.index(value)
	if had != nil && had.now.from != 0 {
		found = had.now.index
	}
	r.writes = append(r.writes, write{ref{k.table, key}, version{from: r.at, index: found, doc: doc}})
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

// pastVersion is a version that a later one has replaced.
type pastVersion struct {
	version
	to int64
}

// rowState is a row in memory: as it stands, and the versions that this batch has replaced.
type rowState struct {
	now     version
	past    []pastVersion
	changed bool
}

type write struct {
	ref
	version
}

// rows are the rows that a batch of events touches. Applying an event reads and writes only these, so it is a pure
// function: rows that it asks for and that aren't in memory are noted in missing, and then its writes don't count;
// they are loaded and the event is applied again.
type rows struct {
	states  map[ref]*rowState
	missing map[ref]bool
	at      int64   // position of the event at hand
	writes  []write // of the event at hand
	err     error   // of the event at hand
}

func newRows() *rows { return &rows{states: map[ref]*rowState{}, missing: map[ref]bool{}} }

func (r *rows) state(of ref) *rowState {
	s, ok := r.states[of]
	if !ok {
		r.missing[of] = true
	}
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
	r.at, r.writes, r.err = e.Cursor.Position, nil, nil
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
			s.past = append(s.past, pastVersion{s.now, w.from})
		}
		s.now, s.changed = w.version, true
	}
}
