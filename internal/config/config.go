// Package config receives the environment variables of a process and hands a
// checked Config to cmd; pure.
//
// Every problem is named at once, with the variable and an example.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// Config is what the processes of PipeOps are told from outside.
type Config struct {
	DatabaseURL string // DATABASE_URL: of the application's login
	MigrateURL  string // PIPEOPS_MIGRATE_URL: of the login that owns the schema; default DatabaseURL
	AMQPURL     string // AMQP_URL
	BuildKit    string // BUILDKIT_HOST: "unix:///…" or "tcp://…"
	Registry    string // REGISTRY: prefix of image repositories, "127.0.0.1:5000" or "ghcr.io/acme"
	Kubeconfig  string // KUBECONFIG
	Home        string // PIPEOPS_HOME: keys, workspaces, repositories
	Listen      string // PIPEOPS_LISTEN: default 127.0.0.1:8787
	URL         string // PIPEOPS_URL: where clients and workers reach serve; default from Listen
	Slots       int    // PIPEOPS_SLOTS: work at a time for a runner or deployer; default 0: each its own

	KeepLogs time.Duration // PIPEOPS_BUILD_LOG_DAYS: how long the output of builds is kept; default 90 days, 0: for ever

	CheckpointURL string // PIPEOPS_CHECKPOINT_URL: where serve posts each new signed checkpoint; default nowhere
}

// Getenv reads one variable, "" for none.
type Getenv func(string) string

// Load reads the variables. Only their form is checked; see Need.
func Load(get Getenv, defaultHome string) (Config, error) {
	c := Config{
		DatabaseURL: get("DATABASE_URL"), MigrateURL: get("PIPEOPS_MIGRATE_URL"), AMQPURL: get("AMQP_URL"),
		BuildKit: get("BUILDKIT_HOST"), Registry: strings.TrimSuffix(get("REGISTRY"), "/"), Kubeconfig: get("KUBECONFIG"),
		Home: or(get("PIPEOPS_HOME"), defaultHome), Listen: or(get("PIPEOPS_LISTEN"), "127.0.0.1:8787"),
		URL: strings.TrimSuffix(get("PIPEOPS_URL"), "/"), CheckpointURL: get("PIPEOPS_CHECKPOINT_URL"),
	}
	c.MigrateURL = or(c.MigrateURL, c.DatabaseURL)
	var errs []error
	check := func(name, value, example string, ok bool) {
		if value != "" && !ok {
			errs = append(errs, fmt.Errorf("%s: not usable; want for example %s", name, example))
		}
	}
	check("DATABASE_URL", c.DatabaseURL, "postgres://user@host:5432/pipeops", scheme(c.DatabaseURL, "postgres", "postgresql"))
	check("PIPEOPS_MIGRATE_URL", c.MigrateURL, "postgres://owner@host:5432/pipeops", scheme(c.MigrateURL, "postgres", "postgresql"))
	check("AMQP_URL", c.AMQPURL, "amqp://user@host:5672/", scheme(c.AMQPURL, "amqp", "amqps"))
	check("BUILDKIT_HOST", c.BuildKit, "unix:///run/buildkit/buildkitd.sock", scheme(c.BuildKit, "unix", "tcp"))
	check("REGISTRY", c.Registry, "ghcr.io/acme", !strings.Contains(c.Registry, "://") && !strings.Contains(c.Registry, " "))
	check("PIPEOPS_URL", c.URL, "http://127.0.0.1:8787", scheme(c.URL, "http", "https"))
	check("PIPEOPS_CHECKPOINT_URL", c.CheckpointURL, "https://witness.example.org/add-checkpoint", scheme(c.CheckpointURL, "http", "https"))
	check("PIPEOPS_HOME", c.Home, "/var/lib/pipeops", filepath.IsAbs(c.Home))
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		check("PIPEOPS_LISTEN", c.Listen, "127.0.0.1:8787", false)
	}
	if s := get("PIPEOPS_SLOTS"); s != "" {
		n, err := strconv.Atoi(s)
		check("PIPEOPS_SLOTS", s, "2", err == nil && n >= 1 && n <= 64)
		c.Slots = n
	}
	c.KeepLogs = 90 * day
	if s := get("PIPEOPS_BUILD_LOG_DAYS"); s != "" {
		n, err := strconv.Atoi(s)
		check("PIPEOPS_BUILD_LOG_DAYS", s, "90 (days; 0 keeps all)", err == nil && n >= 0 && n <= 36_500)
		c.KeepLogs = time.Duration(n) * day
	}
	if c.URL == "" {
		c.URL = "http://" + c.Listen
	}
	return c, errors.Join(errs...)
}

// Need gives an error that names every listed variable that is empty.
func (c Config) Need(names ...string) error {
	values := map[string][2]string{
		"DATABASE_URL":  {c.DatabaseURL, "postgres://pipeops_app@host:5432/pipeops"},
		"AMQP_URL":      {c.AMQPURL, "amqp://user@host:5672/"},
		"BUILDKIT_HOST": {c.BuildKit, "unix:///run/buildkit/buildkitd.sock"},
		"REGISTRY":      {c.Registry, "ghcr.io/acme"},
		"KUBECONFIG":    {c.Kubeconfig, "/root/.kube/config"},
	}
	var errs []error
	for _, n := range names {
		if v := values[n]; v[0] == "" {
			errs = append(errs, fmt.Errorf("%s is not set; for example %s=%s", n, n, v[1]))
		}
	}
	return errors.Join(errs...)
}

func scheme(text string, want ...string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false
	}
	return slices.Contains(want, u.Scheme)
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
