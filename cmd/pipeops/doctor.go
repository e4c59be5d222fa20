package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/pipeops/pipeops/deploy"
	"github.com/pipeops/pipeops/internal/config"
	"github.com/pipeops/pipeops/internal/local"
)

// finding is one line of the doctor's.
type finding struct {
	Part string `json:"part"`
	OK   bool   `json:"ok"`
	Says string `json:"says"`
	Fix  string `json:"fix,omitempty"` // what to type
}

func doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what is there, what is missing, and what to type", Args: cobra.NoArgs,
		Long: "Looks at the programs and tools of this machine, at the parts that the environment names, and at the server.\nExit code 1 when something that is needed is missing.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(os.Getenv, local.DefaultHome())
			var all []finding
			if err != nil {
				for line := range strings.SplitSeq(err.Error(), "\n") {
					all = append(all, finding{"environment", false, line, "set it again"})
				}
			}
			all = append(all, examine(cmd.Context(), cfg)...)
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), all); err != nil {
					return err
				}
			} else {
				for _, f := range all {
					mark := "✓"
					if !f.OK {
						mark = "✗"
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s %-14s %s\n", mark, f.Part, f.Says)
					if !f.OK && f.Fix != "" {
						fmt.Fprintf(cmd.OutOrStdout(), "  %-14s type: %s\n", "", f.Fix)
					}
				}
			}
			for _, f := range all {
				if !f.OK {
					return &coded{exitFailure, errors.New("something is missing")}
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	return cmd
}

func examine(ctx context.Context, cfg config.Config) []finding {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errSlow)
	defer cancel()
	all := []finding{program("git", "git")}
	if cfg.DatabaseURL == "" {
		all = append(all, postgresPrograms())
	} else {
		all = append(all, reach("PostgreSQL", "check DATABASE_URL", func() error {
			conn, err := pgx.Connect(ctx, cfg.DatabaseURL)
			if err == nil {
				err = conn.Close(ctx)
			}
			return err
		}))
	}
	if cfg.AMQPURL != "" {
		all = append(all, reach("RabbitMQ", "check AMQP_URL", func() error { return dial(ctx, cfg.AMQPURL) }))
	}
	if cfg.BuildKit == "" {
		all = append(all, program("runc", "runc"), tool("buildkit", local.BuildKitVersion, "buildkitd"))
	} else {
		all = append(all, reach("BuildKit", "check BUILDKIT_HOST", func() error { return dial(ctx, cfg.BuildKit) }))
	}
	if cfg.Registry != "" {
		all = append(all, reach("registry", "check REGISTRY", func() error { return registryAnswers(ctx, cfg.Registry) }))
	}
	all = append(all, clusterFindings(ctx, cfg)...)
	return append(all, server(ctx))
}

func program(name, pkg string) finding {
	if path, err := exec.LookPath(name); err == nil {
		return finding{Part: name, OK: true, Says: path}
	}
	return finding{name, false, "not on PATH", "apt-get install " + pkg}
}

func postgresPrograms() finding {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if path, err := exec.LookPath("postgres"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		return finding{"PostgreSQL", false, "no server program, and DATABASE_URL isn't set", "apt-get install postgresql"}
	}
	return finding{Part: "PostgreSQL", OK: true, Says: found[len(found)-1] + " (a private one is started)"}
}

func tool(name, version, binary string) finding {
	path := filepath.Join(local.DefaultCache(), "tools", name, version, binary)
	if _, err := os.Stat(path); err != nil {
		return finding{name, false, "not built", "tools/install " + name}
	}
	return finding{Part: name, OK: true, Says: path}
}

func reach(part, fix string, try func() error) finding {
	if err := try(); err != nil {
		return finding{part, false, "can't be reached: " + err.Error(), fix}
	}
	return finding{Part: part, OK: true, Says: "answers"}
}

// dial opens a connection to the address of a URL, and closes it.
func dial(ctx context.Context, text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return errors.New("not a URL")
	}
	network, address := "tcp", u.Host
	if u.Scheme == "unix" {
		network, address = "unix", u.Path
	} else if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), map[string]string{"amqp": "5672", "amqps": "5671"}[u.Scheme])
	}
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func registryAnswers(ctx context.Context, registry string) error {
	host, _, _ := strings.Cut(registry, "/")
	scheme := "https"
	if h, _, err := net.SplitHostPort(host); err == nil && (h == "localhost" || net.ParseIP(h).IsLoopback()) {
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func clusterFindings(ctx context.Context, cfg config.Config) []finding {
	kubeconfig := cfg.Kubeconfig
	if kubeconfig == "" {
		kubeconfig = foundCluster()
	}
	if kubeconfig == "" {
		return []finding{
			program("containerd", "containerd"), program("iptables", "iptables"),
			tool("etcd", local.EtcdVersion, "etcd"), tool("kube", local.KubeVersion, "kube"),
		}
	}
	problems := deploy.Doctor(ctx, kubeconfig)
	if len(problems) == 0 {
		return []finding{{Part: "Kubernetes", OK: true, Says: kubeconfig}}
	}
	var all []finding
	for _, p := range problems {
		all = append(all, finding{"Kubernetes", false, p.Title + ": " + p.Error, p.Run})
	}
	return all
}

func server(ctx context.Context) finding {
	c, err := newClient()
	if err != nil {
		return finding{Part: "server", OK: true, Says: "none is known here; `pipeops up` starts one"}
	}
	if not := readiness(ctx, c.url); not != "" {
		return finding{"server", false, c.url + ": " + strings.TrimSpace(not), "pipeops up"}
	}
	var out struct{ Head string }
	if err := c.do(ctx, `{ head }`, nil, &out); err != nil {
		return finding{"server", false, err.Error(), "check PIPEOPS_TOKEN"}
	}
	return finding{Part: "server", OK: true, Says: c.url + ", log at " + out.Head}
}
