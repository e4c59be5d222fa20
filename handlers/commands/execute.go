// Package commands receives commands from the intake, the graph, the policies,
// the claims and the ingest, and hands their decisions to the event store:
// load, decide, append, and again on a conflict; effects. Nobody else appends.
//
// Invariants it keeps: a command id is decided once (its first event's id is
// looked up before deciding); of two writers of a stream one wins and the
// other decides again on what is there now.
package commands

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// PersonalSealer encrypts personal fields under their subject's key.
type PersonalSealer interface {
	SealField(ctx context.Context, subject, eventID, field, text string) (ciphertext string, err error)
}

// Config of a Handler.
type Config struct {
	Store  *eventstore.Store
	Sealer PersonalSealer
	Log    *slog.Logger
}

// Handler executes commands. It may be used by many goroutines.
type Handler struct {
	cfg Config

	mu       sync.Mutex
	followed map[domain.Stream]*followed
}

// New gives a handler.
func New(cfg Config) (*Handler, error) {
	var errs []error
	if cfg.Store == nil {
		errs = append(errs, errors.New("commands: Store is missing"))
	}
	if cfg.Sealer == nil {
		errs = append(errs, errors.New("commands: Sealer is missing"))
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Handler{cfg: cfg, followed: map[domain.Stream]*followed{}}, errors.Join(errs...)
}

// Meta says where a command comes from.
type Meta struct {
	CommandID     string // decided once; the ids of its events are derived from it
	Actor         string // opaque id of who wants it
	CorrelationID string // the push or command that everything follows from; empty: CommandID
	CausationID   string // the event that led to it; may be empty
	At            time.Time
	Project       domain.ProjectID
	Attempt       domain.AttemptID // of a worker's report
	AttemptSeq    int64
	Trace         string // W3C traceparent; empty: one made of CorrelationID
}

// Result is what a command led to.
type Result struct {
	Events []domain.Recorded // in order; none: there was nothing to do
	Known  bool              // the command had been decided before; Events are from then
}

// Cursor is the place of the last event in the log, the zero cursor when there is none.
func (r Result) Cursor() (last domain.Cursor) {
	for _, e := range r.Events { // those of a repeat come in the order of the decision, not of the log
		if e.Cursor.Position > last.Position {
			last = e.Cursor
		}
	}
	return last
}

// Option adds to what is appended with the decision.
type Option func(*extras)

type extras struct {
	move       *eventstore.CursorMove
	attachment *eventstore.Attachment
}

// WithMove moves a cursor in the same transaction, also when nothing was
// decided; a lost compare-and-set (*eventstore.CursorConflictError) undoes all.
func WithMove(m eventstore.CursorMove) Option { return func(e *extras) { e.move = &m } }

// WithAttachment stores bytes beside the first event of the decision.
func WithAttachment(a eventstore.Attachment) Option { return func(e *extras) { e.attachment = &a } }

// Unwritable says whether err will come again whenever the command is decided:
// what it decides breaks a limit of the store. Trying again helps nobody.
func Unwritable(err error) bool {
	_, invalid := errors.AsType[*eventstore.InvalidError](err)
	_, large := errors.AsType[*eventstore.TooLargeError](err)
	return invalid || large
}

// maxRaces bounds how often a command is decided again; one that loses so
// often meets a livelock, which is a defect.
const maxRaces = 100

// Execute decides a command and appends the decision. Errors: *domain.Refusal
// (the domain says no), *eventstore.CursorConflictError, or trouble with the store.
func (h *Handler) Execute(ctx context.Context, cmd domain.Command, m Meta, opts ...Option) (Result, error) {
	var ex extras
	for _, o := range opts {
		o(&ex)
	}
	if m.CorrelationID == "" {
		m.CorrelationID = m.CommandID
	}
	if m.Trace == "" {
		m.Trace = domain.NewTrace(m.CorrelationID)
	}
	for range maxRaces {
		result, err := h.once(ctx, cmd, m, ex)
		if !lostRace(err) {
			return result, err
		}
	}
	return Result{}, fmt.Errorf("command %T %s: lost %d races in a row", cmd, m.CommandID, maxRaces)
}

// Decided gives the events that a command was decided to, in order; none where it wasn't, or decided nothing.
func (h *Handler) Decided(ctx context.Context, commandID string) ([]domain.Recorded, error) {
	return h.known(ctx, commandID)
}

func (h *Handler) once(ctx context.Context, cmd domain.Command, m Meta, ex extras) (Result, error) {
	if known, err := h.known(ctx, m.CommandID); err != nil || known != nil {
		if err == nil {
			err = h.moveOnly(ctx, ex)
		}
		return Result{Events: known, Known: true}, err
	}
	state, versions, err := h.Load(ctx, cmd)
	if err != nil {
		return Result{}, fmt.Errorf("load for command %T %s: %w", cmd, m.CommandID, err)
	}
	changes, err := cmd.Decide(state)
	if err != nil {
		return Result{}, err
	}
	if len(changes) == 0 {
		return Result{}, h.moveOnly(ctx, ex)
	}
	all := make([]decided, len(changes))
	for i, c := range changes {
		all[i] = decided{c, domain.EventID(m.CommandID, i), m}
	}
	if err := h.append(ctx, all, versions, ex); err != nil {
		return Result{}, err
	}
	return h.stored(ctx, all)
}

// known gives the events of a command that was decided before, nil for a new one.
func (h *Handler) known(ctx context.Context, commandID string) ([]domain.Recorded, error) {
	var out []domain.Recorded
	for i := 0; ; i++ {
		found, err := h.cfg.Store.Find(ctx, domain.EventID(commandID, i))
		if err != nil {
			return nil, fmt.Errorf("look up command %s: %w", commandID, err)
		}
		if len(found) == 0 {
			return out, nil
		}
		out = append(out, found...)
	}
}

// Load folds the streams that a command reads. The versions are those that
// were folded, 0 for a stream that doesn't exist.
func (h *Handler) Load(ctx context.Context, cmd domain.Command) (domain.State, map[domain.Stream]int64, error) {
	state, versions := domain.State{}, map[domain.Stream]int64{}
	err := h.load(ctx, cmd, state, versions)
	return state, versions, err
}

// load adds the streams that aren't folded yet.
func (h *Handler) load(ctx context.Context, cmd domain.Command, state domain.State, versions map[domain.Stream]int64) error {
	for again := true; again; {
		again = false
		for _, stream := range cmd.Reads(state) {
			if _, done := versions[stream]; done {
				continue
			}
			v, err := h.fold(ctx, state, stream)
			if err != nil {
				return err
			}
			versions[stream], again = v, true
		}
	}
	return nil
}

func (h *Handler) fold(ctx context.Context, state domain.State, stream domain.Stream) (version int64, err error) {
	for r, err := range h.cfg.Store.ReadStream(ctx, stream, 0) {
		if err != nil {
			return 0, fmt.Errorf("read stream %s: %w", stream, err)
		}
		if err := foldEvent(state, r); err != nil {
			return 0, err
		}
		version = r.Version
	}
	return version, nil
}

func foldEvent(state domain.State, r domain.Recorded) error {
	e, err := r.Decode()
	if unknown, ok := errors.AsType[*domain.UnknownTypeError](err); ok && unknown.SchemaVersion == 0 && r.Stream.Stateless() {
		return nil // a newer version, at work beside this one, has recorded it
	}
	if err == nil {
		err = state.Fold(r.Stream, e, r.AttemptSeq)
	}
	if err != nil {
		return fmt.Errorf("fold %s version %d: %w", r.Stream, r.Version, err)
	}
	return nil
}

// decided is a change with its event's id and where it comes from.
type decided struct {
	domain.Change
	id   string
	from Meta
}

// append writes all changes at once.
func (h *Handler) append(ctx context.Context, all []decided, versions map[domain.Stream]int64, ex extras) error {
	a := eventstore.Append{Move: ex.move}
	at := map[domain.Stream]int{}
	seal := func(subject, eventID, field, text string) (string, error) {
		return h.cfg.Sealer.SealField(ctx, subject, eventID, field, text)
	}
	for _, d := range all {
		m := d.from
		body, err := domain.Encode(d.Event, d.id, seal)
		if err != nil {
			return fmt.Errorf("command %s: %w", m.CommandID, err)
		}
		w, ok := at[d.Stream]
		if !ok {
			w = len(a.Writes)
			at[d.Stream] = w
			a.Writes = append(a.Writes, eventstore.Write{Stream: d.Stream, Expected: versions[d.Stream]})
		}
		name := domain.TypeOf(d.Event)
		a.Writes[w].Events = append(a.Writes[w].Events, eventstore.NewEvent{
			ID: d.id, Type: name, SchemaVersion: domain.SchemaVersion(name), Body: body, ProjectID: m.Project,
			OccurredAt: m.At, Actor: m.Actor, CorrelationID: m.CorrelationID, CausationID: m.CausationID,
			Attempt: m.Attempt, AttemptSeq: m.AttemptSeq, Trace: m.Trace,
		})
	}
	if ex.attachment != nil {
		att := *ex.attachment
		att.EventID = all[0].id
		a.Attachments = []eventstore.Attachment{att}
	}
	if _, err := h.cfg.Store.Append(ctx, a); err != nil {
		return fmt.Errorf("append decision of command %T %s: %w", all[0].Event, all[0].from.CommandID, err)
	}
	return nil
}

// stored reads back what was appended: positions and times are the store's.
func (h *Handler) stored(ctx context.Context, all []decided) (Result, error) {
	ids := make([]string, len(all))
	for i, d := range all {
		ids[i] = d.id
	}
	found, err := h.cfg.Store.Find(ctx, ids...)
	if err != nil {
		return Result{}, fmt.Errorf("read back %d events: %w", len(ids), err)
	}
	return Result{Events: found}, nil
}

func (h *Handler) moveOnly(ctx context.Context, ex extras) error {
	if ex.move == nil || ex.move.From == ex.move.To {
		return nil
	}
	_, err := h.cfg.Store.Append(ctx, eventstore.Append{Move: ex.move})
	return err
}

// Move moves a cursor on its own.
func (h *Handler) Move(ctx context.Context, m eventstore.CursorMove) error {
	return h.moveOnly(ctx, extras{move: &m})
}
