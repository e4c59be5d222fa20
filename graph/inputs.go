package graph

import (
	"maps"
	"slices"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/model"
)

// newProject gives the command for an input, with its defaults.
func (r *Resolver) newProject(in model.CreateProjectInput) (domain.CreateProject, error) {
	cmd := domain.CreateProject{
		ID: domain.ProjectID(r.config.NewID("prj")), Name: in.Name,
		Settings: domain.ProjectSettings{Repository: value(in.Repository), Branch: in.Branch, Registry: r.config.Registry},
	}
	if in.Registry != nil {
		cmd.Settings.Registry = *in.Registry
	}
	if in.Services == nil {
		in.Services = []model.ServiceInput{{Name: in.Name}}
	}
	if in.Environments == nil {
		in.Environments = []model.EnvironmentInput{{Name: "production"}}
	}
	for _, s := range in.Services {
		spec, err := merge(domain.DefaultSpec(), s)
		if err != nil {
			return cmd, err
		}
		cmd.Services = append(cmd.Services, domain.NewService{ID: domain.ServiceID(r.config.NewID("svc")), Name: s.Name, Spec: spec})
	}
	for _, e := range in.Environments {
		cmd.Environments = append(cmd.Environments, newEnvironment(r.config.NewID, e))
	}
	return cmd, nil
}

func newEnvironment(newID domain.NewID, e model.EnvironmentInput) domain.NewEnvironment {
	return domain.NewEnvironment{ID: domain.EnvironmentID(newID("env")), Name: e.Name, Branch: value(e.Branch)}
}

// configure is domain.ConfigureProject for an input that names only what changes: what it means is decided on the
// project as it stands when it is decided, so that two callers don't undo each other's changes.
type configure struct {
	id    domain.ProjectID
	in    model.ConfigureProjectInput
	newID domain.NewID
}

// Reads implements domain.Command.
func (c configure) Reads(s domain.State) []domain.Stream {
	return domain.ConfigureProject{ID: c.id}.Reads(s)
}

// Decide implements domain.Command.
func (c configure) Decide(s domain.State) ([]domain.Change, error) {
	p := domain.Of[domain.Project](s, domain.ProjectStream(c.id))
	settings := p.Settings
	set(&settings.Repository, c.in.Repository)
	set(&settings.Branch, c.in.Branch)
	set(&settings.Registry, c.in.Registry)
	cmd := domain.ConfigureProject{ID: c.id, Settings: &settings, Specs: map[domain.ServiceID]domain.ServiceSpec{}}
	for _, in := range c.in.Services {
		had, known := service(p, in.Name)
		if !known {
			had.Spec = domain.DefaultSpec()
		}
		spec, err := merge(had.Spec, in)
		if err != nil {
			return nil, err
		}
		if known {
			cmd.Specs[had.ID] = spec
		} else {
			cmd.Services = append(cmd.Services, domain.NewService{ID: domain.ServiceID(c.newID("svc")), Name: in.Name, Spec: spec})
		}
	}
	for _, in := range c.in.Environments {
		i := slices.IndexFunc(p.Environments, func(e domain.Environment) bool { return e.Name == in.Name })
		switch {
		case i < 0:
			cmd.Environments = append(cmd.Environments, newEnvironment(c.newID, in))
		case in.Branch != nil && *in.Branch != p.Environments[i].Branch:
			return nil, &domain.Refusal{
				Code: "FIXED", Field: "environments", Message: "environment " + in.Name + " follows its branch for good",
				Fix: "add an environment of another name for the other branch",
			}
		}
	}
	return cmd.Decide(s)
}

// service finds a service by its name alone: an empty name is no name here.
func service(p *domain.Project, name string) (domain.Service, bool) {
	i := slices.IndexFunc(p.Services, func(s domain.Service) bool { return s.Name == name })
	if i < 0 {
		return domain.Service{}, false
	}
	return p.Services[i], true
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// merge changes what an input names.
func merge(spec domain.ServiceSpec, in model.ServiceInput) (_ domain.ServiceSpec, err error) {
	set(&spec.RootDir, in.RootDir)
	set(&spec.Dockerfile, in.Dockerfile)
	if in.BuildArgs != nil {
		if spec.BuildArgs, err = variables("buildArgs", in.BuildArgs); err != nil {
			return spec, err
		}
	}
	if in.Variables != nil {
		if spec.Variables, err = variables("variables", in.Variables); err != nil {
			return spec, err
		}
	}
	if in.Command != nil {
		spec.Command = in.Command
	}
	set(&spec.Port, in.Port)
	set(&spec.Replicas, in.Replicas)
	set(&spec.Health.Path, in.HealthPath)
	mergeProbe(&spec.Health.Startup, in.Startup)
	mergeProbe(&spec.Health.Readiness, in.Readiness)
	mergeProbe(&spec.Health.Liveness, in.Liveness)
	if in.Strategy != nil {
		spec.Strategy.Kind = domain.StrategyKind(*in.Strategy)
	}
	setSeconds(&spec.Strategy.MinReady, in.MinReady)
	setSeconds(&spec.Strategy.Deadline, in.Deadline)
	set(&spec.CPURequest, in.CPURequest)
	set(&spec.MemoryRequest, in.MemoryRequest)
	set(&spec.CPULimit, in.CPULimit)
	set(&spec.MemoryLimit, in.MemoryLimit)
	return spec, nil
}

func mergeProbe(p *domain.Probe, in *model.ProbeInput) {
	if in == nil {
		return
	}
	setSeconds(&p.InitialDelay, in.InitialDelay)
	setSeconds(&p.Period, in.Period)
	setSeconds(&p.Timeout, in.Timeout)
	set(&p.Failures, in.Failures)
}

func setSeconds(to *domain.Seconds, from *int) {
	if from != nil {
		*to = domain.Seconds(*from)
	}
}

// variables gives nil for none, as a stored spec has it.
func variables(field string, in []model.VariableInput) (out map[string]string, err error) {
	for _, v := range in {
		if _, twice := out[v.Name]; twice || v.Name == "" {
			return nil, badInput(field, "the name "+v.Name+" is empty or stands there twice", "give each name once")
		}
		if out == nil {
			out = map[string]string{}
		}
		out[v.Name] = v.Value
	}
	return out, nil
}

// spec gives a service's settings in the names of the schema.
func spec(s domain.ServiceSpec) *model.ServiceSpec {
	return &model.ServiceSpec{
		RootDir: s.RootDir, Dockerfile: s.Dockerfile, BuildArgs: listed(s.BuildArgs), Command: s.Command,
		Variables: listed(s.Variables), Port: s.Port, Replicas: s.Replicas, HealthPath: s.Health.Path,
		Startup: probe(s.Health.Startup), Readiness: probe(s.Health.Readiness), Liveness: probe(s.Health.Liveness),
		Strategy: string(s.Strategy.Kind), MinReady: int(s.Strategy.MinReady), Deadline: int(s.Strategy.Deadline),
		CPURequest: s.CPURequest, MemoryRequest: s.MemoryRequest, CPULimit: s.CPULimit, MemoryLimit: s.MemoryLimit,
	}
}

func probe(p domain.Probe) *model.Probe {
	return &model.Probe{InitialDelay: int(p.InitialDelay), Period: int(p.Period), Timeout: int(p.Timeout), Failures: p.Failures}
}

// listed gives variables by name.
func listed(m map[string]string) []model.Variable {
	out := make([]model.Variable, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, model.Variable{Name: name, Value: m[name]})
	}
	return out
}
