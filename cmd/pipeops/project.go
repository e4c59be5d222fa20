package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

const projectFields = `{ id name repository branch registry webhookUrl gitRemote version createdAt
  services { id name spec { rootDir dockerfile buildArgs { name value } command variables { name value } port replicas healthPath
    startup { initialDelay period timeout failures } readiness { initialDelay period timeout failures } liveness { initialDelay period timeout failures }
    strategy minReady deadline cpuRequest memoryRequest cpuLimit memoryLimit } }
  environments { id name branch namespace } webhooks { provider revision } }`

func projectCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "project", Short: "Create, list, show and change projects"}
	cmd.AddCommand(projectCreate(), projectList(), projectShow(), projectSet())
	return cmd
}

// settings are the flags that `create` and `set` share. What isn't given isn't sent.
type settings struct {
	repo, branch, registry                           string
	webhookSecretFile, gitCredentialFile             string
	service, rootDir, dockerfile, healthPath         string
	environment, environmentBranch                   string
	port, replicas, minReady, deadline               int
	startupPeriod, startupFailures, readinessPeriod  int
	probeTimeout                                     int
	variables, buildArgs                             []string
	command                                          []string
	cpuRequest, memoryRequest, cpuLimit, memoryLimit string
}

func (s *settings) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.repo, "repo", "", "repository URL; left out: the built-in git remote")
	f.StringVar(&s.branch, "branch", "", "branch whose pushes are built")
	f.StringVar(&s.registry, "registry", "", "where images go, for example ghcr.io/acme")
	f.StringVar(&s.webhookSecretFile, "webhook-secret-file", "", "file with the secret that the git host signs webhooks with")
	f.StringVar(&s.gitCredentialFile, "git-credential-file", "", "file of mode 0600 with user:token, or a token alone, that opens the private repository; an empty file takes it away")
	f.StringVar(&s.service, "service", "", "name of the service that the following settings are for (default: the only one)")
	f.StringVar(&s.rootDir, "root-dir", "", "folder of the service within the repository")
	f.StringVar(&s.dockerfile, "dockerfile", "", "Dockerfile, relative to the root folder")
	f.StringArrayVar(&s.buildArgs, "build-arg", nil, "NAME=VALUE, may be repeated; replaces all build args")
	f.StringArrayVar(&s.variables, "variable", nil, "NAME=VALUE for the program, may be repeated; replaces all variables; not for secrets")
	f.StringArrayVar(&s.command, "command", nil, "a word of the command to run instead of the image's own, may be repeated")
	f.IntVar(&s.port, "port", 0, "port that the program listens on")
	f.IntVar(&s.replicas, "replicas", 0, "how many pods")
	f.StringVar(&s.healthPath, "health-path", "", "path that answers 200 when the program is well")
	f.IntVar(&s.startupPeriod, "startup-period", 0, "seconds between startup probes")
	f.IntVar(&s.startupFailures, "startup-failures", 0, "startup probes that may fail in a row")
	f.IntVar(&s.readinessPeriod, "readiness-period", 0, "seconds between readiness probes")
	f.IntVar(&s.probeTimeout, "probe-timeout", 0, "seconds that the program may take to answer any probe")
	f.IntVar(&s.minReady, "min-ready", 0, "seconds that a pod must stay ready to count")
	f.IntVar(&s.deadline, "deadline", 0, "seconds until the verdict on a rollout")
	f.StringVar(&s.cpuRequest, "cpu-request", "", `for example "100m"`)
	f.StringVar(&s.memoryRequest, "memory-request", "", `for example "128Mi"`)
	f.StringVar(&s.cpuLimit, "cpu-limit", "", `for example "1"`)
	f.StringVar(&s.memoryLimit, "memory-limit", "", `for example "512Mi"`)
	f.StringVar(&s.environment, "environment", "", "an environment to add")
	f.StringVar(&s.environmentBranch, "environment-branch", "", "branch that the environment follows (default: the project's)")
}

// serviceInput gives what was set about a service, nil for nothing.
func (s *settings) serviceInput(cmd *cobra.Command) (map[string]any, error) {
	in := map[string]any{}
	put := func(flag, field string, value any) {
		if cmd.Flags().Changed(flag) {
			in[field] = value
		}
	}
	put("root-dir", "rootDir", s.rootDir)
	put("dockerfile", "dockerfile", s.dockerfile)
	put("command", "command", s.command)
	put("port", "port", s.port)
	put("replicas", "replicas", s.replicas)
	put("health-path", "healthPath", s.healthPath)
	put("min-ready", "minReady", s.minReady)
	put("deadline", "deadline", s.deadline)
	put("cpu-request", "cpuRequest", s.cpuRequest)
	put("memory-request", "memoryRequest", s.memoryRequest)
	put("cpu-limit", "cpuLimit", s.cpuLimit)
	put("memory-limit", "memoryLimit", s.memoryLimit)
	probe := func(field string, values map[string]any) {
		for flag, v := range values {
			if cmd.Flags().Changed(field + "-" + flag) {
				p, _ := in[field].(map[string]any)
				if p == nil {
					p = map[string]any{}
				}
				p[flag] = v
				in[field] = p
			}
		}
	}
	probe("startup", map[string]any{"period": s.startupPeriod, "failures": s.startupFailures})
	probe("readiness", map[string]any{"period": s.readinessPeriod})
	if cmd.Flags().Changed("probe-timeout") {
		for _, field := range []string{"startup", "readiness", "liveness"} {
			p, _ := in[field].(map[string]any)
			if p == nil {
				p = map[string]any{}
			}
			p["timeout"] = s.probeTimeout
			in[field] = p
		}
	}
	for flag, pairs := range map[string][]string{"variable": s.variables, "build-arg": s.buildArgs} {
		field := map[string]string{"variable": "variables", "build-arg": "buildArgs"}[flag]
		if !cmd.Flags().Changed(flag) {
			continue
		}
		list := []map[string]string{}
		for _, p := range pairs {
			name, value, ok := strings.Cut(p, "=")
			if !ok || name == "" {
				return nil, usage("--%s %q: want NAME=VALUE", flag, p)
			}
			list = append(list, map[string]string{"name": name, "value": value})
		}
		in[field] = list
	}
	if len(in) == 0 {
		return nil, nil
	}
	return in, nil
}

func (s *settings) webhookSecret() (string, error) {
	b, err := os.ReadFile(s.webhookSecretFile)
	if err != nil {
		return "", usage("--webhook-secret-file: %v", err)
	}
	secret := strings.TrimRight(string(b), "\r\n")
	if secret == "" {
		return "", usage("--webhook-secret-file: %s is empty", s.webhookSecretFile)
	}
	return secret, nil
}

// gitCredential reads a file that nobody else may read.
func (s *settings) gitCredential() (string, error) {
	info, err := os.Stat(s.gitCredentialFile)
	if err != nil {
		return "", usage("--git-credential-file: %v", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", usage("--git-credential-file: others may read %s: chmod 600 %[1]s", s.gitCredentialFile)
	}
	b, err := os.ReadFile(s.gitCredentialFile)
	if err != nil {
		return "", usage("--git-credential-file: %v", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func projectCreate() *cobra.Command {
	var s settings
	var asJSON, bare bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a project with one service and the environment production", Args: cobra.ExactArgs(1),
		Example: "  pipeops project create shop --repo https://github.com/acme/shop.git --branch main --webhook-secret-file secret",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			in := map[string]any{"name": args[0]}
			for field, v := range map[string]string{"repository": s.repo, "branch": s.branch, "registry": s.registry} {
				if v != "" {
					in[field] = v
				}
			}
			service, err := s.serviceInput(cmd)
			if err != nil {
				return err
			}
			if service != nil || s.service != "" {
				if service == nil {
					service = map[string]any{}
				}
				service["name"] = args[0]
				if s.service != "" {
					service["name"] = s.service
				}
				in["services"] = []any{service}
			}
			if bare {
				in["environments"] = []any{}
			}
			if s.environment != "" {
				in["environments"] = []any{environmentInput(s)}
			}
			if s.webhookSecretFile != "" {
				if in["webhookSecret"], err = s.webhookSecret(); err != nil {
					return err
				}
			}
			if s.gitCredentialFile != "" {
				if in["gitCredential"], err = s.gitCredential(); err != nil {
					return err
				}
			}
			var out struct {
				CreateProject struct {
					Cursor  string
					Project json.RawMessage
				}
			}
			if err := c.do(cmd.Context(), `mutation($in: CreateProjectInput!) { createProject(input: $in) { cursor project `+projectFields+` } }`, map[string]any{"in": in}, &out); err != nil {
				return err
			}
			return c.printProject(cmd, args[0], out.CreateProject.Cursor, "", asJSON)
		},
	}
	s.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the project as JSON")
	cmd.Flags().BoolVar(&bare, "no-environment", false, "begin without an environment: pushes are ignored until there is one")
	return cmd
}

func environmentInput(s settings) map[string]any {
	e := map[string]any{"name": s.environment}
	if s.environmentBranch != "" {
		e["branch"] = s.environmentBranch
	}
	return e
}

type project struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	Repository string `json:"repository"`
	Branch     string `json:"branch"`
	Registry   string `json:"registry"`
	WebhookURL string `json:"webhookUrl"`
	GitRemote  string `json:"gitRemote"`
	Services   []struct {
		Name string `json:"name"`
		Spec struct {
			Port     int `json:"port"`
			Replicas int `json:"replicas"`
		} `json:"spec"`
	} `json:"services"`
	Environments []struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"environments"`
}

// printProject shows a project as it is once the read model has seen the cursor, or as it was.
func (c *client) printProject(cmd *cobra.Command, name, atLeast string, then asOf, asJSON bool) error {
	vars := then.in(map[string]any{"name": name})
	if atLeast != "" {
		vars["at"] = atLeast
	}
	var out struct{ Project json.RawMessage }
	at, err := c.ask(cmd.Context(), `query($name: String!, $at: Cursor, $asOf: Moment) { project(name: $name, atLeast: $at, asOf: $asOf) `+projectFields+` }`, vars, &out)
	if err != nil {
		return err
	}
	then.tell(cmd, at["project"])
	if string(out.Project) == "null" {
		if then != "" {
			return &coded{exitRefused, fmt.Errorf("there was no project %s then; see: pipeops project list --as-of %s", name, then)}
		}
		return &coded{exitRefused, fmt.Errorf("there is no project %s; see: pipeops project list", name)}
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), out.Project)
	}
	var p project
	if err := json.Unmarshal(out.Project, &p); err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	repo := p.Repository
	if repo == "" {
		repo = p.GitRemote
	}
	fmt.Fprintf(w, "project      %s (%s)\nrepository   %s\nbranch       %s\nregistry     %s\nwebhook      %s\n", p.Name, p.ID, repo, p.Branch, p.Registry, p.WebhookURL)
	for _, s := range p.Services {
		fmt.Fprintf(w, "service      %s, port %d, %d replica(s)\n", s.Name, s.Spec.Port, s.Spec.Replicas)
	}
	for _, e := range p.Environments {
		fmt.Fprintf(w, "environment  %s in namespace %s\n", e.Name, e.Namespace)
	}
	return nil
}

func projectList() *cobra.Command {
	var asJSON bool
	var then asOf
	cmd := &cobra.Command{
		Use: "list", Short: "List the projects", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			all, at, err := c.projects(cmd.Context(), then, projectFields)
			if err != nil {
				return err
			}
			then.tell(cmd, at)
			if asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			rows := [][]string{}
			for _, text := range all {
				var p project
				if err := json.Unmarshal(text, &p); err != nil {
					return err
				}
				var envs []string
				for _, e := range p.Environments {
					envs = append(envs, e.Name)
				}
				rows = append(rows, []string{p.Name, p.Branch, strings.Join(envs, ","), p.Repository})
			}
			return table(cmd.OutOrStdout(), "NAME BRANCH ENVIRONMENTS REPOSITORY", rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print them as JSON")
	then.flag(cmd)
	return cmd
}

const pageOfProjects = 100

// projects gives these fields, name among them, of all of them, page after page, as of one moment.
func (c *client) projects(ctx context.Context, then asOf, fields string) (all []json.RawMessage, at string, err error) {
	all = []json.RawMessage{}
	for after := ""; ; {
		var out struct{ Projects []json.RawMessage }
		moments, err := c.ask(ctx, `query($first: Int!, $after: String, $asOf: Moment) { projects(first: $first, after: $after, asOf: $asOf) `+fields+` }`,
			then.in(map[string]any{"first": pageOfProjects, "after": after}), &out)
		if err != nil {
			return nil, "", err
		}
		all, at = append(all, out.Projects...), moments["projects"]
		if len(out.Projects) < pageOfProjects {
			return all, at, nil
		}
		var last project
		if err := json.Unmarshal(out.Projects[pageOfProjects-1], &last); err != nil {
			return nil, "", err
		}
		after, then = last.Name, asOf(at)
	}
}

func projectShow() *cobra.Command {
	var asJSON bool
	var then asOf
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a project's settings", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			return c.printProject(cmd, args[0], "", then, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	then.flag(cmd)
	return cmd
}

func projectSet() *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change a project's settings, or add a service or an environment", Args: cobra.ExactArgs(1),
		Example: "  pipeops project set shop --replicas 3 --health-path /healthz",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient()
			if err != nil {
				return err
			}
			in := map[string]any{"project": args[0]}
			for flag, field := range map[string]string{"repo": "repository", "branch": "branch", "registry": "registry"} {
				if cmd.Flags().Changed(flag) {
					in[field] = cmd.Flag(flag).Value.String()
				}
			}
			service, err := s.serviceInput(cmd)
			if err != nil {
				return err
			}
			if service != nil || s.service != "" {
				if service == nil {
					service = map[string]any{}
				}
				if service["name"], err = c.serviceName(cmd, args[0], s.service); err != nil {
					return err
				}
				in["services"] = []any{service}
			}
			if s.environment != "" {
				in["environments"] = []any{environmentInput(s)}
			}
			if s.gitCredentialFile != "" {
				if in["gitCredential"], err = s.gitCredential(); err != nil {
					return err
				}
			}
			var cursor string
			if len(in) > 1 {
				var out struct{ ConfigureProject struct{ Cursor string } }
				if err := c.do(cmd.Context(), `mutation($in: ConfigureProjectInput!) { configureProject(input: $in) { cursor } }`, map[string]any{"in": in}, &out); err != nil {
					return err
				}
				cursor = out.ConfigureProject.Cursor
			}
			if s.webhookSecretFile != "" {
				secret, err := s.webhookSecret()
				if err != nil {
					return err
				}
				var out struct{ RotateWebhookSecret struct{ Cursor string } }
				if err := c.do(cmd.Context(), `mutation($in: RotateWebhookSecretInput!) { rotateWebhookSecret(input: $in) { cursor } }`,
					map[string]any{"in": map[string]any{"project": args[0], "secret": secret}}, &out); err != nil {
					return err
				}
				cursor = out.RotateWebhookSecret.Cursor
			}
			if cursor == "" {
				return usage("nothing to set: see pipeops project set --help")
			}
			return c.printProject(cmd, args[0], cursor, "", asJSON)
		},
	}
	s.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the project as JSON")
	return cmd
}

// serviceName is the given one, or the only service of the project.
func (c *client) serviceName(cmd *cobra.Command, name, service string) (string, error) {
	if service != "" {
		return service, nil
	}
	var out struct {
		Project *struct{ Services []struct{ Name string } }
	}
	if err := c.do(cmd.Context(), `query($name: String!) { project(name: $name) { services { name } } }`, map[string]any{"name": name}, &out); err != nil {
		return "", err
	}
	switch {
	case out.Project == nil:
		return "", &coded{exitRefused, fmt.Errorf("there is no project %s; see: pipeops project list", name)}
	case len(out.Project.Services) == 1:
		return out.Project.Services[0].Name, nil
	}
	return "", usage("project %s has %d services: name one with --service", name, len(out.Project.Services))
}
