// Package audit receives requests of auditors (the CLI's, and any HTTP client's with a token), hands back what proves
// the log: events in the form of an export, leaf hashes, signed checkpoints, keys and proofs; and posts each new
// checkpoint to a place off the machine; effects (network).
//
// What can be as long as the log is streamed, in constant memory, with no connection to the database held while the
// reader is slow; a stream that can't be finished is cut, never ended as if it were whole.
//
//	GET  /audit/checkpoint                       the newest signed checkpoint (C2SP); 404: nothing is signed yet
//	POST /audit/checkpoint                       signs what is new at once, and gives the newest one
//	GET  /audit/checkpoints?size=N               a line of JSON per checkpoint: {"name":"1.1000","checkpoint":"…"};
//	                                             proofs=yes leaves out what a restore has lost, and adds
//	                                             "hashes":["…"], the proof that N begins with it
//	GET  /audit/key.pub                          verifier keys, one a line
//	GET  /audit/events?until=N&project=…&after=… lines of an export; also actor, type (repeated), since (RFC 3339)
//	GET  /audit/leaves?size=N                    32 bytes per event
//	GET  /audit/proofs?size=N&project=…          a line per event of the project, its proof against the size
//	GET  /audit/consistency?from=M&to=N          {"hashes":["…"]}: the RFC 6962 proof that N begins with M
//	GET  /audit/actors                           {"token:…":"laptop"}: names of actors
//
// Every size is that of a signed checkpoint.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/verify"
)

// Tokens says who shows a bearer token.
type Tokens interface {
	Verify(ctx context.Context, token string) (actor string, ok bool, err error)
}

// Config says what to answer from. All of the first part is required.
type Config struct {
	Store  *eventstore.Store
	Signer *eventstore.Signer
	Keys   eventstore.HeadKeys
	Tokens Tokens
	// Project finds a project's id by its name or id, "" for none.
	Project func(ctx context.Context, nameOrID string) (domain.ProjectID, error)
	// Actors gives the names of actors by their id in events, as far as they have any.
	Actors func(ctx context.Context) (map[string]string, error)
	Log    *slog.Logger

	Write time.Duration // for a piece of a stream; a reader that takes longer is cut; default 30 s
}

// Validate says all that is wrong.
func (c Config) Validate() error {
	var problems []error
	for name, missing := range map[string]bool{
		"Store": c.Store == nil, "Signer": c.Signer == nil, "Keys": c.Keys == nil, "Tokens": c.Tokens == nil,
		"Project": c.Project == nil, "Actors": c.Actors == nil, "Log": c.Log == nil,
	} {
		if missing {
			problems = append(problems, errors.New(name+" is missing"))
		}
	}
	if c.Write < 0 {
		problems = append(problems, errors.New("the time for a piece (Write) is negative: 0 means its default"))
	}
	return errors.Join(problems...)
}

// Handler answers what stands below /audit/.
type Handler struct {
	config Config
	mux    *http.ServeMux
}

// New gives the handler.
func New(config Config) (*Handler, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if config.Write == 0 {
		config.Write = 30 * time.Second
	}
	h := &Handler{config, http.NewServeMux()}
	for pattern, answer := range map[string]func(*answer) error{
		"GET /audit/checkpoint":  h.checkpoint,
		"POST /audit/checkpoint": h.signNow,
		"GET /audit/checkpoints": h.checkpoints,
		"GET /audit/key.pub":     h.key,
		"GET /audit/events":      h.events,
		"GET /audit/leaves":      h.leaves,
		"GET /audit/proofs":      h.proofs,
		"GET /audit/consistency": h.consistency,
		"GET /audit/actors":      h.actors,
	} {
		h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, answer) })
	}
	return h, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// problem is an error that is meant for the caller.
type problem struct {
	status  int
	message string
}

func (p *problem) Error() string { return p.message }

func badInput(format string, args ...any) error {
	return &problem{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// serve answers one request of somebody with a token.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, give func(*answer) error) {
	token, shown := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	_, ok, err := h.config.Tokens.Verify(r.Context(), strings.TrimSpace(token))
	if err == nil && (!ok || !shown) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="pipeops"`)
		http.Error(w, "who are you? Send the header Authorization: Bearer <token>", http.StatusUnauthorized)
		return
	}
	a := &answer{w: w, r: r, control: http.NewResponseController(w), within: h.config.Write}
	if err == nil {
		err = give(a)
	}
	if err == nil {
		err = a.flush()
	}
	if err == nil {
		return
	}
	if context.Cause(r.Context()) == nil {
		h.config.Log.WarnContext(r.Context(), "an auditor's request failed", "path", r.URL.Path, "err", err)
	}
	if a.begun {
		panic(http.ErrAbortHandler) // the reader must see that this is not all
	}
	told := tell(err)
	http.Error(w, told.message, told.status)
}

// tell is what the caller is told of an error.
func tell(err error) *problem {
	if known, ok := errors.AsType[*problem](err); ok {
		return known
	}
	if conflict, ok := errors.AsType[*eventstore.HeadConflictError](err); ok {
		return &problem{http.StatusConflict, conflict.Error()}
	}
	return &problem{http.StatusInternalServerError, "internal error: see the log of pipeops serve"}
}

func (h *Handler) checkpoint(a *answer) error {
	head, err := h.config.Store.NewestHead(a.r.Context())
	return h.give(a, head, err)
}

func (h *Handler) signNow(a *answer) error {
	head, err := h.config.Signer.Sign(a.r.Context())
	return h.give(a, head, err)
}

func (h *Handler) give(a *answer, head eventstore.Head, err error) error {
	if err != nil {
		return err
	}
	if head.Size == 0 {
		return &problem{http.StatusNotFound, "nothing is signed yet: the log is empty, or no pipeops serve runs"}
	}
	a.begin("text/plain; charset=utf-8")
	return a.write([]byte(head.Checkpoint))
}

func (h *Handler) key(a *answer) error {
	ctx := a.r.Context()
	id, err := h.config.Store.LogID(ctx)
	if err != nil {
		return err
	}
	public, _, err := h.config.Keys.HeadSigner(ctx)
	if err != nil {
		return err
	}
	epochs, err := h.config.Store.Epochs(ctx)
	if err != nil {
		return err
	}
	file, err := verify.Keys{LogID: id, Public: public}.File(epochs)
	if err != nil {
		return err
	}
	a.begin("text/plain; charset=utf-8")
	return a.write(file)
}

// number reads a whole number of the query, 0 for none.
func (a *answer) number(name string) (int64, error) {
	text := a.r.FormValue(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, badInput("%s=%q: want a whole number, for example %s=1000", name, text, name)
	}
	return n, nil
}

// size reads a number that must be that of a signed checkpoint which the log still holds.
func (h *Handler) size(a *answer, name string) (eventstore.Head, error) {
	n, err := a.number(name)
	if err != nil {
		return eventstore.Head{}, err
	}
	head, err := h.config.Store.HeadOf(a.r.Context(), n)
	if err == nil && head.Size == 0 {
		err = badInput("%s=%d: no checkpoint of so many events is signed, or a restore has lost some; ask for the newest: GET /audit/checkpoint", name, n)
	}
	return head, err
}
