package graph

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/99designs/gqlgen/graphql/handler/transport"
	"github.com/coder/websocket"

	"github.com/pipeops/pipeops/domain"
)

const protocol = "graphql-transport-ws"

// Close codes of graphql-transport-ws.
const (
	closeBadMessage   = 4400
	closeUnauthorised = 4401
	closeForbidden    = 4403
	closeInitTimeout  = 4408
	closeDuplicate    = 4409
	closeInitTwice    = 4429
)

func isUpgrade(r *http.Request) bool { return strings.EqualFold(r.Header.Get("Upgrade"), "websocket") }

// speaks says whether a client offers a subprotocol.
func speaks(r *http.Request, name string) bool {
	for _, header := range r.Header.Values("Sec-WebSocket-Protocol") {
		for offered := range strings.SplitSeq(header, ",") {
			if strings.TrimSpace(offered) == name {
				return true
			}
		}
	}
	return false
}

// fromHere says whether a request is no browser's, or that of a page of ours, or of a host that is allowed to.
func fromHere(r *http.Request, origins []string) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil {
		return false
	}
	return strings.EqualFold(u.Host, r.Host) || slices.ContainsFunc(origins, func(pattern string) bool {
		ok, err := path.Match(strings.ToLower(pattern), strings.ToLower(u.Host))
		return ok && err == nil
	})
}

// websocket gives the transport. gqlgen runs the operations; what it leaves open (write deadlines, a cap of operations,
// ids used twice, the close codes of the protocol) is the connection's work.
func (h *Handler) websocket() transport.Websocket {
	limit := int64(maxBody)
	return transport.Websocket{
		Implementation: sockets{h.config},
		InitFunc:       h.initSocket, InitTimeout: h.config.Init,
		PingPongInterval: h.config.Ping, PayloadReadLimit: &limit,
		ErrorFunc: func(ctx context.Context, err error) {
			h.config.Log.DebugContext(ctx, "websocket was lost", "err", err)
		},
	}
}

type lifeKey struct{}

// Until gives the context that an http.Server makes those of its requests from (BaseContext), so that websockets may
// outlive the requests that opened them, and end with ctx.
func Until(ctx context.Context) context.Context { return context.WithValue(ctx, lifeKey{}, ctx) }

// upgrade serves a websocket. Where Until allows, it does so apart from the request: for as long as a handler runs, net/http
// keeps two buffers and a deep stack, which is half of what a subscriber takes.
func (h *Handler) upgrade(w http.ResponseWriter, r *http.Request) {
	s := &session{config: h.config, opened: make(chan struct{})}
	ctx := withSession(r.Context(), s)
	response := &handover{w}
	life, apart := ctx.Value(lifeKey{}).(context.Context)
	if !apart {
		h.graph.ServeHTTP(response, r.WithContext(ctx))
		return
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	refused := make(chan struct{})
	go func() {
		defer context.AfterFunc(life, func() { cancel(context.Cause(life)) })()
		defer cancel(nil)
		defer close(refused) // or over, when nobody waits for it any more
		defer func() {
			if what := recover(); what != nil {
				h.config.Log.ErrorContext(ctx, "a websocket's goroutine panicked", "panic", what, "stack", string(debug.Stack()))
				s.drop()
			}
		}()
		h.graph.ServeHTTP(response, r.WithContext(ctx))
	}()
	select {
	case <-s.opened:
	case <-refused:
	}
}

// initSocket finds out who opened a websocket, if the request's header or cookie hasn't told.
func (h *Handler) initSocket(ctx context.Context, payload transport.InitPayload) (context.Context, *transport.InitPayload, error) {
	if Actor(ctx) == "" {
		known, err := h.withActor(ctx, strings.TrimPrefix(payload.Authorization(), "Bearer "))
		if err != nil {
			shown := presenter{h.config.Log, h.config.NewID}.show(ctx, err)
			ctx = transport.AppendCloseReason(transport.WithWebsocketCloseCode(ctx, closeForbidden), "Forbidden")
			return ctx, nil, shown
		}
		ctx = known
	}
	s := sessionOf(ctx)
	h.recheck(ctx, func() { s.close(closeForbidden, errTokenGone.Error()) })
	return ctx, nil, nil
}

// session is what the request, the connection and the subscriptions of one websocket share.
type session struct {
	config Config
	mu     sync.Mutex
	conn   *socket
	opened chan struct{} // closed once there is one
	sent   domain.Cursor // of the newest batch of events that was handed out
}

type sessionKey struct{}

func withSession(ctx context.Context, s *session) context.Context {
	return context.WithValue(ctx, sessionKey{}, s)
}

// sessionOf gives the websocket's session, nil for other transports.
func sessionOf(ctx context.Context) *session {
	s, _ := ctx.Value(sessionKey{}).(*session)
	return s
}

func (s *session) open(conn *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = conn
	close(s.opened)
}

// drop ends the connection without a word.
func (s *session) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.conn.CloseNow()
	}
}

func (s *session) close(code int, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.WriteClose(code, reason)
	}
}

// hand notes how far a subscriber has come.
func (s *session) hand(cursor domain.Cursor) {
	if s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sent = cursor
	}
}

func (s *session) handed() domain.Cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// sockets accepts websockets.
type sockets struct{ config Config }

// Accept implements transport.WebsocketImplementation.
func (s sockets) Accept(w http.ResponseWriter, r *http.Request, _ transport.WebsocketAcceptOptions) (transport.WebsocketConn, error) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{protocol}, OriginPatterns: s.config.Origins,
	})
	if err != nil {
		return nil, err
	}
	c := &socket{conn: conn, config: s.config, session: sessionOf(r.Context()), byClient: map[string]string{}, byServer: map[string]string{}, ended: make(chan struct{}, 1)}
	c.session.open(c)
	return c, nil
}

// handover is a response that lets go of the request once its connection is taken over, and gives the connection buffers
// for what a subscriber says and hears at a time. The two of 4 KiB that net/http has made would else stay with both.
type handover struct{ http.ResponseWriter }

const bufferSize = 1 << 10

// Hijack implements http.Hijacker.
func (w *handover) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, large, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.ResponseWriter = nobody{w.Header()}
	early, err := large.Peek(large.Reader.Buffered())
	small := bufio.NewReadWriter(bufio.NewReaderSize(io.MultiReader(bytes.NewReader(early), conn), max(bufferSize, len(early))), bufio.NewWriterSize(conn, bufferSize))
	if err == nil {
		_, err = small.Peek(len(early)) // who takes them over takes what is in them, and reads on from conn
	}
	return conn, small, err
}

// nobody is whom a response goes to when its connection is a websocket's.
type nobody struct{ header http.Header }

// Header implements http.ResponseWriter.
func (n nobody) Header() http.Header { return n.header }

// Write implements http.ResponseWriter.
func (nobody) Write([]byte) (int, error) { return 0, http.ErrHijacked }

// WriteHeader implements http.ResponseWriter.
func (nobody) WriteHeader(int) {}

// socket is one connection. Operations get ids of our own towards gqlgen, which would otherwise mix up two operations
// that a client gives the same id one after the other.
type socket struct {
	conn    *websocket.Conn
	config  Config
	session *session

	mu       sync.Mutex
	greeted  bool
	count    int
	byClient map[string]string // id of the client's → ours, of operations that it hasn't ended
	byServer map[string]string // ours → the client's, of operations that the server hasn't ended; "" = the client has
	silence  *time.Timer
	closed   bool
	done     chan struct{} // of the closing handshake
	ended    chan struct{} // 1: an operation has come to its end
}

// frame is a message of the protocol.
type frame struct {
	ID      string          `json:"id,omitempty"`
	Type    string          `json:"type"`
	Payload json.RawMessage `json:"payload,omitempty"`
}

var errOver = errors.New("the connection is being closed")

// NextReader implements transport.WebsocketConn.
func (s *socket) NextReader() (int, io.Reader, error) {
	for {
		kind, b, err := s.conn.Read(context.Background()) // SetReadDeadline and Close end it
		if err != nil {
			switch websocket.CloseStatus(err) {
			case websocket.StatusNormalClosure, websocket.StatusGoingAway, websocket.StatusNoStatusRcvd:
				err = transport.ErrWebsocketClosed
			}
			return int(kind), nil, err
		}
		var f frame
		if json.Unmarshal(b, &f) != nil {
			_ = s.WriteClose(closeBadMessage, "Invalid message received")
			return int(kind), nil, errOver
		}
		switch pass, err := s.received(&f); {
		case err != nil:
			return int(kind), nil, err
		case pass:
			if b, err = json.Marshal(f); err != nil {
				return int(kind), nil, err
			}
			return int(kind), bytes.NewReader(b), nil
		}
	}
}

// received says whether a client's message goes on to gqlgen, with our id.
func (s *socket) received(f *frame) (pass bool, err error) {
	refuse := func(code int, reason string) (bool, error) {
		_ = s.WriteClose(code, reason)
		return false, errOver
	}
	s.mu.Lock()
	greeted, ours := s.greeted, s.byClient[f.ID]
	operations := len(s.byClient)
	s.mu.Unlock()
	switch f.Type {
	case "connection_init":
		if greeted {
			return refuse(closeInitTwice, "Too many initialisation requests")
		}
		s.mu.Lock()
		s.greeted = true
		s.mu.Unlock()
	case "subscribe":
		switch {
		case !greeted:
			return refuse(closeUnauthorised, "Unauthorized")
		case f.ID == "":
			return refuse(closeBadMessage, "Invalid message received")
		case ours != "":
			return refuse(closeDuplicate, "Subscriber for "+clip(f.ID)+" already exists")
		case operations >= s.config.Operations || !s.awaitRoom():
			return false, s.tooMany(f.ID)
		}
		f.ID = s.begin(f.ID)
	case "complete":
		if ours == "" {
			return false, nil
		}
		s.mu.Lock()
		delete(s.byClient, f.ID)
		if _, running := s.byServer[ours]; running {
			s.byServer[ours] = ""
		}
		s.mu.Unlock()
		f.ID = ours
	case "ping", "pong":
	default:
		return refuse(closeBadMessage, "Invalid message received")
	}
	return true, nil
}

// awaitRoom waits for operations that the client has ended, and that still come to their end here: one that ends and
// begins at once isn't refused, nor does it have more running than the cap.
func (s *socket) awaitRoom() bool {
	timer := time.NewTimer(s.config.Write)
	defer timer.Stop()
	for {
		s.mu.Lock()
		running := len(s.byServer)
		s.mu.Unlock()
		if running < s.config.Operations {
			return true
		}
		select {
		case <-s.ended:
		case <-timer.C:
			return false
		}
	}
}

func (s *socket) begin(client string) (ours string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	ours = strconv.Itoa(s.count)
	s.byClient[client], s.byServer[ours] = ours, client
	return ours
}

func (s *socket) tooMany(id string) error {
	payload, err := json.Marshal([]any{map[string]any{
		"message":    fmt.Sprintf("there are %d operations on this connection already", s.config.Operations),
		"extensions": map[string]any{"code": "TOO_MANY_OPERATIONS", "field": "", "fix": "end one, or open another connection"},
	}})
	if err != nil {
		return err
	}
	return s.write(frame{ID: id, Type: "error", Payload: payload})
}

// WriteJSON implements transport.WebsocketConn.
func (s *socket) WriteJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var f frame
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f.ID != "" && !s.rename(&f) {
		return nil // the client has ended it: the protocol wants no more of it
	}
	return s.write(f)
}

// rename gives a message the client's id again.
func (s *socket) rename(f *frame) (wanted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ours := f.ID
	f.ID = s.byServer[ours]
	if f.Type == "complete" || f.Type == "error" {
		delete(s.byServer, ours)
		select {
		case s.ended <- struct{}{}:
		default:
		}
		if f.ID != "" {
			delete(s.byClient, f.ID)
		}
	}
	return f.ID != ""
}

var errSlow = errors.New("the reader took too long")

// write sends a message, or cuts a reader that doesn't take it in time: then nothing can be sent any more, and the
// client goes on from the last cursor that it got.
func (s *socket) write(f frame) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), s.config.Write, errSlow)
	defer cancel()
	err = s.conn.Write(ctx, websocket.MessageText, b)
	if err != nil && errors.Is(context.Cause(ctx), errSlow) {
		s.config.Log.InfoContext(ctx, "websocket was cut: its reader is too slow", "cursor", s.session.handed())
		_ = s.conn.CloseNow()
	}
	return err
}

// WriteClose implements transport.WebsocketConn. The handshake goes on by itself until Close.
func (s *socket) WriteClose(code int, reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed, s.done = true, make(chan struct{})
	s.stopTimer()
	if code == transport.WebsocketCloseProtocolError { // what gqlgen says for these; a lost greeting is the other one
		code, reason = closeBadMessage, "Invalid message received"
		if !s.greeted {
			code, reason = closeInitTimeout, "Connection initialisation timeout"
		}
	}
	go func() {
		defer close(s.done)
		_ = s.conn.Close(websocket.StatusCode(code), clip(reason))
	}()
	return nil
}

// Close implements transport.WebsocketConn.
func (s *socket) Close() error {
	s.mu.Lock()
	s.stopTimer()
	done := s.done
	s.mu.Unlock()
	if done != nil {
		<-done // at most the library's 5 s for the other side's answer
	}
	return s.conn.CloseNow()
}

// Subprotocol implements transport.WebsocketConn.
func (s *socket) Subprotocol() string { return s.conn.Subprotocol() }

// SetReadLimit implements transport.WebsocketReadLimiter.
func (s *socket) SetReadLimit(limit int64) { s.conn.SetReadLimit(limit) }

// SetReadDeadline implements transport.WebsocketReadDeadliner: gqlgen sets it with a ping and clears it with the pong.
func (s *socket) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopTimer()
	if !t.IsZero() {
		s.silence = time.AfterFunc(time.Until(t), func() { _ = s.conn.CloseNow() })
	}
	return nil
}

func (s *socket) stopTimer() {
	if s.silence != nil {
		s.silence.Stop()
		s.silence = nil
	}
}

// clip keeps a close reason within what a control frame holds (123 bytes).
func clip(reason string) string {
	if len(reason) > 100 {
		reason = strings.ToValidUTF8(reason[:100], "")
	}
	return reason
}
