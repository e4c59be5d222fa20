package graph

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/99designs/gqlgen/graphql"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph/model"
	"github.com/pipeops/pipeops/handlers/commands"
	"github.com/pipeops/pipeops/projections"
)

// commandID is the same for the same key of the same caller and mutation, else a new one.
func (r *Resolver) commandID(ctx context.Context, mutation string, key *string) string {
	if value(key) == "" {
		return r.config.NewID("cmd")
	}
	return domain.Derive("api", Actor(ctx), mutation, *key)
}

// execute lets the caller's wish be decided. The cursor is that of what was recorded, or the log's head when nothing was.
func (r *Resolver) execute(ctx context.Context, cmd domain.Command, commandID string, project domain.ProjectID) (commands.Result, domain.Cursor, error) {
	result, err := r.config.Commands.Execute(ctx, cmd, commands.Meta{
		CommandID: commandID, Actor: Actor(ctx), At: r.config.Now(), Project: project,
		Trace: domain.Traceparent(graphql.GetOperationContext(ctx).Headers.Get("traceparent")),
	})
	if err != nil {
		return result, domain.Cursor{}, err
	}
	cursor := result.Cursor()
	if len(result.Events) == 0 {
		cursor, err = r.config.Queries.Head(ctx)
	}
	return result, cursor, err
}

// decided finds the event of type E among those that a command led to.
func decided[E domain.Event](events []domain.Recorded) (event E, err error) {
	for _, recorded := range events {
		e, err := recorded.Decode()
		if err != nil {
			return event, err
		}
		if found, ok := e.(E); ok {
			return found, nil
		}
	}
	return event, fmt.Errorf("the command led to no %s", domain.TypeOf(event))
}

// shown gives the row that a mutation answers with. What was wanted is recorded by then: a read model that is behind
// is no reason to say that it failed, so the answer comes without the row.
func shown[T any](ctx context.Context, r *Resolver, row *T, err error) (*T, error) {
	if _, behind := errors.AsType[*projections.BehindError](err); behind {
		r.config.Log.WarnContext(ctx, "a mutation was answered without its object", "err", err)
		return nil, nil
	}
	return row, err
}

func (r *Resolver) showProject(ctx context.Context, id domain.ProjectID, cursor domain.Cursor) (*projections.Project, error) {
	p, err := r.config.Queries.Project(ctx, string(id), projections.At{AtLeast: cursor})
	return shown(ctx, r, p, err)
}

func (r *Resolver) createProject(ctx context.Context, in model.CreateProjectInput) (*model.ProjectPayload, error) {
	commandID := r.commandID(ctx, "createProject", in.IdempotencyKey)
	cmd, err := r.newProject(in)
	if err != nil {
		return nil, err
	}
	if in.WebhookSecret != nil {
		if err := checkWebhook(in.WebhookProvider, *in.WebhookSecret); err != nil {
			return nil, err
		}
	}
	if err := checkCredential(in.GitCredential, cmd.Settings.Repository); err != nil {
		return nil, err
	}
	result, cursor, err := r.execute(ctx, cmd, commandID, cmd.ID)
	if err != nil {
		return nil, err
	}
	created, err := decided[domain.ProjectCreated](result.Events) // of the first time, if this is a repeat
	if err != nil {
		return nil, err
	}
	if in.WebhookSecret != nil {
		rotate := nextSecret{created.Project, in.WebhookProvider}
		if _, _, cursor, err = r.keep(ctx, created.Project, rotate, *in.WebhookSecret, commandID+"/webhook"); err != nil {
			return nil, err
		}
	}
	if in.GitCredential != nil {
		if cursor, err = r.keepCredential(ctx, created.Project, *in.GitCredential, commandID); err != nil {
			return nil, err
		}
	}
	p, err := r.showProject(ctx, created.Project, cursor)
	return &model.ProjectPayload{Project: p, Cursor: cursor}, err
}

func (r *Resolver) configureProject(ctx context.Context, in model.ConfigureProjectInput) (*model.ProjectPayload, error) {
	p, err := r.loadProject(ctx, in.Project)
	if err != nil {
		return nil, err
	}
	repository := p.Settings.Repository
	set(&repository, in.Repository)
	if err := checkCredential(in.GitCredential, repository); err != nil {
		return nil, err
	}
	commandID := r.commandID(ctx, "configureProject", in.IdempotencyKey)
	_, cursor, err := r.execute(ctx, configure{p.ID, in, r.config.NewID}, commandID, p.ID)
	if err != nil {
		return nil, err
	}
	if in.GitCredential != nil {
		if cursor, err = r.keepCredential(ctx, p.ID, *in.GitCredential, commandID); err != nil {
			return nil, err
		}
	}
	shown, err := r.showProject(ctx, p.ID, cursor)
	return &model.ProjectPayload{Project: shown, Cursor: cursor}, err
}

func (r *Resolver) rotateWebhookSecret(ctx context.Context, in model.RotateWebhookSecretInput) (*model.RotateWebhookSecretPayload, error) {
	secret, made := value(in.Secret), in.Secret == nil
	if made {
		secret = rand.Text()
	}
	if err := checkWebhook(in.Provider, secret); err != nil {
		return nil, err
	}
	p, err := r.loadProject(ctx, in.Project)
	if err != nil {
		return nil, err
	}
	kept, revision, cursor, err := r.keep(ctx, p.ID, nextSecret{p.ID, in.Provider}, secret, r.commandID(ctx, "rotateWebhookSecret", in.IdempotencyKey))
	if err != nil {
		return nil, err
	}
	out := &model.RotateWebhookSecretPayload{Revision: revision, Cursor: cursor}
	if made {
		out.Secret = &kept
	}
	out.Project, err = r.showProject(ctx, p.ID, cursor)
	return out, err
}

// WebhookSecret is the name under which a provider's webhook secret is kept.
func WebhookSecret(provider string) string { return "webhook/" + provider }

func checkWebhook(provider, secret string) error {
	if err := domain.CheckSlug(provider); err != nil {
		return badInput("provider", fmt.Sprintf("%q isn't a provider", provider), "use github")
	}
	if secret == "" || len(secret) > 1000 {
		return badInput("webhookSecret", "the secret is empty, or longer than 1000 bytes", "use 20 random characters or more, or leave it out and take the server's")
	}
	return nil
}

// checkCredential holds a credential against the repository that it shall open; nil is none given.
func checkCredential(credential *string, repository string) error {
	unfit := func(c rune) bool { return c <= ' ' || c == 0x7f }
	switch {
	case credential == nil:
		return nil
	case len(*credential) > 1000 || strings.ContainsFunc(*credential, unfit):
		return badInput("gitCredential", "the credential is longer than 1000 bytes, or holds spaces or line breaks", "give user:token, or a token alone")
	case repository == "":
		return badInput("gitCredential", "the built-in git remote has no such credential: it takes API tokens", "leave it out, or give the repository's address too")
	}
	return nil
}

func (r *Resolver) keepCredential(ctx context.Context, project domain.ProjectID, credential, commandID string) (domain.Cursor, error) {
	_, _, cursor, err := r.keep(ctx, project, domain.SetGitCredential{ID: project}, credential, commandID+"/git-credential")
	return cursor, err
}

// keep lets a command number a secret in the log, then keeps it under that number: so a repeat finds its number again.
// It gives the value that is kept, which in a repeat is that of the first time.
func (r *Resolver) keep(ctx context.Context, project domain.ProjectID, number domain.Command, secret, commandID string) (kept string, revision int, cursor domain.Cursor, err error) {
	result, cursor, err := r.execute(ctx, number, commandID, project)
	if err != nil {
		return "", 0, cursor, err
	}
	name, revision, err := numbered(result.Events)
	if err != nil {
		return "", 0, cursor, err
	}
	if err := r.config.Secrets.Put(ctx, project, name, revision, []byte(secret)); err != nil {
		return "", 0, cursor, err
	}
	stored, _, err := r.config.Secrets.Get(ctx, project, name, revision)
	if err == nil && !result.Known && string(stored) != secret {
		err = fmt.Errorf("revision %d of secret %s of %s was taken", revision, name, project)
	}
	return string(stored), revision, cursor, err
}

// numbered finds the secret that events speak of.
func numbered(events []domain.Recorded) (name string, revision int, err error) {
	if e, err := decided[domain.WebhookSecretRotated](events); err == nil {
		return WebhookSecret(e.Provider), e.Revision, nil
	}
	e, err := decided[domain.SecretSet](events)
	return e.Name, e.Revision, err
}

// nextSecret gives a provider's webhook secret the next number.
type nextSecret struct {
	project  domain.ProjectID
	provider string
}

// Reads implements domain.Command.
func (c nextSecret) Reads(domain.State) []domain.Stream {
	return []domain.Stream{domain.ProjectStream(c.project)}
}

// Decide implements domain.Command.
func (c nextSecret) Decide(s domain.State) ([]domain.Change, error) {
	p := domain.Of[domain.Project](s, domain.ProjectStream(c.project))
	return domain.RotateWebhookSecret{ID: c.project, Provider: c.provider, Revision: p.Webhooks[c.provider] + 1}.Decide(s)
}

// target finds a service and an environment of a project; what is left out is the only one.
func target(p *domain.Project, environment, service *string) (e domain.Environment, s domain.Service, err error) {
	e, ok := p.Environment(value(environment))
	if !ok {
		return e, s, missing("environment", value(environment), p)
	}
	if s, ok = p.Service(value(service)); !ok {
		return e, s, missing("service", value(service), p)
	}
	return e, s, nil
}

func missing(what, name string, p *domain.Project) error {
	if name == "" {
		return badInput(what, "project "+p.Name+" has none or several: name the "+what, "see: pipeops project show "+p.Name)
	}
	return notFound(what, what+" "+name+" in project "+p.Name, "see: pipeops project show "+p.Name)
}

func (r *Resolver) deploy(ctx context.Context, in model.DeployInput) (*model.DeploymentPayload, error) {
	p, err := r.loadProject(ctx, in.Project)
	if err != nil {
		return nil, err
	}
	environment, service, err := target(p, in.Environment, in.Service)
	if err != nil {
		return nil, err
	}
	build := domain.BuildID(value(in.Build))
	if build == "" {
		if build, err = r.newestBuild(ctx, p, environment, service, value(in.Commit)); err != nil {
			return nil, err
		}
	}
	return r.requestDeployment(ctx, r.commandID(ctx, "deploy", in.IdempotencyKey), domain.RequestDeployment{
		Project: p.ID, Environment: environment.ID, Service: service.ID, Build: build, Lift: in.LiftQuarantine, Reason: "manual",
	})
}

// newestBuild finds the newest succeeded build of a service, of a commit or of the branch that the environment follows.
func (r *Resolver) newestBuild(ctx context.Context, p *domain.Project, e domain.Environment, s domain.Service, commit string) (domain.BuildID, error) {
	if commit != "" && len(commit) < 7 {
		return "", badInput("commit", "the beginning of a commit's hash has 7 digits or more", "give more of it")
	}
	head, err := r.config.Queries.Head(ctx)
	if err != nil {
		return "", err
	}
	builds, err := r.config.Queries.Builds(ctx, p.ID, commit, projections.Page{}, projections.At{AtLeast: head})
	if err != nil {
		return "", err
	}
	branch := e.Branch
	if branch == "" {
		branch = p.Settings.Branch
	}
	for _, b := range builds {
		if b.Phase == domain.Succeeded && slices.Contains(b.Services, s.ID) && (commit != "" || b.Branch == branch) {
			return b.ID, nil
		}
	}
	what := "branch " + branch
	if commit != "" {
		what = "commit " + commit
	}
	return "", &domain.Refusal{
		Code: "NO_IMAGE", Field: "commit", Message: "there is no succeeded build of " + what + " for service " + s.Name,
		Fix: "push it, or see what was built: pipeops status " + p.Name,
	}
}

func (r *Resolver) rollback(ctx context.Context, in model.RollbackInput) (*model.DeploymentPayload, error) {
	p, err := r.loadProject(ctx, in.Project)
	if err != nil {
		return nil, err
	}
	environment, service, err := target(p, in.Environment, in.Service)
	if err != nil {
		return nil, err
	}
	return r.requestDeployment(ctx, r.commandID(ctx, "rollback", in.IdempotencyKey), domain.RequestDeployment{
		Project: p.ID, Environment: environment.ID, Service: service.ID, Rollback: true,
		To: domain.ReleaseID(value(in.To)), Lift: in.LiftQuarantine, Reason: "rollback",
	})
}

func (r *Resolver) requestDeployment(ctx context.Context, commandID string, cmd domain.RequestDeployment) (*model.DeploymentPayload, error) {
	cmd.Deployment = domain.DeploymentID(r.config.NewID("dep"))
	result, cursor, err := r.execute(ctx, cmd, commandID, cmd.Project)
	if err != nil {
		return nil, err
	}
	requested, err := decided[domain.DeploymentRequested](result.Events)
	if err != nil {
		return nil, err
	}
	d, err := r.config.Queries.Deployment(ctx, requested.Deployment, projections.At{AtLeast: cursor})
	d, err = shown(ctx, r, d, err)
	return &model.DeploymentPayload{Deployment: d, Cursor: cursor}, err
}
