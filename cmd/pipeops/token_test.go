package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/pipeops/pipeops/internal/records"
)

func TestTokensAreListedAndRevoked(t *testing.T) {
	o := newOffice(t)
	secret := strings.TrimSpace(o.run("token", "create", "ci"))
	o.run("token", "create", "twin")
	o.run("token", "create", "twin")
	o.run("project", "list") // with the token called laptop
	out := o.run("token", "list")
	if strings.Contains(out, secret) || strings.Count(out, "\n") != 5 || strings.Count(out, "twin") != 2 {
		t.Errorf("got\n%s", out)
	}
	var all []records.Token
	o.must(json.Unmarshal([]byte(o.run("token", "list", "--json")), &all))
	if len(all) != 4 || all[0].Name != "laptop" || all[0].LastUsed == nil || all[1].Name != "ci" {
		t.Fatalf("got %+v", all)
	}
	o.fails(exitUsage, "2 tokens are called \"twin\"", "token", "revoke", "twin")
	o.fails(exitRefused, "pipeops token list", "token", "revoke", "nobody")
	o.run("token", "revoke", all[2].ID)
	o.run("token", "revoke", "twin")
	o.run("token", "revoke", "ci")
	t.Setenv("PIPEOPS_TOKEN", secret)
	_, code, err := o.try("project", "list")
	if err == nil || code == 0 {
		t.Errorf("a revoked token still opens: exit code %d, %v", code, err)
	}
	c, err := newClient()
	o.must(err)
	_, err = c.fetchAll(t.Context(), http.MethodGet, "checkpoint", nil)
	if err == nil {
		t.Error("a revoked token still opens what auditors read")
	}
	if out := o.run("token", "list"); strings.Count(out, "\n") != 2 {
		t.Errorf("got\n%s", out)
	}
}
