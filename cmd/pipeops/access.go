package main

import (
	"context"
	"crypto/subtle"
	"fmt"
	"strings"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/graph"
	"github.com/pipeops/pipeops/handlers/gitremote"
	"github.com/pipeops/pipeops/handlers/webhook"
	"github.com/pipeops/pipeops/internal/bus"
	"github.com/pipeops/pipeops/internal/seal"
	"github.com/pipeops/pipeops/runner"
)

// access says who may do what, for the doors of `serve`.
type access struct{ *core }

// Verify implements what graph wants of tokens.
func (a access) Verify(ctx context.Context, token string) (actor string, ok bool, err error) {
	return a.verify(ctx, token)
}

// MayPush implements gitremote.Access: any API token.
func (a access) MayPush(ctx context.Context, token string, _ domain.ProjectID) (string, error) {
	actor, _, err := a.verify(ctx, token)
	return actor, err
}

// MayFetch implements gitremote.Access: any API token, or that of an attempt
// at a build of the project, while it runs.
func (a access) MayFetch(ctx context.Context, token string, project domain.ProjectID) (string, error) {
	attempt, ok := a.fetchToken(token, project)
	if !ok {
		return a.MayPush(ctx, token, project)
	}
	b, err := a.building(ctx, attempt)
	if err != nil || !b.Running || b.Attempt() != attempt || b.Request.Project != project {
		return "", err
	}
	return string(attempt), nil
}

// building folds the build that an attempt is one at.
func (a access) building(ctx context.Context, attempt domain.AttemptID) (*domain.Build, error) {
	state, _, err := a.commands.Load(ctx, domain.ReportBuild{Attempt: attempt})
	if err != nil {
		return nil, fmt.Errorf("load the build of %s: %w", attempt, err)
	}
	return domain.Of[domain.Build](state, attempt.Stream()), nil
}

// fetchPrefix marks a token that lets one attempt read one project's repository.
const fetchPrefix = "pipeops-fetch_"

func (a access) newFetchToken(attempt domain.AttemptID, project domain.ProjectID) string {
	return fetchPrefix + string(attempt) + "_" + a.keys.MAC(seal.AttemptTokens, "git-fetch", string(attempt), string(project))
}

func (a access) fetchToken(token string, project domain.ProjectID) (domain.AttemptID, bool) {
	rest, ok := strings.CutPrefix(token, fetchPrefix)
	i := strings.LastIndex(rest, "_")
	if !ok || i < 0 || project == "" {
		return "", false
	}
	attempt := domain.AttemptID(rest[:i])
	return attempt, subtle.ConstantTimeCompare([]byte(token), []byte(a.newFetchToken(attempt, project))) == 1
}

// GitProject implements gitremote.Projects.
func (a access) GitProject(ctx context.Context, nameOrID string) (gitremote.Project, error) {
	id := domain.ProjectID(nameOrID)
	if domain.CheckSlug(nameOrID) == nil {
		named, err := a.projectByName(ctx, nameOrID)
		if err != nil || named == "" {
			return gitremote.Project{}, err
		}
		id = named
	}
	state, _, err := a.commands.Load(ctx, domain.ConfigureProject{ID: id})
	if err != nil {
		return gitremote.Project{}, err
	}
	p := domain.Of[domain.Project](state, domain.ProjectStream(id))
	return gitremote.Project{ID: p.ID, Name: p.Name, Branch: p.Settings.Branch}, nil
}

// projectID finds a project's id by its name or id, "" for none.
func (a access) projectID(ctx context.Context, nameOrID string) (domain.ProjectID, error) {
	p, err := a.GitProject(ctx, nameOrID)
	return p.ID, err
}

// tokenNames gives what people call tokens, by the actor's id in events.
func (a access) tokenNames(ctx context.Context) (map[string]string, error) {
	tokens, err := a.tokens.Names(ctx)
	names := make(map[string]string, len(tokens))
	for id, name := range tokens {
		names["token:"+id] = name
	}
	return names, err
}

// WebhookSecrets implements webhook.Secrets.
func (a access) WebhookSecrets(ctx context.Context, project domain.ProjectID, provider string) ([]webhook.Secret, error) {
	revisions, err := a.secrets.Revisions(ctx, project, graph.WebhookSecret(provider), 2)
	if err != nil {
		return nil, err
	}
	out := make([]webhook.Secret, len(revisions))
	for i, r := range revisions {
		out[i] = webhook.Secret{Revision: r.Number, Value: r.Value, ReplacedAt: r.ReplacedAt}
	}
	return out, nil
}

// jobSecrets are those that one attempt is granted: what opens the source of
// a build. Our own remote takes a token of the attempt, which nobody else gets;
// another host takes what the project has for that very host.
func (a access) jobSecrets(ctx context.Context, attempt domain.AttemptID, project domain.ProjectID, kind bus.Kind) (map[string]string, error) {
	if kind != bus.KindBuild {
		return nil, nil
	}
	b, err := a.building(ctx, attempt)
	if err != nil {
		return nil, err
	}
	if b.Request.Repository == "" {
		return map[string]string{runner.GitToken: a.newFetchToken(attempt, project)}, nil
	}
	revisions, err := a.secrets.Revisions(ctx, project, domain.GitCredential(b.Request.Repository), 1)
	if err != nil || len(revisions) == 0 || len(revisions[0].Value) == 0 {
		return nil, err
	}
	return map[string]string{runner.GitCredential: string(revisions[0].Value)}, nil
}

// actorID is the opaque id of a person at a provider.
func (a access) actorID(provider, person string) string { return a.keys.Actor(provider, person) }

// shutdownGrace is how long requests and handlers may take to end.
const shutdownGrace = 10 * time.Second
