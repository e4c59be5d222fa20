package graph_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/graph"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/handlers/replay"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
	"github.com/pipeops/pipeops/projections"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a server of the API on a database of its own.
type world struct {
	t        testing.TB
	app      string // address of the application's login
	owner    *pgxpool.Pool
	keys     *seal.Keyring
	subjects *seal.Subjects
	store    *eventstore.Store
	commands *commands.Handler
	records  struct {
		tokens  *records.Tokens
		secrets *records.Secrets
		logs    *records.LogChunks
		claims  *records.Claims
	}
	replays *replay.Replays
	server  *httptest.Server
	token   string
	id      string // of the token
	pushes  int
	now     time.Time
}

// verifier turns records.Tokens into what graph asks for.
type verifier struct{ *records.Tokens }

func (v verifier) Verify(ctx context.Context, token string) (string, bool, error) {
	found, err := v.Tokens.Verify(ctx, token)
	if errors.Is(err, records.ErrBadToken) {
		return "", false, nil
	}
	return "token:" + found.ID, err == nil, err
}

func newWorld(t *testing.T, change ...func(*graph.Config)) *world {
	t.Helper()
	url := testenv.Postgres(t)
	app, err := migrations.Up(t.Context(), url, slog.New(slog.DiscardHandler))
	must(t, err)
	w := &world{t: t, app: app, now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	w.owner, err = pgxpool.New(t.Context(), url)
	must(t, err)
	t.Cleanup(w.owner.Close)
	w.store, err = eventstore.Open(t.Context(), eventstore.Config{URL: app, Log: log})
	must(t, err)
	t.Cleanup(w.store.Close)
	running(t, w.store.Run)
	master, err := seal.LoadMaster(filepath.Join(t.TempDir(), "master.key"))
	must(t, err)
	pool := w.store.Pool()
	keys, err := seal.Open(t.Context(), master, records.NewKeys(pool))
	must(t, err)
	w.keys = keys
	w.subjects = seal.NewSubjects(keys, records.NewSubjects(pool))
	w.commands, err = commands.New(commands.Config{Store: w.store, Sealer: w.subjects, Log: log})
	must(t, err)
	projector, err := projections.New(projections.Config{
		Store: w.store, Opener: w.subjects.OpenField, Leader: records.NewLeaders(pool, log), Log: log, Patience: 20 * time.Second,
	})
	must(t, err)
	running(t, projector.Run)
	w.replays, err = replay.New(replay.Config{
		Store: w.store, Commands: w.commands, Projector: projector, Deliveries: records.NewDeliveries(pool, keys),
		Opener: w.subjects.OpenField, Keyed: commands.Keyed{Subject: keys.Actor, Fingerprint: keys.Fingerprint}, NewID: newID, Now: time.Now,
	})
	must(t, err)
	w.records.tokens, w.records.secrets = records.NewTokens(pool, keys), records.NewSecrets(pool, keys)
	w.records.logs, w.records.claims = records.NewLogChunks(pool), records.NewClaims(pool)
	var made records.Token
	w.token, made, err = w.records.tokens.Create(t.Context(), "test")
	must(t, err)
	w.id = made.ID
	config := graph.Config{
		Queries: projector.Queries(), Commands: w.commands, Tokens: verifier{w.records.tokens}, Secrets: w.records.secrets,
		Logs: w.records.logs, Workers: w.records.claims, Replays: w.replays, NewID: newID,
		Erasures: records.NewErasures(keys, w.subjects, records.NewDeliveries(pool, keys)), Log: log, URL: "https://pipeops.test", Registry: "registry.test",
		Heartbeat: 50 * time.Millisecond, Interval: 10 * time.Millisecond,
	}
	for _, f := range change {
		f(&config)
	}
	api, err := graph.New(config)
	must(t, err)
	mux := http.NewServeMux()
	mux.Handle("/graphql", api)
	mux.Handle("/login", api)
	mux.Handle("/", api.SignIn(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "page "+r.URL.String()) })))
	life, end := context.WithCancelCause(context.WithoutCancel(t.Context()))
	w.server = httptest.NewUnstartedServer(mux)
	w.server.Config.BaseContext = func(net.Listener) context.Context { return graph.Until(life) }
	w.server.Start()
	t.Cleanup(w.server.Close)
	t.Cleanup(func() { end(nil) })
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return w
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// running runs a service until the test ends.
func running(tb testing.TB, run func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	tb.Cleanup(func() {
		cancel(nil)
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
}

func newID(prefix string) string { return prefix + "_" + uuid.Must(uuid.NewV7()).String() }

// problem is an error of an answer.
type problem struct {
	Message    string `json:"message"`
	Extensions struct {
		Code     string `json:"code"`
		Field    string `json:"field"`
		Fix      string `json:"fix"`
		Position string `json:"position"`
	} `json:"extensions"`
}

// post sends a query with the token.
func (w *world) post(query string, variables map[string]any) (data json.RawMessage, problems []problem) {
	w.t.Helper()
	var answer struct {
		Data   json.RawMessage `json:"data"`
		Errors []problem       `json:"errors"`
	}
	b := w.raw(query, variables)
	if err := json.Unmarshal(b, &answer); err != nil {
		w.t.Fatalf("%s: %s", query, b)
	}
	return answer.Data, answer.Errors
}

// raw gives the answer as it came.
func (w *world) raw(query string, variables map[string]any) []byte {
	w.t.Helper()
	body, err := json.Marshal(map[string]any{"query": query, "variables": variables})
	must(w.t, err)
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.server.URL+"/graphql", bytes.NewReader(body))
	must(w.t, err)
	r.Header.Set("Authorization", "Bearer "+w.token)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	must(w.t, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must(w.t, err)
	return b
}

// ask wants an answer without errors.
func ask[T any](w *world, query string, variables map[string]any) (out T) {
	w.t.Helper()
	data, problems := w.post(query, variables)
	if len(problems) > 0 {
		w.t.Fatalf("%s: got %+v", query, problems)
	}
	must(w.t, json.Unmarshal(data, &out))
	return out
}

// refused wants an error with a code.
func (w *world) refused(code, query string, variables map[string]any) problem {
	w.t.Helper()
	data, problems := w.post(query, variables)
	if len(problems) != 1 || problems[0].Extensions.Code != code {
		w.t.Fatalf("%s: got %s, %+v, want one error %s", query, data, problems, code)
	}
	return problems[0]
}

type made struct {
	CreateProject struct {
		Project struct{ ID domain.ProjectID }
		Cursor  string
	}
}

// project creates one over the API.
func (w *world) project(name string) domain.ProjectID {
	w.t.Helper()
	return ask[made](w, `mutation($name: String!) { createProject(input: {name: $name}) { project { id } cursor } }`,
		map[string]any{"name": name}).CreateProject.Project.ID
}

// do lets something happen that isn't the API's.
func (w *world) do(project domain.ProjectID, cmd domain.Command) []domain.Recorded {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	result, err := w.commands.Execute(w.t.Context(), cmd, commands.Meta{CommandID: uuid.NewString(), Actor: "act_1", At: w.now, Project: project})
	must(w.t, err)
	w.follow(result.Events)
	return result.Events
}

func (w *world) follow(events []domain.Recorded) {
	w.t.Helper()
	for _, r := range events {
		e, err := r.Decode()
		must(w.t, err)
		if cmd, follows := domain.Follow(r, e, newID); follows {
			w.do(r.ProjectID, cmd)
		}
	}
}

// push lets a push arrive, and gives its build.
func (w *world) push(project domain.ProjectID) (domain.PushID, domain.BuildID) {
	w.t.Helper()
	w.pushes++
	id := domain.PushID(newID("psh"))
	commit := fmt.Sprintf("%040d", w.pushes)
	w.do(project, domain.ReceivePush{
		Push: id, Project: project, Source: "github", Delivery: strconv.Itoa(w.pushes), Kind: "push", Ref: "refs/heads/main", Commit: commit, Body: commit,
		Pusher: domain.Personal{Text: "ada", Subject: "p1"}, Author: domain.Personal{Text: "Ada", Subject: "p1"}, Message: domain.Personal{Text: "fix", Subject: "p1"},
	})
	return id, last[domain.BuildRequested](w, project).Build
}

// last gives the newest event of a type.
func last[E domain.Event](w *world, project domain.ProjectID) (event E) {
	w.t.Helper()
	for r, err := range w.store.Read(w.t.Context(), eventstore.Query{Project: project, Types: []string{domain.TypeOf(event)}}) {
		must(w.t, err)
		e, err := r.Decode()
		must(w.t, err)
		event, _ = e.(E)
	}
	return event
}

// report lets a worker report items.
func (w *world) report(a domain.AttemptID, items ...domain.Event) {
	w.t.Helper()
	stored, _, err := w.commands.Progress(w.t.Context(), a)
	must(w.t, err)
	for i, item := range items {
		w.now = w.now.Add(time.Second)
		events, err := reportItem(w.t.Context(), w.store, w.commands, a, stored+int64(i)+1, commands.Item{Event: item, At: w.now})
		must(w.t, err)
		w.follow(events)
	}
}

// reportItem reports one item and gives what was recorded.
func reportItem(ctx context.Context, store *eventstore.Store, h *commands.Handler, a domain.AttemptID, number int64, item commands.Item) ([]domain.Recorded, error) {
	if _, err := h.Report(ctx, a, number, []commands.Item{item}, "wrk_1"); err != nil {
		return nil, err
	}
	var ids []string
	for i := range 8 { // more than an item ever leads to
		ids = append(ids, domain.EventID(domain.ReportCommandID(a, number), i))
	}
	return store.Find(ctx, ids...)
}

// build takes a build to its image.
func (w *world) build(project domain.ProjectID, id domain.BuildID) {
	w.t.Helper()
	asked := last[domain.BuildRequested](w, project)
	digest := "sha256:" + asked.Commit
	w.do(project, domain.ClaimBuild{Build: id, Worker: "wrk_1", Incarnation: "i1"})
	w.report(domain.NewAttemptID(string(id), 1), domain.ImagePushed{Reference: asked.Image + "@" + digest, Digest: digest},
		domain.ImageTagged{Reference: "registry.test/app:1", Digest: digest}, domain.BuildSucceeded{Digest: digest})
}

// deployment takes a deployment to a verdict.
func (w *world) deployment(project domain.ProjectID, verdict ...domain.Event) domain.DeploymentID {
	w.t.Helper()
	id := last[domain.DeploymentRequested](w, project).Deployment
	w.do(project, domain.ClaimDeployment{Deployment: id, Worker: "wrk_2", Incarnation: "i2", At: w.now})
	w.report(domain.NewAttemptID(string(id), 1), verdict...)
	return id
}

func (w *world) head() domain.Cursor {
	w.t.Helper()
	c, err := w.store.Head(w.t.Context())
	must(w.t, err)
	return c
}

// frame is a message of graphql-transport-ws.
type frame struct {
	ID      string          `json:"id,omitempty"`
	Type    string          `json:"type"`
	Payload json.RawMessage `json:"payload,omitempty"`
}

// socket is a websocket to the server.
type socket struct {
	t    testing.TB
	conn *websocket.Conn
}

// dial opens a websocket without saying anything; header may be nil.
func (w *world) dial(header http.Header) *socket {
	w.t.Helper()
	conn, resp, err := websocket.Dial(w.t.Context(), w.server.URL+"/graphql", &websocket.DialOptions{
		Subprotocols: []string{"graphql-transport-ws"}, HTTPHeader: header,
	})
	must(w.t, err)
	if resp.Body != nil {
		_ = resp.Body.Close()
	}
	conn.SetReadLimit(64 << 20)
	w.t.Cleanup(func() { _ = conn.CloseNow() })
	return &socket{w.t, conn}
}

// connect opens a websocket and says who it is.
func (w *world) connect() *socket {
	w.t.Helper()
	s := w.dial(nil)
	s.send(frame{Type: "connection_init", Payload: payload(map[string]any{"authorization": "Bearer " + w.token})})
	if f, err := s.next(); err != nil || f.Type != "connection_ack" {
		w.t.Fatalf("got %+v, %v, want connection_ack", f, err)
	}
	return s
}

func payload(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func (s *socket) send(f frame) {
	s.t.Helper()
	b, err := json.Marshal(f)
	must(s.t, err)
	must(s.t, s.conn.Write(s.t.Context(), websocket.MessageText, b))
}

// next reads a message, answering pings.
func (s *socket) next() (f frame, err error) {
	ctx, cancel := context.WithTimeoutCause(s.t.Context(), 30*time.Second, errors.New("nothing came for 30 s"))
	defer cancel()
	for {
		_, b, err := s.conn.Read(ctx)
		if err != nil {
			return f, err
		}
		if err := json.Unmarshal(b, &f); err != nil || f.Type != "ping" {
			return f, err
		}
		s.send(frame{Type: "pong"})
		f = frame{}
	}
}

func (s *socket) subscribe(id, query string, variables map[string]any) {
	s.t.Helper()
	s.send(frame{ID: id, Type: "subscribe", Payload: payload(map[string]any{"query": query, "variables": variables})})
}

// data reads the next answer to a subscription.
func data[T any](s *socket, id string) (out T) {
	s.t.Helper()
	f, err := s.next()
	must(s.t, err)
	var answer struct {
		Data   json.RawMessage `json:"data"`
		Errors []problem       `json:"errors"`
	}
	if f.Type != "next" || f.ID != id || json.Unmarshal(f.Payload, &answer) != nil || len(answer.Errors) > 0 {
		s.t.Fatalf("got %s %s %s, want data of %s", f.Type, f.ID, f.Payload, id)
	}
	must(s.t, json.Unmarshal(answer.Data, &out))
	return out
}

// closed reads until the server has closed, and gives the code and the reason.
func (s *socket) closed() (websocket.StatusCode, string) {
	s.t.Helper()
	for {
		if _, err := s.next(); err != nil {
			if c, ok := errors.AsType[websocket.CloseError](err); ok {
				return c.Code, c.Reason
			}
			return -1, err.Error()
		}
	}
}
