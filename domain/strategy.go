package domain

import (
	"fmt"
	"maps"
	"slices"
)

// StrategyKind names a way from one release to the next.
type StrategyKind string // name of a way from one release to the next

// Rolling replaces pods a few at a time; with one replica, first the new one, then the old one.
const Rolling StrategyKind = "rolling"

// Strategy is a rollout's settings.
type Strategy struct {
	Kind     StrategyKind `json:"kind"`     // "rolling": pods are replaced a few at a time
	MinReady Seconds      `json:"minReady"` // how long a pod must stay ready to count as available
	Deadline Seconds      `json:"deadline"` // from the start to the verdict, at most
}

func (s Strategy) check() *Refusal {
	switch {
	case s.Kind != Rolling:
		return &Refusal{Code: "BAD_SETTING", Field: "strategy", Message: fmt.Sprintf("%q isn't a strategy", s.Kind), Fix: "use rolling"}
	case s.MinReady < 0 || s.MinReady > 3600:
		return &Refusal{Code: "BAD_SETTING", Field: "minReady", Message: "out of range", Fix: "use 0 to 3600 seconds"}
	case s.Deadline < 10 || s.Deadline > 7200:
		return &Refusal{Code: "BAD_SETTING", Field: "deadline", Message: "out of range", Fix: "use 10 to 7200 seconds, for example 300"}
	}
	return nil
}

// StepKind is what a step of a rollout does.
type StepKind string

// The steps that the deployer knows.
const (
	StepApply StepKind = "apply" // the objects of the release, by server-side apply
	StepWatch StepKind = "watch" // until every pod of the release is available
)

// Step is one step of a rollout: safe to repeat, and done when the cluster shows it.
type Step struct {
	Kind           StepKind `json:"kind"`
	MaxSurge       int      `json:"maxSurge,omitempty"`       // pods above the wanted number
	MaxUnavailable int      `json:"maxUnavailable,omitempty"` // pods below it
}

// Steps is the rollout as data, in order. Surge first and nothing unavailable:
// with few replicas a missing one is downtime.
func (s Strategy) Steps(replicas int) []Step {
	return []Step{
		{Kind: StepApply, MaxSurge: max(1, replicas/4), MaxUnavailable: 0},
		{Kind: StepWatch},
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
