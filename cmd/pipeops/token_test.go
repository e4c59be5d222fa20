package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/records"
)

func TestTokensAreListedAndRevoked(t *testing.T) {
	o := newOffice(t)
	secret := strings.TrimSpace(o.run("token", "create", "ci"))
	o.run("token", "create", "twin")
	o.run("token", "create", "twin")
	o.run("project", "list") // with the token called laptop
	list := o.run("token", "list")
	if strings.Contains(list, secret) || strings.Count(list, "\n") != 5 || strings.Count(list, "twin") != 2 {
		t.Errorf("got\n%s", list)
	}
	var all []records.Token
	o.must(json.Unmarshal([]byte(o.run("token", "list", "--json")), &all))
	if len(all) != 4 || all[0].Name != "laptop" || all[0].LastUsed == nil || all[1].Name != "ci" || all[1].LastUsed != nil {
		t.Fatalf("got %+v", all)
	}
	o.fails(exitUsage, "2 tokens are called \"twin\"", "token", "revoke", "twin")
	o.fails(exitRefused, "pipeops token list", "token", "revoke", "nobody")
	for _, command := range []string{"revoke", "create"} {
		out, code, err := o.try("token", command, secret)
		if code != exitUsage || strings.Contains(out+err.Error(), secret) {
			t.Errorf("%s: exit code %d, a token is told: %s, %v", command, code, out, err)
		}
	}
	o.run("token", "revoke", all[2].ID)
	o.run("token", "revoke", "twin")
	o.run("token", "revoke", "ci")
	other := os.Getenv("PIPEOPS_TOKEN")
	t.Setenv("PIPEOPS_TOKEN", secret)
	if _, _, err := o.try("project", "list"); err == nil {
		t.Error("a revoked token still opens")
	}
	c, err := newClient()
	o.must(err)
	if _, err = c.fetchAll(t.Context(), http.MethodGet, "key.pub", nil); err == nil || !strings.Contains(err.Error(), "know this token") {
		t.Errorf("a revoked token still opens what auditors read: %v", err)
	}
	t.Setenv("PIPEOPS_TOKEN", other)
	said := o.run("audit", "log", "--type", "TokenCreated,TokenRevoked")
	if strings.Count(said, "\n") != 6 || strings.Count(said, "operator") != 6 || strings.Contains(said, secret) {
		t.Errorf("on record is\n%s", said)
	}
	if out := o.run("token", "list"); strings.Count(out, "\n") != 2 {
		t.Errorf("got\n%s", out)
	}
}

func TestARevocationThatIsCutShortIsRecordedByTheNextTry(t *testing.T) {
	o := newOffice(t)
	o.run("token", "create", "ci")
	revoked := func() int { return strings.Count(o.run("audit", "log", "--type", "TokenRevoked"), "\n") }
	o.exec(`CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
		CREATE TRIGGER no BEFORE UPDATE OF revoked_at ON pipeops.tokens FOR EACH ROW EXECUTE FUNCTION public.no()`)
	o.fails(exitFailure, "no", "token", "revoke", "ci")
	if n := revoked(); n != 0 {
		t.Fatalf("it isn't revoked, and is on record %d times", n)
	}
	o.exec(`DROP TRIGGER no ON pipeops.tokens`)
	o.refuseToRecord("TokenRevoked")
	for range 2 {
		o.fails(exitFailure, "is revoked, but not on record", "token", "revoke", "ci")
	}
	o.exec(`DROP TRIGGER no ON pipeops.events`)
	if out := o.run("token", "revoke", "ci"); !strings.HasPrefix(out, "revoked ci (") || revoked() != 1 {
		t.Errorf("got %s, it is on record %d times", out, revoked())
	}
	o.fails(exitRefused, "no valid token", "token", "revoke", "ci")
	_, old, err := o.core.tokens.Create(t.Context(), "old") // its end was recorded by a version that took another command id
	o.must(err)
	o.must(o.core.tokens.Revoke(t.Context(), old.ID))
	o.must(o.core.record(t.Context(), domain.TokenRevoked{Token: old.ID, Name: old.Name}))
	o.fails(exitRefused, "no valid token", "token", "revoke", "old")
	if n := revoked(); n != 2 {
		t.Errorf("it is on record %d times", n)
	}
}

// refuseToRecord lets the log take no event of a type, until its trigger "no" is dropped.
func (o *office) refuseToRecord(event string) {
	o.t.Helper()
	o.exec(`CREATE OR REPLACE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
		CREATE TRIGGER no BEFORE INSERT ON pipeops.events FOR EACH ROW WHEN (NEW.type = '` + event + `') EXECUTE FUNCTION public.no();
		ALTER TABLE pipeops.events ENABLE ALWAYS TRIGGER no`)
}

func TestTheTokenOfUpIsOnRecordOnce(t *testing.T) {
	o := newOffice(t)
	cfg := config.Config{Home: os.Getenv("PIPEOPS_HOME"), URL: os.Getenv("PIPEOPS_URL")}
	for range 2 {
		o.must(writeReached(t.Context(), cfg, o.core, true))
	}
	said := o.run("audit", "log", "--type", "TokenCreated")
	secret, err := os.ReadFile(filepath.Join(cfg.Home, "token"))
	o.must(err)
	if strings.Count(said, "up") != 1 || strings.Contains(said, strings.TrimSpace(string(secret))) {
		t.Errorf("on record is\n%s", said)
	}
}
