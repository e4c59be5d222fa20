package audit

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/verify"
)

const (
	pieceSize      = 64 << 10 // of what is written at once, bytes
	maxCheckpoints = 1000     // of an export; about
)

// answer is a response that is written in pieces, each within a time.
type answer struct {
	w       http.ResponseWriter
	r       *http.Request
	control *http.ResponseController
	within  time.Duration
	begun   bool
	piece   []byte
}

func (a *answer) begin(contentType string) {
	a.w.Header().Set("Content-Type", contentType)
	a.w.Header().Set("Cache-Control", "no-store")
}

// write adds to the response.
func (a *answer) write(b []byte) error {
	a.piece = append(a.piece, b...)
	return a.flushIfFull()
}

func (a *answer) flushIfFull() error {
	if len(a.piece) < pieceSize {
		return nil
	}
	return a.flush()
}

func (a *answer) flush() error {
	if len(a.piece) == 0 {
		return nil
	}
	a.begun = true
	_ = a.control.SetWriteDeadline(time.Now().Add(a.within)) // without it there is only no deadline
	_, err := a.w.Write(a.piece)
	a.piece = a.piece[:0]
	return err
}

func (h *Handler) checkpoints(a *answer) error {
	head, err := h.size(a, "size")
	if err != nil {
		return err
	}
	var heads []eventstore.Head // all first, so that a slow reader holds no connection
	for earlier, err := range h.config.Store.Heads(a.r.Context(), head.Size, maxCheckpoints) {
		if err != nil {
			return err
		}
		heads = append(heads, earlier)
	}
	prove := a.r.FormValue("proofs") == "yes"
	tree := h.config.Store.Tree(a.r.Context(), head.Size)
	a.begin("application/jsonl")
	for _, earlier := range heads {
		line := Signed{Name: verify.Checkpoint{Epoch: earlier.Epoch, Size: earlier.Size}.Name(), Checkpoint: earlier.Checkpoint}
		if prove && !earlier.Holds {
			continue
		}
		if prove {
			if line.Hashes, err = tlog.ProveTree(head.Size, earlier.Size, tree); err != nil {
				return err
			}
		}
		text, err := json.Marshal(line)
		if err == nil {
			err = a.write(append(text, '\n'))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Signed is a line of GET /audit/checkpoints.
type Signed struct {
	Name       string         `json:"name"` // of its file in an export
	Checkpoint string         `json:"checkpoint"`
	Hashes     tlog.TreeProof `json:"hashes,omitempty"` // with proofs=yes: that the log of the size begins with it
}

func (h *Handler) leaves(a *answer) error {
	head, err := h.size(a, "size")
	if err != nil {
		return err
	}
	a.begin("application/octet-stream")
	for hashes, err := range h.config.Store.Leaves(a.r.Context(), head.Size) {
		if err != nil {
			return err
		}
		for _, hash := range hashes {
			if err := a.write(hash[:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// events streams the lines that the query picks.
func (h *Handler) events(a *answer) error {
	query, keep, err := h.query(a)
	if err != nil {
		return err
	}
	a.begin("application/jsonl")
	for e, err := range h.config.Store.Read(a.r.Context(), query) {
		if err != nil {
			return err
		}
		if !keep(e) {
			continue
		}
		a.piece = verify.AppendLine(a.piece, e)
		if err := a.flushIfFull(); err != nil {
			return err
		}
	}
	return nil
}

// query reads what picks events; keep is what the database is not asked.
func (h *Handler) query(a *answer) (query eventstore.Query, keep func(domain.Recorded) bool, err error) {
	ctx, form := a.r.Context(), a.r.URL.Query()
	if query.Until, err = a.number("until"); err != nil {
		return query, nil, err
	}
	if query.After, err = domain.ParseCursor(form.Get("after")); err != nil {
		return query, nil, badInput("after: %v", err)
	}
	if name := form.Get("project"); name != "" {
		if query.Project, err = h.project(ctx, name); err != nil {
			return query, nil, err
		}
	}
	if query.Types = form["type"]; len(query.Types) > 0 {
		for _, name := range query.Types {
			if !slices.Contains(domain.Types(), name) {
				return query, nil, badInput("type=%q: there is no such type of event; docs/events.md lists them", name)
			}
		}
	}
	if text := form.Get("since"); text != "" {
		if err := h.since(ctx, &query, text); err != nil {
			return query, nil, err
		}
	}
	actor, people := form.Get("actor"), form.Get("reports") == "no"
	return query, func(e domain.Recorded) bool {
		return (actor == "" || e.Actor == actor) && (!people || e.Attempt == "")
	}, nil
}

// since lets the query begin with what was recorded then, unless it begins later anyway.
func (h *Handler) since(ctx context.Context, query *eventstore.Query, text string) error {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return badInput("since=%q: want RFC 3339, for example 2026-11-24T00:00:00Z", text)
	}
	at, err := h.config.Store.At(ctx, t.Add(-time.Microsecond))
	if _, before := errors.AsType[*eventstore.BeforeLogError](err); before {
		return nil
	}
	if early, ok := errors.AsType[*eventstore.NotYetError](err); ok {
		return badInput("since=%q: %v", text, early)
	}
	if err == nil && at.Position > query.After.Position {
		query.After = at
	}
	return err
}

func (h *Handler) project(ctx context.Context, name string) (domain.ProjectID, error) {
	id, err := h.config.Project(ctx, name)
	if err == nil && id == "" {
		err = &problem{http.StatusNotFound, "there is no project " + name + "; see: pipeops project list"}
	}
	return id, err
}

func (h *Handler) proofs(a *answer) error {
	ctx := a.r.Context()
	head, err := h.size(a, "size")
	if err != nil {
		return err
	}
	id, err := h.project(ctx, a.r.FormValue("project"))
	if err != nil {
		return err
	}
	a.begin("application/jsonl")
	tree := h.config.Store.Tree(ctx, head.Size)
	for e, err := range h.config.Store.Read(ctx, eventstore.Query{Project: id, Until: head.Size}) {
		if err != nil {
			return err
		}
		proof, err := tlog.ProveRecord(head.Size, e.Cursor.Position-1, tree)
		if err != nil {
			return err
		}
		a.piece = verify.AppendProof(a.piece, e.Cursor.Position, proof)
		if err := a.flushIfFull(); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) actors(a *answer) error {
	names, err := h.config.Actors(a.r.Context())
	if err != nil {
		return err
	}
	return a.json(names)
}

func (a *answer) json(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	a.begin("application/json")
	return a.write(append(line, '\n'))
}

func (h *Handler) consistency(a *answer) error {
	from, errFrom := h.size(a, "from")
	to, errTo := h.size(a, "to")
	if err := errors.Join(errFrom, errTo); err != nil {
		return err
	}
	if from.Size > to.Size {
		return badInput("from=%d is above to=%d", from.Size, to.Size)
	}
	proof, err := tlog.ProveTree(to.Size, from.Size, h.config.Store.Tree(a.r.Context(), to.Size))
	if err != nil {
		return err
	}
	return a.json(Consistency{proof})
}

// Consistency is the answer of GET /audit/consistency.
type Consistency struct {
	Hashes tlog.TreeProof `json:"hashes"`
}
