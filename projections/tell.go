package projections

import (
	"fmt"
	"strings"
	"time"

	"github.com/pipeops/pipeops/domain"
)

// told is what an event says to a person.
type told struct {
	id       string // empty: an entry of its own; else later states replace earlier ones
	subject  string
	severity Severity
	text     string
}

// tell puts an event into words; false when it says nothing that a person would miss.
func tell(rec domain.Recorded, e domain.Event, p Push) (told, bool) {
	t := told{subject: subject(rec.Stream), severity: Info}
	switch e := e.(type) {
	case domain.PushReceived:
		t.subject = string(p.ID)
		t.text = fmt.Sprintf("Push of %s to %s received", short(e.Commit), e.Branch)
		if e.Forced {
			t.text += " (forced)"
		}
	case domain.PushIgnored:
		t.subject, t.text = string(p.ID), ignoredText(e)
		if e.Diagnosis != nil {
			t.severity = Warning
		}
	default:
		if rec.Stream.Kind() == "build" {
			t.tellBuild(e)
		} else {
			t.tellDeployment(rec, e, p)
		}
	}
	return t, t.text != ""
}

func ignoredText(e domain.PushIgnored) string {
	why := map[string]string{
		"ping": "it is a ping", "not-a-push": "it is no push but " + e.Kind, "tag": "it is a tag",
		"branch-deleted": "the branch was deleted", "other-branch": "no environment follows " + strings.TrimPrefix(e.Ref, "refs/heads/"),
		"duplicate": "it was here already", "not-configured": "the project isn't fully configured",
	}
	reason, ok := why[e.Reason]
	if !ok {
		reason = e.Reason
	}
	if e.Diagnosis != nil {
		reason = e.Diagnosis.Error
	}
	return "Ignored: " + reason
}

func (t *told) tellBuild(e domain.Event) {
	switch e := e.(type) {
	case domain.BuildRequested:
		t.text = fmt.Sprintf("Build of %s requested (%s)", e.Image, short(e.Commit))
	case domain.BuildStarted:
		t.text = "Build started" + again(e.Attempt)
	case domain.SourceFetched:
		t.text = fmt.Sprintf("Source fetched: %s, %s", count(e.Files, "file"), bytesText(e.Bytes))
	case domain.BuildArgsFiltered:
		if len(e.Dropped) > 0 {
			t.severity = Warning
			t.text = "Build args that the Dockerfile doesn't declare were left out: " + strings.Join(e.Dropped, ", ")
		}
	case domain.LayerCached:
		t.text = "Cached: " + e.Name
	case domain.LayerBuilt:
		t.text = fmt.Sprintf("Built: %s (%s)", e.Name, took(e.Duration))
	case domain.ImageBuilt:
		t.text = fmt.Sprintf("Image built: %s, %d cached (%s)", count(int64(e.Steps), "step"), e.Cached, took(e.Duration))
	case domain.ImagePushRetried:
		t.severity = Warning
		t.text = fmt.Sprintf("Push to the registry failed (try %d), again in %s: %s", e.Try, took(e.Wait), e.Error)
	case domain.ImagePushed:
		t.text = fmt.Sprintf("Image pushed: %s, %s", e.Reference, bytesText(e.SizeBytes))
	case domain.AttemptLost:
		t.lost("The build", e)
	case domain.BuildSucceeded:
		t.severity = Success
		t.text = fmt.Sprintf("Build succeeded (%s)", took(e.Duration))
	case domain.BuildFailed:
		t.severity, t.text = Failure, e.Diagnosis.Title
	case domain.BuildSuperseded:
		t.text = "Build dropped: a newer push took its place"
	}
}

func (t *told) tellDeployment(rec domain.Recorded, e domain.Event, p Push) {
	name := "Deployment"
	if d := p.deployment(t.subject); d != nil {
		name = d.Service + " to " + d.Environment
	}
	switch e := e.(type) {
	case domain.DeploymentRequested:
		t.text = fmt.Sprintf("Deployment of %s to %s requested%s", e.ServiceName, e.EnvironmentName, byHand(e.Reason))
	case domain.DeploymentQueued:
		t.text = name + ": waits for the deployment before it"
	case domain.DeploymentStarted:
		t.text = name + ": rollout started" + again(e.Attempt)
		if d := p.deployment(t.subject); d != nil && d.Undoing {
			t.text = name + ": rollback started" + again(e.Attempt)
		}
	case domain.ManifestsApplied:
		t.text = fmt.Sprintf("%s: the cluster accepted %s, %d changed", name, count(int64(len(e.Objects)), "object"), e.Changed)
	case domain.RolloutProgressed:
		t.id = fmt.Sprintf("%s/progress/%s", t.subject, rec.Attempt)
		t.text = fmt.Sprintf("%s: %d of %s available", name, e.Available, count(int64(e.Wanted), "pod"))
		if e.Message != "" {
			t.text += ", " + e.Message
		}
	case domain.AttemptLost:
		t.lost(name+": the rollout", e)
	case domain.DeploymentSucceeded:
		t.severity = Success
		t.text = fmt.Sprintf("%s: live at %s (%s)", name, e.Address, took(e.Duration))
	case domain.DeploymentFailed:
		t.severity, t.text = Failure, name+": "+e.Diagnosis.Title
	case domain.RollbackStarted:
		t.severity = Warning
		t.text = fmt.Sprintf("%s: going back to %s", name, short(e.To.Release.Commit))
	case domain.RolledBack:
		t.severity = Warning
		t.text = fmt.Sprintf("%s: rolled back, the release before serves (%s)", name, took(e.Duration))
	case domain.RollbackFailed:
		t.severity, t.text = Failure, name+": "+e.Diagnosis.Title
	case domain.DeploymentSuperseded:
		t.text = name + ": dropped, a newer deployment took its place"
	}
}

func (t *told) lost(what string, e domain.AttemptLost) {
	t.severity = Warning
	t.text = fmt.Sprintf("%s lost its worker: %s", what, e.Reason)
}

// again says which attempt it is, from the second on.
func again(a domain.AttemptID) string {
	if _, n, err := a.Split(); err == nil && n > 1 {
		return fmt.Sprintf(" (attempt %d)", n)
	}
	return ""
}

func byHand(reason string) string {
	switch reason {
	case "manual":
		return " by hand"
	case "rollback":
		return " by hand, to go back"
	}
	return ""
}

func short(commit string) string { return commit[:min(7, len(commit))] }

func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func took(d domain.Milliseconds) string {
	t := time.Duration(d) * time.Millisecond
	if t >= time.Minute {
		return t.Round(time.Second).String()
	}
	return fmt.Sprintf("%.1f s", t.Seconds())
}

func bytesText(n int64) string {
	const unit = 1024
	switch {
	case n < unit:
		return count(n, "byte")
	case n < unit*unit:
		return fmt.Sprintf("%.1f KiB", float64(n)/unit)
	case n < unit*unit*unit:
		return fmt.Sprintf("%.1f MiB", float64(n)/unit/unit)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/unit/unit/unit)
}
