package config

import (
	"strings"
	"testing"
)

func env(pairs ...string) Getenv {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return m[name] }
}

func TestEveryBadVariableIsNamedAtOnceAndNoneIsShown(t *testing.T) {
	t.Parallel()
	_, err := Load(env("DATABASE_URL", "mysql://u:hunter2@h/db", "AMQP_URL", "http://x", "PIPEOPS_SLOTS", "none", "PIPEOPS_LISTEN", "8787"), "/var/lib/pipeops")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, name := range []string{"DATABASE_URL", "AMQP_URL", "PIPEOPS_SLOTS", "PIPEOPS_LISTEN"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s isn't named in %q", name, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the password is told: %q", err)
	}
}

func TestDefaultsAndNeeds(t *testing.T) {
	t.Parallel()
	c, err := Load(env("DATABASE_URL", "postgres://a@h/db"), "/var/lib/pipeops")
	if err != nil {
		t.Fatal(err)
	}
	if c.MigrateURL != c.DatabaseURL || c.URL != "http://127.0.0.1:8787" || c.Slots != 0 {
		t.Errorf("got %+v", c)
	}
	if err := c.Need("DATABASE_URL", "AMQP_URL"); err == nil || !strings.Contains(err.Error(), "AMQP_URL") || strings.Contains(err.Error(), "DATABASE_URL") {
		t.Errorf("got %v", err)
	}
}
