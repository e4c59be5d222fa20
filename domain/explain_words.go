package domain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// words is what an event says in an explanation; empty when it says nothing there.
func (t *tale) words(h Happened) string {
	switch e := h.Event.(type) {
	case PushReceived:
		return fmt.Sprintf("push of %s to %s%s (%s, delivery %s)", shortCommit(e.Commit), e.Branch, quotedLine(e.Message), e.Source, e.Delivery)
	case PushIgnored:
		return fmt.Sprintf("push of %s ignored: %s (%s, delivery %s)", shortCommit(e.Commit), e.Reason, e.Source, e.Delivery)
	case ReleaseActivated:
		return fmt.Sprintf("%s serves, with configuration %d", shortCommit(e.Release.Commit), e.Release.ConfigVersion)
	case ReleaseQuarantined:
		return "release quarantined: " + e.Why
	case QuarantineLifted:
		return "quarantine of the release lifted"
	case AttemptLost:
		_, n, _ := e.Attempt.Split()
		if e.Stopped {
			return fmt.Sprintf("attempt %d given back, its worker ends: %s", n, e.Reason)
		}
		return fmt.Sprintf("attempt %d lost its worker: %s", n, e.Reason)
	case BuildEvent:
		return t.wordsOfBuild(e)
	case DeploymentEvent:
		return t.wordsOfDeployment(e)
	case ProjectEvent:
		if change := t.change(h); change != "" {
			return fmt.Sprintf("configuration %d: %s", h.Recorded.Version, change)
		}
	}
	return ""
}

func (t *tale) wordsOfBuild(e BuildEvent) string {
	switch e := e.(type) {
	case BuildRequested:
		return fmt.Sprintf("build of %s asked for, with configuration %d", shortCommit(e.Commit), e.ConfigVersion)
	case BuildStarted:
		return "build started" + attempt(e.Attempt)
	case BuildSucceeded:
		return fmt.Sprintf("build succeeded: %s (%s)", shortDigest(e.Digest), took(e.Duration))
	case BuildFailed:
		return "build failed: " + e.Diagnosis.Title
	case BuildSuperseded:
		text := "build dropped before it began: there is a newer one, " + string(e.By)
		if by := t.build(e.By).Request; by.Commit != "" {
			text = "build dropped before it began: " + shortCommit(by.Commit) + " is newer"
		}
		return text
	case SourceFetched, BuildArgsFiltered, LayerCached, LayerBuilt, ImageBuilt, ImagePushRetried, ImagePushed, ImageTagged,
		WorkspaceRemoved, AttemptLost:
	}
	return ""
}

func (t *tale) wordsOfDeployment(e DeploymentEvent) string {
	switch e := e.(type) {
	case DeploymentRequested:
		what := fmt.Sprintf("%s to %s asked for, with configuration %d", shortCommit(e.Release.Commit), e.EnvironmentName, e.Release.ConfigVersion)
		switch e.Reason {
		case "manual":
			return "deployment by hand of " + what
		case "rollback":
			return fmt.Sprintf("rollback by hand to %s asked for, with configuration %d that it ran with", shortCommit(e.Release.Commit), e.Release.ConfigVersion)
		}
		return "deployment of " + what
	case DeploymentQueued:
		return "waits for " + string(e.Behind) + ", which has the slot"
	case DeploymentStarted:
		return "rollout started" + attempt(e.Attempt)
	case DeploymentSucceeded:
		return fmt.Sprintf("rollout succeeded: %s available at %s (%s)", pods(e.Available), e.Address, took(e.Duration))
	case DeploymentFailed:
		return "rollout failed: " + e.Diagnosis.Title
	case RollbackStarted:
		return "goes back by itself to " + shortCommit(e.To.Release.Commit)
	case RolledBack:
		return fmt.Sprintf("rolled back: the release before serves alone again, %s available (%s)", pods(e.Available), took(e.Duration))
	case RollbackFailed:
		return "rollback failed: " + e.Diagnosis.Title
	case DeploymentSuperseded:
		text := "deployment dropped before it began: there is a newer one, " + string(e.By)
		if by := t.deployment(e.By).Request.Release; by.Commit != "" {
			text = "deployment dropped before it began: " + shortCommit(by.Commit) + " is newer"
		}
		return text
	case ManifestsApplied, RolloutProgressed, AttemptLost:
	}
	return ""
}

// change says what a project's event changed for this service here; empty when nothing.
func (t *tale) change(h Happened) string {
	switch e := h.Event.(type) {
	case ProjectCreated:
		return "project " + e.Name + " created"
	case ProjectConfigured:
		return "settings of the project changed" + t.differences(h)
	case ServiceAdded:
		if e.Service == t.service {
			return "service " + e.Name + " added"
		}
	case ServiceConfigured:
		if e.Service == t.service {
			return "service " + t.serviceName() + " changed" + t.differences(h)
		}
	case EnvironmentAdded:
		if e.Environment == t.environment {
			return "environment " + e.Name + " added"
		}
	case WebhookSecretRotated, SecretSet:
	}
	return ""
}

// differences names the settings that an event changed, ": port, replicas".
func (t *tale) differences(h Happened) string {
	var before any
	for _, earlier := range t.told[h.Recorded.Stream] {
		if earlier.Recorded.Version >= h.Recorded.Version {
			break
		}
		if s := settingsOf(earlier.Event, t.service); s != nil && sameKind(s, settingsOf(h.Event, t.service)) {
			before = s
		}
	}
	names := changedFields(before, settingsOf(h.Event, t.service))
	if len(names) == 0 {
		return ""
	}
	return ": " + strings.Join(names, ", ")
}

func settingsOf(e Event, service ServiceID) any {
	switch e := e.(type) {
	case ProjectCreated:
		return e.Settings
	case ProjectConfigured:
		return e.Settings
	case ServiceAdded:
		if e.Service == service {
			return e.Spec
		}
	case ServiceConfigured:
		if e.Service == service {
			return e.Spec
		}
	}
	return nil
}

func sameKind(a, b any) bool {
	_, x := a.(ServiceSpec)
	_, y := b.(ServiceSpec)
	return x == y
}

// changedFields names the fields whose JSON differs.
func changedFields(before, after any) (names []string) {
	was, is := fields(before), fields(after)
	for name, value := range is {
		if !bytes.Equal(was[name], value) {
			names = append(names, name)
		}
	}
	for name := range was {
		if _, still := is[name]; !still {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func fields(v any) (out map[string]json.RawMessage) {
	if b, err := json.Marshal(v); err == nil {
		_ = json.Unmarshal(b, &out) // nil has none
	}
	return out
}

// who says in words whose doing an event was.
func (t *tale) who(h Happened) string {
	actor := h.Recorded.Actor
	if e, ok := h.Event.(PushReceived); ok {
		switch {
		case e.Pusher.Text != "":
			return e.Pusher.Text
		case e.Pusher != (Personal{}):
			return "(erased)"
		}
	}
	name, rest, _ := strings.Cut(actor, ":")
	switch {
	case actor == "policy":
		return "policy" + t.policy(h.Event)
	case actor == "scheduler":
		return "scheduler" + t.policy(h.Event)
	case name == "token":
		return "token " + shortID(rest)
	case strings.HasPrefix(actor, "wrk_") && h.Recorded.Stream.Kind() == "build":
		return "builder " + shortID(actor)
	case strings.HasPrefix(actor, "wrk_"):
		return "deployer " + shortID(actor)
	}
	return shortID(actor)
}

// policy is the rule by which an event was decided.
func (t *tale) policy(e Event) string {
	switch e := e.(type) {
	case BuildRequested:
		return ": pushes to " + e.Branch + " are built"
	case DeploymentRequested:
		return ": " + e.EnvironmentName + " follows " + t.build(e.Release.Build).Request.Branch
	case DeploymentSuperseded, BuildSuperseded:
		return ": only the newest waits"
	case DeploymentFailed:
		return ": a quarantined release isn't deployed"
	case AttemptLost:
		return ": its lease ran out"
	}
	return ""
}

func quotedLine(p Personal) string {
	line, _, _ := strings.Cut(p.Text, "\n")
	switch {
	case line == "" && p != (Personal{}):
		return ", (erased)"
	case line == "":
		return ""
	}
	const most = 60
	if runes := []rune(line); len(runes) > most {
		line = string(runes[:most-1]) + "…"
	}
	return fmt.Sprintf(", %q", line)
}

func attempt(a AttemptID) string {
	_, n, _ := a.Split()
	return fmt.Sprintf(", attempt %d", n)
}

func shortCommit(commit string) string { return commit[:min(7, len(commit))] }

func shortDigest(digest string) string { return digest[:min(len("sha256:")+12, len(digest))] }

// shortID cuts the middle out of a long id: its end tells it from others.
func shortID(id string) string {
	prefix, rest, ok := strings.Cut(id, "_")
	if !ok {
		prefix, rest = "", id
	} else {
		prefix += "_"
	}
	if len(rest) <= 12 {
		return id
	}
	return prefix + "…" + rest[len(rest)-6:]
}

func pods(n int) string {
	if n == 1 {
		return "1 pod"
	}
	return fmt.Sprintf("%d pods", n)
}

func took(d Milliseconds) string {
	t := time.Duration(d) * time.Millisecond
	if t >= time.Minute {
		return t.Round(time.Second).String()
	}
	return fmt.Sprintf("%.1f s", t.Seconds())
}
