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

	Deployment DeploymentID `json:"deployment"`     // that waits for the slot from now on
	Push       PushID       `json:"push,omitempty"` // that led to it; empty when a person asked for it
}

// DeploymentClaimed gives the slot to an attempt of the deployment in line, or
// to the next attempt of the one that has it.
type DeploymentClaimed struct {
	fact
	inSlot

	Deployment   DeploymentID `json:"deployment"`   // that has the slot from now on
	Attempt      AttemptID    `json:"attempt"`      // that works on it
	FencingEpoch int64        `json:"fencingEpoch"` // one more with every claim of the slot, from 1; the cluster refuses lower ones
}

// DeploymentReleased frees the slot.
type DeploymentReleased struct {
	fact
	inSlot

	Deployment DeploymentID `json:"deployment"` // that has, or waits for, the slot no more
}

// ReleaseActivated says what serves from now on.
type ReleaseActivated struct {
	fact
	inSlot

	Deployment DeploymentID `json:"deployment"` // that brought it
	Release    Release      `json:"release"`    // what serves
	Spec       ServiceSpec  `json:"spec"`       // how it runs
}

// ReleaseQuarantined bars a release that failed by its own fault: it isn't
// deployed again until someone lifts it. A mended configuration is another
// release. What serves is never barred.
type ReleaseQuarantined struct {
	fact
	inSlot

	Release    ReleaseID    `json:"release"`    // that is barred
	Deployment DeploymentID `json:"deployment"` // that failed with it
	Why        string       `json:"why"`        // the title of its diagnosis
}

// QuarantineLifted lets it go again.
type QuarantineLifted struct {
	fact
	inSlot

	Release ReleaseID `json:"release"` // that may be deployed again
}

// ReleaseID names an image digest with a configuration: "rel_" + UUIDv5.
type ReleaseID string // id of the release: "rel_" and a UUIDv5 of service, image and settings

// Release is what can be deployed: an image and the version of the project's
// configuration that it runs with.
type Release struct {
	ID            ReleaseID `json:"id"`
	Build         BuildID   `json:"build"`         // that made the image
	Commit        string    `json:"commit"`        // that the image was made of: full hash, 40 or 64 hex digits
	Image         string    `json:"image"`         // by digest: "ghcr.io/acme/shop@sha256:…"
	ConfigVersion int64     `json:"configVersion"` // version of the project's stream whose settings it runs with
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
	Deployment DeploymentID `json:"deployment"` // that brought it
	Release    Release      `json:"release"`    // what served
	Spec       ServiceSpec  `json:"spec"`       // how it ran
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
