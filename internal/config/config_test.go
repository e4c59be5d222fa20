package config

import (
	"strings"
	"testing"
	"time"
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
	_, err := Load(env("DATABASE_URL", "mysql://u:hunter2@h/db", "AMQP_URL", "http://x", "PIPEOPS_SLOTS", "none", "PIPEOPS_BUILD_LOG_DAYS", "-1", "PIPEOPS_LISTEN", "8787"), "/var/lib/pipeops")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, name := range []string{"DATABASE_URL", "AMQP_URL", "PIPEOPS_SLOTS", "PIPEOPS_BUILD_LOG_DAYS", "PIPEOPS_LISTEN"} {
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
	if c.MigrateURL != c.DatabaseURL || c.URL != "http://127.0.0.1:8787" || c.Slots != 0 || c.KeepLogs != 90*day {
		t.Errorf("got %+v", c)
	}
	if err := c.Need("DATABASE_URL", "AMQP_URL"); err == nil || !strings.Contains(err.Error(), "AMQP_URL") || strings.Contains(err.Error(), "DATABASE_URL") {
		t.Errorf("got %v", err)
	}
}

func TestOutputIsKeptForSoManyDays(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"0": 0, "7": 7 * day} {
		if c, err := Load(env("PIPEOPS_BUILD_LOG_DAYS", text), "/var/lib/pipeops"); err != nil || c.KeepLogs != want {
			t.Errorf("%s: got %s, %v, want %s", text, c.KeepLogs, err, want)
		}
	}
}
