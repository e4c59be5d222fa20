// Package graph receives GraphQL over HTTP, server-sent events and graphql-transport-ws from the dashboard, the CLI
// and others, hands what is wanted to handlers/commands, and answers from projections; effects (network).
//
// It keeps: nobody reads or wants anything without a token; a refusal reaches the caller with its code, field and fix,
// anything that has no code only as "internal" (errors.go is the one place); a subscription of the log replays from
// its cursor and goes on live without a gap or a double, keeps nothing in memory for a slow reader, and cuts one that
// doesn't read at all.
//
//	api, err := graph.New(graph.Config{…})
//	mux.Handle("/graphql", api)
//	mux.Handle("/login", api)
//	mux.Handle("/", api.SignIn(dashboard))
package graph

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/99designs/gqlgen/graphql/handler"
	"github.com/99designs/gqlgen/graphql/handler/extension"
	"github.com/99designs/gqlgen/graphql/handler/lru"
	"github.com/99designs/gqlgen/graphql/handler/transport"
	"github.com/vektah/gqlparser/v2/ast"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/generated"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/handlers/replay"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/projections"
)

// Tokens says who shows a bearer token.
type Tokens interface {
	Verify(ctx context.Context, token string) (actor string, ok bool, err error)
}

// Secrets keeps sealed values by number; see records.Secrets.
type Secrets interface {
	// Put keeps a value as that version, and does nothing when the version is there.
	Put(ctx context.Context, project domain.ProjectID, name string, version int, value []byte) error
	// Get gives a version of a secret, 0 for the newest.
	Get(ctx context.Context, project domain.ProjectID, name string, version int) (value []byte, number int, err error)
}

// Logs gives the output of builds; see records.LogChunks.
type Logs interface {
	Read(ctx context.Context, attempt domain.AttemptID, stream string, from int64) iter.Seq2[records.LogChunk, error]
	// End tells where the output ends, once its worker has said so.
	End(ctx context.Context, attempt domain.AttemptID, stream string) (size int64, ended bool, err error)
}

// Workers gives who works; see records.Claims.
type Workers interface {
	Workers(ctx context.Context, within time.Duration) ([]records.Worker, error)
}

// Erasures forgets persons; see records.Erasures.
type Erasures interface {
	Erase(ctx context.Context, person string) (records.Erasure, error)
}

// Config says what to answer from. The first part is required.
type Config struct {
	Queries  *projections.Queries
	Commands *commands.Handler
	Tokens   Tokens
	Secrets  Secrets
	Logs     Logs
	Workers  Workers
	Erasures Erasures
	Replays  *replay.Replays
	NewID    domain.NewID
	Log      *slog.Logger
	URL      string // where people and git hosts reach this server: "https://pipeops.example.org"

	Registry string           // of projects that name none; default none: they must name one
	KeepLogs time.Duration    // how long the output of builds is kept; default 0: for ever
	Now      func() time.Time // default time.Now
	// MayRead says whether an actor may see what belongs to a project ("" = to none). It is asked for every event of a
	// subscription, not only at its start. Default: whoever has a token sees all.
	MayRead func(ctx context.Context, actor string, project domain.ProjectID) bool
	// Origins are hosts, besides its own and that of URL, whose pages may use the API in a browser; patterns as of path.Match.
	Origins []string

	Complexity int           // of a query: fields, times the length of their lists; default 50,000
	Depth      int           // of a query; default 12
	Operations int           // at the same time on one websocket; default 32
	Heartbeat  time.Duration // between cursors that filtered-out events have moved; default 5 s
	Write      time.Duration // for one message to a subscriber; who takes longer is cut; default 10 s
	Ping       time.Duration // between pings; a connection without a pong for twice as long is cut; default 15 s
	Init       time.Duration // for a websocket to say who it is; default 5 s
	Recheck    time.Duration // of the token of a subscription; default 4 s
	Interval   time.Duration // between two messages of a read model's subscription, at least; default 100 ms
}

// Validate says all that is wrong.
func (c Config) Validate() error {
	var problems []error
	for _, required := range []struct {
		name    string
		missing bool
	}{
		{"Queries", c.Queries == nil},
		{"Commands", c.Commands == nil},
		{"Tokens", c.Tokens == nil},
		{"Secrets", c.Secrets == nil},
		{"Logs", c.Logs == nil},
		{"Workers", c.Workers == nil},
		{"Erasures", c.Erasures == nil},
		{"Replays", c.Replays == nil},
		{"NewID", c.NewID == nil},
		{"Log", c.Log == nil},
	} {
		if required.missing {
			problems = append(problems, fmt.Errorf("%s is nil", required.name))
		}
	}
	if !strings.HasPrefix(c.URL, "http://") && !strings.HasPrefix(c.URL, "https://") {
		problems = append(problems, fmt.Errorf("URL %q: want where this server is reached, for example https://pipeops.example.org", c.URL))
	}
	if c.Complexity < 0 || c.Depth < 0 || c.Operations < 0 || min(c.KeepLogs, c.Heartbeat, c.Write, c.Ping, c.Init, c.Recheck, c.Interval) < 0 {
		problems = append(problems, errors.New("a limit is negative: 0 means its default"))
	}
	return errors.Join(problems...)
}

func (c Config) withDefaults() Config {
	c.URL = strings.TrimRight(c.URL, "/")
	if u, err := url.Parse(c.URL); err == nil { // a proxy may hide it from the request
		c.Origins = append(slices.Clone(c.Origins), u.Host)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MayRead == nil {
		c.MayRead = func(context.Context, string, domain.ProjectID) bool { return true }
	}
	c.Complexity = cmp.Or(c.Complexity, 50_000)
	c.Depth = cmp.Or(c.Depth, 12)
	c.Operations = cmp.Or(c.Operations, 32)
	c.Heartbeat = cmp.Or(c.Heartbeat, 5*time.Second)
	c.Write = cmp.Or(c.Write, 10*time.Second)
	c.Ping = cmp.Or(c.Ping, 15*time.Second)
	c.Init = cmp.Or(c.Init, 5*time.Second)
	c.Recheck = cmp.Or(c.Recheck, 4*time.Second)
	c.Interval = cmp.Or(c.Interval, 100*time.Millisecond)
	return c
}

const (
	maxBody   = 1 << 20 // of a request or of a message to a websocket
	maxTokens = 20_000  // of the GraphQL language, in one query
)

// Handler answers /graphql and /login.
type Handler struct {
	config   Config
	graph    *handler.Server
	rechecks rechecks
}

// New gives the API.
func New(config Config) (*Handler, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("graph: %w", err)
	}
	config = config.withDefaults()
	resolver := &Resolver{config}
	server := handler.New(generated.NewExecutableSchema(generated.Config{
		Resolvers: resolver, Complexity: complexity(),
	}))
	errs := presenter{config.Log, config.NewID}
	server.SetErrorPresenter(errs.present)
	server.SetRecoverFunc(errs.recover)
	server.AroundFields(errs.aroundField)
	server.AroundOperations(moments{resolver}.aroundOperation)
	server.AroundResponses(moments{resolver}.aroundResponse)
	server.AroundFields(moments{resolver}.aroundField)
	server.SetParserTokenLimit(maxTokens)
	server.SetQueryCache(lru.New[*ast.QueryDocument](256))
	server.Use(extension.Introspection{})
	server.Use(extension.FixedComplexityLimit(config.Complexity))
	server.Use(depthLimit(config.Depth))
	h := &Handler{config: config, graph: server, rechecks: rechecks{open: map[identity]*tokenWatch{}}}
	server.AddTransport(h.websocket())
	server.AddTransport(transport.SSE{KeepAlivePingInterval: config.Ping})
	server.AddTransport(transport.POST{})
	return h, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !fromHere(r, h.config.Origins) {
		http.Error(w, "pages of another site may not use this server", http.StatusForbidden)
		return
	}
	if r.URL.Path == "/login" {
		h.login(w, r)
		return
	}
	ctx, problem := h.identify(r)
	switch {
	case isUpgrade(r):
		// Who has no token yet sends it in connection_init.
		if !speaks(r, protocol) {
			http.Error(w, "speak graphql-transport-ws: the older graphql-ws is not served", http.StatusBadRequest)
			return
		}
		h.upgrade(w, r.WithContext(ctx))
	case problem != nil:
		h.refuse(w, problem)
	case strings.Contains(r.Header.Get("Accept"), "text/event-stream"):
		h.serveEvents(w, r.WithContext(ctx))
	default:
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		h.graph.ServeHTTP(w, r.WithContext(ctx))
	}
}

// serveEvents serves a subscription over server-sent events for as long as its token is good.
func (h *Handler) serveEvents(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	h.recheck(ctx, func() { cancel(errTokenGone) })
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	h.graph.ServeHTTP(&punctual{w, http.NewResponseController(w), h.config.Write}, r.WithContext(ctx))
}

// punctual is a response whose reader must take each write within a time, or is cut.
type punctual struct {
	http.ResponseWriter
	control *http.ResponseController
	within  time.Duration
}

// Write implements io.Writer.
func (p *punctual) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(time.Now().Add(p.within)) // without it there is only no deadline
	return p.ResponseWriter.Write(b)
}

// Flush implements http.Flusher.
func (p *punctual) Flush() { _ = p.control.Flush() }
