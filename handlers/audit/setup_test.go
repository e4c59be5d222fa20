package audit_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/eventstore/verify"
	"github.com/pipeops/pipeops/handlers/audit"
	"github.com/pipeops/pipeops/internal/records"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/internal/testenv"
	"github.com/pipeops/pipeops/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a server of audits on a database of its own.
type world struct {
	t      testing.TB
	owner  *pgxpool.Pool
	store  *eventstore.Store
	signer *eventstore.Signer
	keys   *seal.Keyring
	leads  *records.Leaders
	server *httptest.Server
	log    *slog.Logger
}

const token = "good"

type tokens struct{}

func (tokens) Verify(_ context.Context, shown string) (string, bool, error) {
	return "token:1", shown == token, nil
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, log: slog.New(slog.DiscardHandler)}
	url := testenv.Postgres(t)
	app, err := migrations.Up(t.Context(), url, w.log)
	must(t, err)
	w.owner, err = pgxpool.New(t.Context(), url)
	must(t, err)
	t.Cleanup(w.owner.Close)
	w.store, err = eventstore.Open(t.Context(), eventstore.Config{URL: app, Log: w.log})
	must(t, err)
	t.Cleanup(w.store.Close)
	master, err := seal.LoadMaster(filepath.Join(t.TempDir(), "master.key"))
	must(t, err)
	w.keys, err = seal.Open(t.Context(), master, records.NewKeys(w.store.Pool()))
	must(t, err)
	w.leads = records.NewLeaders(w.store.Pool(), w.log)
	w.signer, err = eventstore.NewSigner(eventstore.SignerConfig{Store: w.store, Keys: w.keys, Leader: w.leads, Log: w.log})
	must(t, err)
	handler, err := audit.New(audit.Config{
		Store: w.store, Signer: w.signer, Keys: w.keys, Tokens: tokens{}, Log: w.log, Write: time.Second,
		Project: func(_ context.Context, name string) (domain.ProjectID, error) {
			return map[string]domain.ProjectID{"one": "prj_1", "two": "prj_2"}[name], nil
		},
		Actors: func(context.Context) (map[string]string, error) { return map[string]string{"token:1": "laptop"}, nil },
	})
	must(t, err)
	w.server = httptest.NewServer(handler)
	t.Cleanup(w.server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return w
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// append adds n events of projects prj_1 and prj_2 in turn, and of none.
func (w *world) append(n int) {
	w.t.Helper()
	a := eventstore.Append{}
	for i := range n {
		project := domain.ProjectID([]string{"", "prj_1", "prj_2"}[i%3])
		a.Writes = append(a.Writes, eventstore.Write{
			Stream: domain.Stream("build/" + uuid.NewString()), Expected: 0,
			Events: []eventstore.NewEvent{{
				ID: uuid.NewString(), Type: "LayerBuilt", SchemaVersion: 1, ProjectID: project, Actor: fmt.Sprint("token:", i%2),
				Body: fmt.Appendf(nil, `{"build":"bld_%d","step":"RUN go build ./...","text":%q}`, i, "<&>é"), OccurredAt: time.Now(),
			}},
		})
		if len(a.Writes) == 500 || i == n-1 {
			_, err := w.store.Append(w.t.Context(), a)
			must(w.t, err)
			a = eventstore.Append{}
		}
	}
}

// get asks for something, with the token.
func (w *world) get(method, path string) (int, []byte) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+"/audit/"+path, nil)
	must(w.t, err)
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	must(w.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(w.t, err)
	return resp.StatusCode, body
}

func (w *world) mustGet(method, path string) []byte {
	w.t.Helper()
	status, body := w.get(method, path)
	if status != http.StatusOK {
		w.t.Fatalf("%s %s: %d %s", method, path, status, body)
	}
	return body
}

func (w *world) exec(statement string) {
	w.t.Helper()
	_, err := w.owner.Exec(w.t.Context(), statement)
	must(w.t, err)
}

// verifyKeys are those that checkpoints are signed with.
func (w *world) verifyKeys() verify.Keys {
	w.t.Helper()
	keys, err := verify.ParseKeys(w.mustGet(http.MethodGet, "key.pub"))
	must(w.t, err)
	var public []ed25519.PublicKey
	public, _, err = w.keys.HeadSigner(w.t.Context())
	must(w.t, err)
	if len(public) != len(keys.Public) {
		w.t.Fatalf("key.pub has %d keys, want %d", len(keys.Public), len(public))
	}
	return keys
}
