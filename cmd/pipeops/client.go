package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"github.com/pipeops/pipeops/internal/local"
)

// client speaks GraphQL to a server.
type client struct{ url, token string }

// reached is what `pipeops up` leaves for the other commands, in <home>/client.json.
type reached struct {
	URL         string `json:"url"`
	TokenFile   string `json:"tokenFile"`
	OwnPostgres bool   `json:"ownPostgres"` // it keeps the database in the home
}

func reachedFile(home string) string { return filepath.Join(home, "client.json") }

func readReached(home string) (r reached, err error) {
	b, err := os.ReadFile(reachedFile(home))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// newClient takes PIPEOPS_URL and PIPEOPS_TOKEN, or what `pipeops up` wrote.
func newClient() (*client, error) {
	c := &client{url: strings.TrimSuffix(os.Getenv("PIPEOPS_URL"), "/"), token: os.Getenv("PIPEOPS_TOKEN")}
	if c.url != "" && c.token != "" {
		return c, nil
	}
	r, err := readReached(local.DefaultHome())
	if err != nil {
		return nil, usage("no server is known: set PIPEOPS_URL and PIPEOPS_TOKEN, or start one: pipeops up")
	}
	if c.url == "" {
		c.url = r.URL
	}
	if c.token == "" {
		t, err := os.ReadFile(r.TokenFile)
		if err != nil {
			return nil, usage("PIPEOPS_TOKEN isn't set, and the token that `pipeops up` wrote can't be read: %v", err)
		}
		c.token = strings.TrimSpace(string(t))
	}
	return c, nil
}

// gqlError is one error of an answer.
type gqlError struct {
	Message    string `json:"message"`
	Extensions struct {
		Code  string `json:"code"`
		Field string `json:"field"`
		Fix   string `json:"fix"`
	} `json:"extensions"`
}

func asError(errs []gqlError) error {
	if len(errs) == 0 {
		return nil
	}
	var texts []error
	code := exitRefused
	for _, e := range errs {
		text := e.Message
		if e.Extensions.Fix != "" && !strings.Contains(text, e.Extensions.Fix) {
			text += "\nFix: " + e.Extensions.Fix
		}
		if e.Extensions.Code == "INTERNAL" || e.Extensions.Code == "" {
			code = exitFailure
		}
		texts = append(texts, errors.New(text))
	}
	return &coded{code, errors.Join(texts...)}
}

// do asks one query or mutation.
func (c *client) do(ctx context.Context, query string, variables map[string]any, out any) error {
	_, err := c.ask(ctx, query, variables, out)
	return err
}

// ask is do, and tells as of which cursors the fields of a query were answered.
func (c *client) ask(ctx context.Context, query string, variables map[string]any, out any) (asOf map[string]string, err error) {
	body, err := json.Marshal(map[string]any{"query": query, "variables": variables})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/graphql", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w (is it running? pipeops up)", c.url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized {
		return nil, c.unknownToken()
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.url, err)
	}
	var answer struct {
		Data   json.RawMessage `json:"data"`
		Errors []gqlError      `json:"errors"`

		Extensions struct {
			AsOf map[string]string `json:"asOf"`
		} `json:"extensions"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("%s answered %s, not GraphQL", c.url, resp.Status)
	}
	if err := asError(answer.Errors); err != nil {
		return nil, err
	}
	return answer.Extensions.AsOf, json.Unmarshal(answer.Data, out)
}

// Close codes of graphql-transport-ws.
const (
	closeUnauthorized = websocket.StatusCode(4401)
	closeForbidden    = websocket.StatusCode(4403)
)

func (c *client) unknownToken() error {
	return &coded{exitRefused, fmt.Errorf("%s doesn't know this token: check PIPEOPS_TOKEN", c.url)}
}

// errEnough ends a subscription from within.
var errEnough = errors.New("enough")

// subscribe follows a subscription over graphql-transport-ws until each gives
// an error, the server ends it, or the connection is lost.
func (c *client) subscribe(ctx context.Context, query string, variables map[string]any, each func(data json.RawMessage) error) error {
	ws, resp, err := websocket.Dial(ctx, strings.Replace(c.url, "http", "ws", 1)+"/graphql", &websocket.DialOptions{ //nolint:bodyclose // the library closes it
		Subprotocols: []string{"graphql-transport-ws"},
		HTTPHeader:   http.Header{"Authorization": {"Bearer " + c.token}},
	})
	if err != nil && resp != nil && (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden) {
		return c.unknownToken()
	}
	if err != nil {
		return fmt.Errorf("reach %s: %w", c.url, err)
	}
	defer func() { _ = ws.CloseNow() }()
	ws.SetReadLimit(16 << 20)
	init := map[string]any{"type": "connection_init", "payload": map[string]any{"authorization": "Bearer " + c.token}}
	if err := wsjson.Write(ctx, ws, init); err != nil {
		return err
	}
	for {
		var m struct {
			Type    string          `json:"type"`
			Payload json.RawMessage `json:"payload"`
		}
		if err := wsjson.Read(ctx, ws, &m); err != nil {
			if code := websocket.CloseStatus(err); code == closeUnauthorized || code == closeForbidden {
				return c.unknownToken()
			}
			return fmt.Errorf("subscription: %w", err)
		}
		switch m.Type {
		case "connection_ack":
			err = wsjson.Write(ctx, ws, map[string]any{"id": "1", "type": "subscribe", "payload": map[string]any{"query": query, "variables": variables}})
		case "ping":
			err = wsjson.Write(ctx, ws, map[string]any{"type": "pong"})
		case "next":
			err = next(m.Payload, each)
		case "error":
			var errs []gqlError
			_ = json.Unmarshal(m.Payload, &errs)
			err = asError(errs)
		case "complete":
			return nil
		}
		if err != nil {
			_ = ws.Close(websocket.StatusNormalClosure, "")
			return err
		}
	}
}

func next(payload json.RawMessage, each func(json.RawMessage) error) error {
	var p struct {
		Data   json.RawMessage `json:"data"`
		Errors []gqlError      `json:"errors"`
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return err
	}
	if err := asError(p.Errors); err != nil {
		return err
	}
	return each(p.Data)
}

// waitFor blocks for d or until ctx ends; false when it ended.
func waitFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
