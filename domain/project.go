package domain

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// ProjectNameEvent may stand in a project name's stream.
//
//sumtype:decl
type ProjectNameEvent interface {
	Event
	projectNameEvent()
}

// ProjectNameClaimed gives a name to a project for ever.
type ProjectNameClaimed struct {
	Project ProjectID `json:"project"` // that has the name from now on
	Name    string    `json:"name"`    // 1 to 40 lower-case letters, digits and hyphens, beginning with a letter
}

func (ProjectNameClaimed) isEvent()          {}
func (ProjectNameClaimed) projectNameEvent() {}

// ProjectName is who has a name.
type ProjectName struct{ Project ProjectID }

// Evolve applies an event.
func (n *ProjectName) Evolve(e ProjectNameEvent) {
	switch e := e.(type) {
	case ProjectNameClaimed:
		n.Project = e.Project
	}
}

// ProjectEvent may stand in a project's stream.
//
//sumtype:decl
type ProjectEvent interface {
	Event
	projectEvent()
}

type inProject struct{}

func (inProject) projectEvent() {}

// ProjectCreated begins a project.
type ProjectCreated struct {
	fact
	inProject

	Project  ProjectID       `json:"project"`
	Name     string          `json:"name"`     // slug, unique, unchangeable
	Settings ProjectSettings `json:"settings"` // as the project begins
}

// ProjectConfigured replaces the project's settings as a whole.
type ProjectConfigured struct {
	fact
	inProject

	Settings ProjectSettings `json:"settings"` // all of them, from now on
}

// ProjectSettings is what can be changed about a project itself.
type ProjectSettings struct {
	Repository string `json:"repository"` // https:// URL, or empty: the built-in git remote
	Branch     string `json:"branch"`     // "main": pushes to it are built, as are those to the branches of environments
	Registry   string `json:"registry"`   // repository prefix for images, "ghcr.io/acme"; empty: none yet, and pushes are ignored
}

// ServiceAdded adds something that is built and run.
type ServiceAdded struct {
	fact
	inProject

	Service ServiceID   `json:"service"`
	Name    string      `json:"name"` // slug, unique in the project
	Spec    ServiceSpec `json:"spec"` // how it is built and run
}

// ServiceConfigured replaces a service's settings as a whole.
type ServiceConfigured struct {
	fact
	inProject

	Service ServiceID   `json:"service"`
	Spec    ServiceSpec `json:"spec"` // how it is built and run from now on
}

// EnvironmentAdded adds a place to deploy to.
type EnvironmentAdded struct {
	fact
	inProject

	Environment EnvironmentID `json:"environment"`
	Name        string        `json:"name"`      // slug, unique in the project
	Branch      string        `json:"branch"`    // "main": its builds are deployed by themselves; empty = the project's
	Namespace   string        `json:"namespace"` // in Kubernetes: "<project>-<environment>-<6 hex digits>"
}

// WebhookSecretRotated says that webhooks of a provider are checked against
// another secret from now on. The secret itself stands sealed elsewhere.
type WebhookSecretRotated struct {
	fact
	inProject

	Provider string `json:"provider"` // git host whose webhooks these are: "github"
	Revision int    `json:"revision"` // of the secret, from 1, one more each time
}

// SecretSet says that a secret of the project has another value from now on.
// The value stands sealed elsewhere.
type SecretSet struct {
	fact
	inProject

	Name     string `json:"name"`     // what it opens: "git-credential/github.com"
	Revision int    `json:"revision"` // of the secret of that name, from 1, one more each time
}

// Service is one thing that a project builds and runs.
type Service struct {
	ID   ServiceID
	Name string
	Spec ServiceSpec
}

// Environment is one place that a project deploys to.
type Environment struct {
	ID        EnvironmentID
	Name      string
	Branch    string
	Namespace string
}

// Project is a repository with its settings, services and environments.
type Project struct {
	ID           ProjectID // empty: no such project
	Name         string
	Settings     ProjectSettings
	Services     []Service     // in order of addition
	Environments []Environment // in order of addition
	Version      int64         // events so far = version of the stream; names the configuration of a release
	Webhooks     map[string]int
	Secrets      map[string]int // revisions by name
}

// Evolve applies an event.
func (p *Project) Evolve(e ProjectEvent) {
	p.Version++
	switch e := e.(type) {
	case ProjectCreated:
		p.ID, p.Name, p.Settings = e.Project, e.Name, e.Settings
	case ProjectConfigured:
		p.Settings = e.Settings
	case ServiceAdded:
		p.Services = append(p.Services, Service{e.Service, e.Name, e.Spec})
	case ServiceConfigured:
		if i := slices.IndexFunc(p.Services, func(s Service) bool { return s.ID == e.Service }); i >= 0 {
			p.Services[i].Spec = e.Spec
		}
	case EnvironmentAdded:
		p.Environments = append(p.Environments, Environment{e.Environment, e.Name, e.Branch, e.Namespace})
	case WebhookSecretRotated:
		if p.Webhooks == nil {
			p.Webhooks = map[string]int{}
		}
		p.Webhooks[e.Provider] = e.Revision
	case SecretSet:
		if p.Secrets == nil {
			p.Secrets = map[string]int{}
		}
		p.Secrets[e.Name] = e.Revision
	}
}

// Service finds a service by name or id; the empty text is the only one of a simple project.
func (p *Project) Service(nameOrID string) (Service, bool) {
	if nameOrID == "" && len(p.Services) == 1 {
		return p.Services[0], true
	}
	for _, s := range p.Services {
		if s.Name == nameOrID || string(s.ID) == nameOrID {
			return s, true
		}
	}
	return Service{}, false
}

// Environment finds an environment by name or id; the empty text is the only one.
func (p *Project) Environment(nameOrID string) (Environment, bool) {
	if nameOrID == "" && len(p.Environments) == 1 {
		return p.Environments[0], true
	}
	for _, e := range p.Environments {
		if e.Name == nameOrID || string(e.ID) == nameOrID {
			return e, true
		}
	}
	return Environment{}, false
}

// unconfigured says what a push would miss, nil when all is there.
func (p *Project) unconfigured() *Diagnosis {
	var missing, fixes []string
	if p.Settings.Registry == "" {
		missing = append(missing, "a registry for its images")
		fixes = append(fixes, "Name the registry: pipeops project set "+p.Name+" --registry ghcr.io/<owner>")
	}
	if len(p.Services) == 0 {
		missing = append(missing, "a service to build and run")
		fixes = append(fixes, "Add a service: pipeops project set "+p.Name+" --service "+p.Name+" --port 8080")
	}
	if len(p.Environments) == 0 {
		missing = append(missing, "an environment to deploy to")
		fixes = append(fixes, "Add an environment: pipeops project set "+p.Name+" --environment production")
	}
	if len(missing) == 0 {
		return nil
	}
	return &Diagnosis{
		Code: "PROJECT_NOT_CONFIGURED", Title: "Push ignored: the project isn't fully configured", Step: "push",
		Error:  "project " + p.Name + " has no " + strings.Join(missing, ", no "),
		Reason: "A push can only become a release when it is known what to build, where to push the image and where to run it",
		Fixes:  append(fixes, "Then "+PushAgain),
		Run:    "pipeops project show " + p.Name,
	}
}

// NewService and NewEnvironment name what CreateProject and ConfigureProject add.
//
//nolint:revive // one comment for both
type (
	NewService struct {
		ID   ServiceID
		Name string
		Spec ServiceSpec
	}
	NewEnvironment struct {
		ID     EnvironmentID
		Name   string
		Branch string
	}
)

// CreateProject makes a project with its first services and environments.
type CreateProject struct {
	ID           ProjectID
	Name         string
	Settings     ProjectSettings
	Services     []NewService
	Environments []NewEnvironment
}

// Reads implements Command.
func (c CreateProject) Reads(State) []Stream {
	return []Stream{ProjectNameStream(c.Name), ProjectStream(c.ID)}
}

// Decide implements Command.
func (c CreateProject) Decide(s State) ([]Change, error) {
	if err := CheckSlug(c.Name); err != nil {
		return nil, &Refusal{Code: "BAD_NAME", Field: "name", Message: fmt.Sprintf("%q can't be a project's name", c.Name), Fix: err.Error()}
	}
	if owner := Of[ProjectName](s, ProjectNameStream(c.Name)); owner.Project != "" {
		return nil, &Refusal{Code: "NAME_TAKEN", Field: "name", Message: "there is a project named " + c.Name + " already", Fix: "choose another name, or use: pipeops project set " + c.Name}
	}
	if err := c.Settings.check(); err != nil {
		return nil, err
	}
	stream := ProjectStream(c.ID)
	changes := []Change{
		{ProjectNameStream(c.Name), ProjectNameClaimed{Project: c.ID, Name: c.Name}},
		{stream, ProjectCreated{Project: c.ID, Name: c.Name, Settings: c.Settings}},
	}
	added, err := additions(&Project{ID: c.ID, Name: c.Name}, c.Services, c.Environments)
	return append(changes, added...), err
}

// ConfigureProject changes settings and adds services and environments. A nil
// or empty part stays as it is.
type ConfigureProject struct {
	ID           ProjectID
	Settings     *ProjectSettings
	Specs        map[ServiceID]ServiceSpec // new settings of services that are there
	Services     []NewService
	Environments []NewEnvironment
}

// Reads implements Command.
func (c ConfigureProject) Reads(State) []Stream { return []Stream{ProjectStream(c.ID)} }

// Decide implements Command.
func (c ConfigureProject) Decide(s State) ([]Change, error) {
	stream := ProjectStream(c.ID)
	p := Of[Project](s, stream)
	if p.ID == "" {
		return nil, noProject(string(c.ID))
	}
	var changes []Change
	if c.Settings != nil && *c.Settings != p.Settings { // what was accepted once stays, whatever is checked today
		if err := c.Settings.check(); err != nil {
			return nil, err
		}
		changes = append(changes, Change{stream, ProjectConfigured{Settings: *c.Settings}})
	}
	for _, id := range sortedServices(c.Specs) {
		have, ok := p.Service(string(id))
		if !ok {
			return nil, &Refusal{Code: "NO_SERVICE", Field: "service", Message: "project " + p.Name + " has no service " + string(id), Fix: "see: pipeops project show " + p.Name}
		}
		spec := c.Specs[id]
		if problems := spec.Check(); len(problems) > 0 {
			return nil, problems[0]
		}
		if !have.Spec.equal(spec) {
			changes = append(changes, Change{stream, ServiceConfigured{Service: id, Spec: spec}})
		}
	}
	added, err := additions(p, c.Services, c.Environments)
	return append(changes, added...), err
}

// RotateWebhookSecret records that a provider's webhook secret has another
// revision, which stands sealed beside the log.
type RotateWebhookSecret struct {
	ID       ProjectID
	Provider string
	Revision int
}

// Reads implements Command.
func (c RotateWebhookSecret) Reads(State) []Stream { return []Stream{ProjectStream(c.ID)} }

// Decide implements Command.
func (c RotateWebhookSecret) Decide(s State) ([]Change, error) {
	if Of[Project](s, ProjectStream(c.ID)).ID == "" {
		return nil, noProject(string(c.ID))
	}
	return []Change{{ProjectStream(c.ID), WebhookSecretRotated{Provider: c.Provider, Revision: c.Revision}}}, nil
}

// GitCredential names the secret that opens a repository: one for each host, so
// that another address never gets what was meant for the one before.
func GitCredential(repository string) string {
	u, err := url.Parse(repository)
	if err != nil {
		return "git-credential/"
	}
	return "git-credential/" + strings.ToLower(u.Host)
}

// SetGitCredential records that the credential for the host of the project's
// repository has its next revision, which stands sealed beside the log.
type SetGitCredential struct{ ID ProjectID }

// Reads implements Command.
func (c SetGitCredential) Reads(State) []Stream { return []Stream{ProjectStream(c.ID)} }

// Decide implements Command.
func (c SetGitCredential) Decide(s State) ([]Change, error) {
	p := Of[Project](s, ProjectStream(c.ID))
	if p.ID == "" {
		return nil, noProject(string(c.ID))
	}
	if p.Settings.Repository == "" {
		return nil, &Refusal{
			Code: "NO_REPOSITORY", Field: "gitCredential", Message: "project " + p.Name + " has no repository elsewhere that a credential could open",
			Fix: "give its address too: pipeops project set " + p.Name + " --repo https://github.com/acme/shop.git",
		}
	}
	name := GitCredential(p.Settings.Repository)
	return []Change{{ProjectStream(c.ID), SecretSet{Name: name, Revision: p.Secrets[name] + 1}}}, nil
}

func noProject(id string) *Refusal {
	return &Refusal{Code: "NO_PROJECT", Field: "project", Message: "there is no project " + id, Fix: "see: pipeops project list"}
}

// maxPlaces bounds services and environments, and so what one push can lead
// to (maxFanOut): what a policy decides is appended in one piece.
const maxPlaces = 32

func additions(have *Project, services []NewService, environments []NewEnvironment) ([]Change, error) {
	stream, copied := ProjectStream(have.ID), *have
	p := &copied // a decision leaves the state alone
	if n, m := len(p.Services)+len(services), len(p.Environments)+len(environments); len(services)+len(environments) > 0 && (n > maxPlaces || m > maxPlaces || n*m > maxFanOut) {
		return nil, &Refusal{
			Code: "TOO_MANY", Field: "services", Message: fmt.Sprintf("%d services in %d environments are too many for one project", n, m),
			Fix: fmt.Sprintf("use at most %d of each, and %d pairs of them; split the project", maxPlaces, maxFanOut),
		}
	}
	var changes []Change
	for _, n := range services {
		if err := CheckSlug(n.Name); err != nil {
			return nil, &Refusal{Code: "BAD_NAME", Field: "service", Message: fmt.Sprintf("%q can't be a service's name", n.Name), Fix: err.Error()}
		}
		if problems := n.Spec.Check(); len(problems) > 0 {
			return nil, problems[0]
		}
		if slices.ContainsFunc(p.Services, func(have Service) bool { return have.Name == n.Name }) {
			return nil, &Refusal{Code: "NAME_TAKEN", Field: "service", Message: "there is a service named " + n.Name + " already", Fix: "choose another name"}
		}
		e := ServiceAdded{Service: n.ID, Name: n.Name, Spec: n.Spec}
		p.Services = append(slices.Clip(p.Services), Service(n))
		changes = append(changes, Change{stream, e})
	}
	for _, n := range environments {
		if err := CheckSlug(n.Name); err != nil {
			return nil, &Refusal{Code: "BAD_NAME", Field: "environment", Message: fmt.Sprintf("%q can't be an environment's name", n.Name), Fix: err.Error()}
		}
		if n.Branch != "" && !isBranch(n.Branch) {
			return nil, notABranch(n.Branch)
		}
		if slices.ContainsFunc(p.Environments, func(have Environment) bool { return have.Name == n.Name }) {
			return nil, &Refusal{Code: "NAME_TAKEN", Field: "environment", Message: "there is an environment named " + n.Name + " already", Fix: "choose another name"}
		}
		e := EnvironmentAdded{Environment: n.ID, Name: n.Name, Branch: n.Branch, Namespace: Namespace(p.Name, n.Name, n.ID)}
		p.Environments = append(slices.Clip(p.Environments), Environment{n.ID, n.Name, n.Branch, e.Namespace})
		changes = append(changes, Change{stream, e})
	}
	return changes, nil
}

var (
	// thisMachine is a host that plain http doesn't leave the machine for.
	thisMachine = regexp.MustCompile(`^(localhost|127(\.[0-9]{1,3}){3}|::1)$`)
	// registryPrefix is host, port and path of image repositories, "ghcr.io/acme".
	registryPrefix = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)
)

// maxSetting bounds each text of a project's settings, in bytes.
const maxSetting = 512

func isBranch(name string) bool {
	return name != "" && len(name) <= maxSetting && !strings.HasPrefix(name, "-") && !strings.HasPrefix(name, "refs/") && !strings.Contains(name, "..") &&
		!strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("~^:?*[\\", r) })
}

func notABranch(name string) *Refusal {
	return &Refusal{Code: "BAD_SETTING", Field: "branch", Message: fmt.Sprintf("%q isn't a branch", name), Fix: "name the branch whose pushes are built, without refs/heads/, for example main"}
}

// check refuses what can't work, and what the log must not keep. Messages
// don't repeat a URL: there may be a secret in it.
func (s ProjectSettings) check() error {
	if !isBranch(s.Branch) {
		return notABranch(s.Branch)
	}
	if s.Registry != "" && (len(s.Registry) > maxSetting || !registryPrefix.MatchString(s.Registry)) {
		return &Refusal{Code: "BAD_SETTING", Field: "registry", Message: "not a prefix for images", Fix: "give the host and the path, without a scheme, credentials or a slash at the end, for example ghcr.io/acme"}
	}
	if s.Repository == "" {
		return nil
	}
	notFetched := &Refusal{
		Code: "BAD_SETTING", Field: "repository", Message: "not a repository that can be fetched: only https is spoken, and http to this machine",
		Fix: "use https://, for example https://github.com/acme/shop.git, with --git-credential-file where it is private, or leave it empty for the built-in git remote",
	}
	u, err := url.Parse(s.Repository)
	if err != nil || len(s.Repository) > maxSetting || u.Host == "" || strings.HasPrefix(u.Host, "-") {
		return notFetched
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !thisMachine.MatchString(u.Hostname())) {
		return notFetched
	}
	// A token often stands where the user's name belongs: https://TOKEN@host/….
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return &Refusal{Code: "SECRET_IN_URL", Field: "repository", Message: "the URL carries more than host and path, which the log would keep for ever", Fix: "remove user, password and query from the URL, and give them with --git-credential-file"}
	}
	return nil
}

func sortedServices(m map[ServiceID]ServiceSpec) []ServiceID {
	ids := make([]ServiceID, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
