package graph

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// cookie carries the token of a browser.
const cookie = "pipeops_token"

var (
	errNoToken   = &coded{code: "UNAUTHENTICATED", message: "who are you? No valid token was shown", fix: "send the header Authorization: Bearer <token>; `pipeops up` prints where its token is"}
	errTokenGone = errors.New("the token is no longer valid")
)

type actorKey struct{}

// identity is who asks, and by what token.
type identity struct{ actor, token string }

// Actor is the opaque id of who asks; empty before anybody said.
func Actor(ctx context.Context) string {
	id, _ := ctx.Value(actorKey{}).(identity)
	return id.actor
}

// identify finds out who asks, by the header or the cookie. Nobody is not an error for who may still say it.
func (h *Handler) identify(r *http.Request) (context.Context, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		token = ""
		if c, err := r.Cookie(cookie); err == nil {
			token = c.Value
		}
	}
	return h.withActor(r.Context(), token)
}

// withActor gives a context that knows who shows the token, or errNoToken.
func (h *Handler) withActor(ctx context.Context, token string) (context.Context, error) {
	token = strings.TrimSpace(token)
	if token == "" {
		return ctx, errNoToken
	}
	actor, ok, err := h.config.Tokens.Verify(ctx, token)
	if err != nil {
		return ctx, err
	}
	if !ok {
		return ctx, errNoToken
	}
	return context.WithValue(ctx, actorKey{}, identity{actor, token}), nil
}

// recheck calls gone once the token that ctx was opened with is no longer valid, unless ctx has ended before.
func (h *Handler) recheck(ctx context.Context, gone func()) {
	id, _ := ctx.Value(actorKey{}).(identity)
	leave := h.rechecks.add(h.config, id, &gone)
	context.AfterFunc(ctx, leave)
}

// rechecks looks at each token that subscriptions are open with, once for all of them: a thousand dashboards of one
// token cost one look.
type rechecks struct {
	mu   sync.Mutex
	open map[identity]*tokenWatch
}

// tokenWatch is one token.
type tokenWatch struct {
	gone map[*func()]struct{} // of each subscription
	over chan struct{}        // closed when none is left
}

// add lets gone be called when the identity doesn't hold any more, until leave is called.
func (r *rechecks) add(config Config, id identity, gone *func()) (leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.open[id]
	if w == nil {
		w = &tokenWatch{map[*func()]struct{}{}, make(chan struct{})}
		r.open[id] = w
		go r.follow(config, id, w)
	}
	w.gone[gone] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if delete(w.gone, gone); len(w.gone) == 0 && r.open[id] == w {
			delete(r.open, id)
			close(w.over)
		}
	}
}

var errSlowCheck = errors.New("the token couldn't be looked at in time")

// follow looks at a token again and again. A database that doesn't answer is no reason to end anything: the token was
// good a moment ago.
func (r *rechecks) follow(config Config, id identity, w *tokenWatch) {
	tick := time.NewTicker(config.Recheck)
	defer tick.Stop()
	for {
		select {
		case <-w.over:
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeoutCause(context.Background(), config.Recheck, errSlowCheck)
		actor, ok, err := config.Tokens.Verify(ctx, id.token)
		cancel()
		if err == nil && (!ok || actor != id.actor) {
			r.end(id, w)
			return
		}
	}
}

// end tells all subscriptions of a token that it is gone.
func (r *rechecks) end(id identity, w *tokenWatch) {
	r.mu.Lock()
	if r.open[id] == w {
		delete(r.open, id)
	}
	all := slices.Collect(maps.Keys(w.gone))
	clear(w.gone)
	r.mu.Unlock()
	for _, gone := range all {
		(*gone)()
	}
}

// refuse answers a request that can't be served before GraphQL begins.
func (h *Handler) refuse(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if errors.Is(err, errNoToken) {
		status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", `Bearer realm="pipeops"`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	shown := presenter{h.config.Log, h.config.NewID}.show(context.Background(), err)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{shown}})
}

// login sets the cookie for a token in the form field "token"; DELETE removes it.
func (h *Handler) login(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
		r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
		if err := h.signIn(w, r, r.PostFormValue("token")); err != nil {
			h.refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case http.MethodDelete:
		http.SetCookie(w, h.cookie("", -1))
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Allow", "POST, DELETE")
		http.Error(w, "POST a token to sign in, DELETE to sign out", http.StatusMethodNotAllowed)
	}
}

func (h *Handler) signIn(w http.ResponseWriter, r *http.Request, token string) error {
	token = strings.TrimSpace(token)
	if _, err := h.withActor(r.Context(), token); err != nil {
		return err
	}
	http.SetCookie(w, h.cookie(token, int((30*24*time.Hour).Seconds())))
	return nil
}

func (h *Handler) cookie(token string, seconds int) *http.Cookie {
	return &http.Cookie{ //nolint:gosec // Secure follows from the address: plain http on a loopback address must work
		Name: cookie, Value: token, Path: "/", MaxAge: seconds, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Secure: strings.HasPrefix(h.config.URL, "https://"),
	}
}

// SignIn lets a page be opened once with ?token=…: the token moves into the cookie, and out of the address.
func (h *Handler) SignIn(page http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		token := query.Get("token")
		if token == "" || r.Method != http.MethodGet {
			page.ServeHTTP(w, r)
			return
		}
		if err := h.signIn(w, r, token); err != nil && !errors.Is(err, errNoToken) {
			h.refuse(w, err)
			return
		}
		query.Del("token")
		clean := *r.URL
		clean.Scheme, clean.Host, clean.RawQuery = "", "", query.Encode()
		clean.Path = "/" + strings.TrimLeft(clean.Path, "/") // "//host" would lead elsewhere
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, clean.String(), http.StatusSeeOther) //nolint:gosec // a path of this server, see above
	})
}
