package webhook_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/handlers/webhook"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	project = domain.ProjectID("prj_hello")
	secret  = "it's a secret to everybody"
)

// bundle is a control plane as far as webhooks need it, with a project whose webhook has a secret.
type bundle struct {
	store      *eventstore.Store
	commands   *commands.Handler
	keys       *seal.Keyring
	subjects   *seal.Subjects
	secrets    *records.Secrets
	deliveries *records.Deliveries
	config     webhook.Config
	url        string // of a server
}

func newID(prefix string) string { return prefix + "_" + uuid.Must(uuid.NewV7()).String() }

func setup(t *testing.T) *bundle {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	app, err := migrations.Up(t.Context(), testenv.Postgres(t), log)
	must(t, err)
	b := &bundle{}
	b.store, err = eventstore.Open(t.Context(), eventstore.Config{URL: app, Log: log})
	must(t, err)
	t.Cleanup(b.store.Close)
	pool := b.store.Pool()
	master, err := seal.LoadMaster(filepath.Join(t.TempDir(), "master.key"))
	must(t, err)
	b.keys, err = seal.Open(t.Context(), master, records.NewKeys(pool))
	must(t, err)
	b.subjects = seal.NewSubjects(b.keys, records.NewSubjects(pool))
	b.secrets, b.deliveries = records.NewSecrets(pool, b.keys), records.NewDeliveries(pool, b.keys)
	b.commands, err = commands.New(commands.Config{Store: b.store, Sealer: b.subjects, Log: log})
	must(t, err)
	b.config = webhook.Config{
		Receiver: b.commands, Secrets: secretsOf{b.secrets}, Seal: b.deliveries.Seal, Fingerprint: b.keys.Fingerprint, Subject: b.keys.Actor, NewID: newID, Log: log,
	}
	b.url = b.serve(t, b.config)
	b.create(t, project, "master")
	_, err = b.secrets.Set(t.Context(), project, "webhook/github", []byte(secret))
	must(t, err)
	return b
}

// serve gives the address of one more server.
func (b *bundle) serve(t *testing.T, c webhook.Config) string {
	t.Helper()
	h, err := webhook.New(c)
	must(t, err)
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

// create makes a project that lacks nothing.
func (b *bundle) create(t *testing.T, id domain.ProjectID, branch string) {
	t.Helper()
	_, err := b.commands.Execute(t.Context(), domain.CreateProject{
		ID: id, Name: "hello", Settings: domain.ProjectSettings{Branch: branch, Registry: "registry.test/acme"},
		Services:     []domain.NewService{{ID: "svc_hello", Name: "hello", Spec: domain.DefaultSpec()}},
		Environments: []domain.NewEnvironment{{ID: "env_production", Name: "production"}},
	}, commands.Meta{CommandID: "create-" + string(id), Actor: "act_test", At: time.Now(), Project: id})
	must(t, err)
}

// secretsOf gives a webhook's secrets as serve does.
type secretsOf struct{ *records.Secrets }

func (s secretsOf) WebhookSecrets(ctx context.Context, p domain.ProjectID, provider string) ([]webhook.Secret, error) {
	revisions, err := s.Revisions(ctx, p, "webhook/"+provider, 2)
	var out []webhook.Secret
	for _, r := range revisions {
		out = append(out, webhook.Secret{Revision: r.Number, Value: r.Value, ReplacedAt: r.ReplacedAt})
	}
	return out, err
}

// delivery is a request of GitHub.
type delivery struct {
	id, event, body string
	headers         map[string]string // in addition, or instead; empty: left out
	path            string            // default: that of the project
	method          string            // default POST
}

func sign(key, body string) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// fixture gives a recorded body.
func fixture(t *testing.T, name string) string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join("testdata", "deliveries", "github", name+".json"))
	must(t, err)
	return string(body)
}

func (d delivery) request(t *testing.T, url string) *http.Request {
	t.Helper()
	path, method := d.path, d.method
	if path == "" {
		path = "/webhooks/github/" + string(project)
	}
	if method == "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url+path, bytes.NewReader([]byte(d.body)))
	must(t, err)
	headers := map[string]string{
		"Content-Type": "application/json", "X-GitHub-Event": d.event, "X-GitHub-Delivery": d.id, "X-Hub-Signature-256": sign(secret, d.body),
	}
	maps.Copy(headers, d.headers)
	for name, value := range headers {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	return req
}

// answer is what a sender reads.
type answer struct {
	code   int
	header http.Header

	Push      string            `json:"push"`
	Status    string            `json:"status"`
	Reason    string            `json:"reason"`
	Cursor    string            `json:"cursor"`
	Diagnosis *domain.Diagnosis `json:"diagnosis"`
}

func (b *bundle) send(t *testing.T, d delivery) answer { t.Helper(); return send(t, b.url, d) }

func send(t *testing.T, url string, d delivery) answer {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(d.request(t, url))
	must(t, err)
	defer res.Body.Close() //nolint:errcheck // only read
	body, err := io.ReadAll(res.Body)
	must(t, err)
	a := answer{code: res.StatusCode, header: res.Header}
	if err := json.Unmarshal(body, &a); err != nil {
		t.Fatalf("answer %d isn't JSON: %s", res.StatusCode, body)
	}
	return a
}

// recorded gives the events of pushes, with their personal fields opened.
func (b *bundle) recorded(t *testing.T) (events []domain.Event, envelopes []domain.Recorded) {
	t.Helper()
	for r, err := range b.store.Read(t.Context(), eventstore.Query{}) {
		must(t, err)
		if kind := r.Stream.Kind(); kind != "push" && kind != "ref" {
			continue
		}
		e, err := r.Decode()
		must(t, err)
		e, err = domain.Open(e, r.ID, func(subject, eventID, field, text string) (string, bool, error) {
			return b.subjects.OpenField(t.Context(), subject, eventID, field, text)
		})
		must(t, err)
		events, envelopes = append(events, e), append(envelopes, r)
	}
	return events, envelopes
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
