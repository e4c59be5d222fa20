package domain

import "slices"

// SlotEvent may stand in a slot's stream. A slot is one service in one
// environment: one deployment at a time goes through it.
//
//sumtype:decl
type SlotEvent interface {
	Event
	slotEvent()
}

type inSlot struct{}

func (inSlot) slotEvent() {}

// DeploymentAdmitted puts a deployment in line. Only the newest waits; who
// waited before is superseded in the same decision.
type DeploymentAdmitted struct {
	fact
	inSlot

	Deployment DeploymentID `json:"deployment"`
	Push       PushID       `json:"push,omitempty"` // that led to it; empty when a person asked for it
}

// DeploymentClaimed gives the slot to an attempt of the deployment in line, or
// to the next attempt of the one that has it.
type DeploymentClaimed struct {
	fact
	inSlot

	Deployment   DeploymentID `json:"deployment"`
	Attempt      AttemptID    `json:"attempt"`
	FencingEpoch int64        `json:"fencingEpoch"` // rises with every claim; the cluster refuses lower ones
}

// DeploymentReleased frees the slot.
type DeploymentReleased struct {
	fact
	inSlot

	Deployment DeploymentID `json:"deployment"`
}

// ReleaseActivated says what serves from now on.
type ReleaseActivated struct {
	fact
	inSlot

	Deployment DeploymentID `json:"deployment"`
	Release    Release      `json:"release"`
	Spec       ServiceSpec  `json:"spec"`
}

// ReleaseQuarantined bars a release that failed by its own fault: it isn't
// deployed again until someone lifts it. A mended configuration is another
// release. What serves is never barred.
type ReleaseQuarantined struct {
	fact
	inSlot

	Release    ReleaseID    `json:"release"`
	Deployment DeploymentID `json:"deployment"` // that failed with it
	Why        string       `json:"why"`        // the title of its diagnosis
}

// QuarantineLifted lets it go again.
type QuarantineLifted struct {
	fact
	inSlot

	Release ReleaseID `json:"release"`
}

// ReleaseID names an image digest with a configuration: "rel_" + UUIDv5.
type ReleaseID string

// Release is what can be deployed: an image and the version of the project's
// configuration that it runs with.
type Release struct {
	ID            ReleaseID `json:"id"`
	Build         BuildID   `json:"build"`
	Commit        string    `json:"commit"`
	Image         string    `json:"image"` // by digest: "ghcr.io/acme/shop@sha256:…"
	ConfigVersion int64     `json:"configVersion"`
}

// NewRelease names the release of an image with a configuration of a service.
func NewRelease(service ServiceID, build BuildID, commit, image string, configVersion int64, spec ServiceSpec) Release {
	return Release{
		ID:    ReleaseID("rel_" + Derive("release", string(service), image, spec.fingerprint())),
		Build: build, Commit: commit, Image: image, ConfigVersion: configVersion,
	}
}

// Activation is a release that served, with what it ran with.
type Activation struct {
	Deployment DeploymentID `json:"deployment"`
	Release    Release      `json:"release"`
	Spec       ServiceSpec  `json:"spec"`
}

// keptActivations is how many a slot remembers for rolling back by hand.
const keptActivations = 50

// Slot is who may deploy, and what is active.
type Slot struct {
	Waiting      DeploymentID // in line, empty = nobody
	Holder       DeploymentID // has the slot
	FencingEpoch int64
	History      []Activation // oldest first, the last one serves
	Quarantined  map[ReleaseID]string
	Pushed       DeploymentAdmitted // the last one that a push led to
}

// Evolve applies an event.
func (s *Slot) Evolve(e SlotEvent) {
	switch e := e.(type) {
	case DeploymentAdmitted:
		s.Waiting = e.Deployment
		if e.Push != "" {
			s.Pushed = e
		}
	case DeploymentClaimed:
		s.Holder, s.FencingEpoch = e.Deployment, e.FencingEpoch
		if s.Waiting == e.Deployment {
			s.Waiting = ""
		}
	case DeploymentReleased:
		if s.Holder == e.Deployment {
			s.Holder = ""
		}
		if s.Waiting == e.Deployment {
			s.Waiting = ""
		}
	case ReleaseActivated:
		s.History = append(s.History, Activation{e.Deployment, e.Release, e.Spec})
		if len(s.History) > keptActivations {
			s.History = slices.Clone(s.History[1:])
		}
	case ReleaseQuarantined:
		if s.Quarantined == nil {
			s.Quarantined = map[ReleaseID]string{}
		}
		s.Quarantined[e.Release] = e.Why
	case QuarantineLifted:
		delete(s.Quarantined, e.Release)
	}
}

// Active is what serves, nil when nothing ever did.
func (s *Slot) Active() *Activation {
	if len(s.History) == 0 {
		return nil
	}
	return &s.History[len(s.History)-1]
}
