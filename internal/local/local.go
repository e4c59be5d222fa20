// Package local receives a home folder from cmd/pipeops and internal/testenv, and hands back the addresses of real
// parts that it runs there: PostgreSQL, RabbitMQ, buildkitd, an image registry and a one-node Kubernetes; effects.
//
// Each part is a daemon in a session of its own, with its data, its log and its identity (pid, start time, boot) in
// <home>/<part>/. A part outlives the process that started it: whoever starts it next adopts it, and Stop and Down
// end it by that identity, also when its starter was killed. Ports are chosen once and kept in <home>/ports.json,
// because references to images stand in events. All functions may be called concurrently, also by several processes.
//
//	url, err := local.StartPostgres(ctx, local.Config{Home: "/var/lib/pipeops"})
//
// Linux only.
package local

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// Config says where parts live. The zero value is complete.
type Config struct {
	// Home is the folder of the parts' data. Default: DefaultHome().
	Home string
	// Cache is the folder of the tools and of base images, shared by all homes. Default: DefaultCache().
	Cache string
	// Log gets state changes of parts. Default: discarded.
	Log *slog.Logger
	// Progress is told, in words for people, what a step that takes seconds is doing. Default: nothing is told.
	Progress func(string)
	// Postgres are more settings of PostgreSQL, "name=value"; they win over ours.
	Postgres []string
}

// DefaultHome returns PIPEOPS_HOME, or for root /var/lib/pipeops, where the unprivileged PostgreSQL can enter, or
// else pipeops in the user's data folder.
func DefaultHome() string {
	if home := os.Getenv("PIPEOPS_HOME"); home != "" {
		return home
	}
	if os.Getuid() == 0 {
		return "/var/lib/pipeops"
	}
	if data := os.Getenv("XDG_DATA_HOME"); data != "" {
		return filepath.Join(data, "pipeops")
	}
	return filepath.Join(os.Getenv("HOME"), ".local", "share", "pipeops")
}

// DefaultCache returns PIPEOPS_CACHE, or else pipeops in the user's cache folder; the same that tools/install uses.
func DefaultCache() string {
	if cache := os.Getenv("PIPEOPS_CACHE"); cache != "" {
		return cache
	}
	if cache := os.Getenv("XDG_CACHE_HOME"); cache != "" {
		return filepath.Join(cache, "pipeops")
	}
	return filepath.Join(os.Getenv("HOME"), ".cache", "pipeops")
}

// withDefaults fills what is empty and makes the home folder.
func (c Config) withDefaults() (Config, error) {
	if c.Home == "" {
		c.Home = DefaultHome()
	}
	if c.Cache == "" {
		c.Cache = DefaultCache()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	var problems []error
	for _, folder := range []*string{&c.Home, &c.Cache} {
		path, err := filepath.Abs(*folder)
		if err != nil {
			problems = append(problems, fmt.Errorf("find folder %s: %w", *folder, err))
		}
		*folder = path
	}
	// Others may pass through, not list: PostgreSQL runs as a user of its own below it.
	if err := os.MkdirAll(c.Home, 0o711); err != nil { //nolint:gosec // see above
		problems = append(problems, fmt.Errorf("make home folder: %w", err))
	}
	return c, errors.Join(problems...)
}

// MissingError says that a program or package which a part needs isn't on this machine, and what brings it.
type MissingError struct {
	What string // the program, as "buildkitd 0.34.2"
	Fix  string // a command line
}

func (e *MissingError) Error() string { return e.What + " is missing; type: " + e.Fix }
