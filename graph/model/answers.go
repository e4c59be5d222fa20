package model

import "github.com/pipeops/pipeops/domain"

// Answer is what a mutation answers with: what stands below it is read with this seen.
type Answer interface{ Seen() domain.Cursor }

// Seen implements Answer.
func (p *ProjectPayload) Seen() domain.Cursor { return p.Cursor }

// Seen implements Answer.
func (p *RotateWebhookSecretPayload) Seen() domain.Cursor { return p.Cursor }

// Seen implements Answer.
func (p *DeploymentPayload) Seen() domain.Cursor { return p.Cursor }

// Seen implements Answer.
func (p *ProjectionPayload) Seen() domain.Cursor { return p.Cursor }
