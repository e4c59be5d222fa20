package domain

import (
	"fmt"
	"slices"
)

// BuildEvent may stand in a build's stream.
//
//sumtype:decl
type BuildEvent interface {
	Event
	buildEvent()
}

type inBuild struct{}

func (inBuild) buildEvent() {}

// BuildRequested wants an image made of a commit.
type BuildRequested struct {
	fact
	inBuild

	Build         BuildID     `json:"build"`
	Project       ProjectID   `json:"project"`
	ProjectName   string      `json:"projectName"`   // the project's, which never changes
	Push          PushID      `json:"push"`          // that it follows from
	Repository    string      `json:"repository"`    // URL; empty: the built-in git remote of the project
	Ref           string      `json:"ref"`           // that was pushed: "refs/heads/main"
	Branch        string      `json:"branch"`        // the ref without refs/heads/: "main"
	Commit        string      `json:"commit"`        // what is built: full hash, 40 or 64 hex digits
	Services      []ServiceID `json:"services"`      // those that share the image
	Plan          BuildPlan   `json:"plan"`          // how the image is made
	Image         string      `json:"image"`         // repository to push to, without tag: "ghcr.io/acme/shop"
	Tag           string      `json:"tag"`           // that the image gets: the commit's hash
	ConfigVersion int64       `json:"configVersion"` // version of the project's stream whose settings these are
}

// BuildPlan is how the image is made.
type BuildPlan struct {
	RootDir    string            `json:"rootDir"`        // folder within the repository that is built, "." = its top
	Dockerfile string            `json:"dockerfile"`     // path relative to rootDir
	Args       map[string]string `json:"args,omitempty"` // build args by name, of the settings; not secret
}

// BuildStarted gives a worker the work.
type BuildStarted struct {
	fact
	inBuild

	Attempt     AttemptID `json:"attempt"`
	Worker      WorkerID  `json:"worker"`      // that does it
	Incarnation string    `json:"incarnation"` // of the worker's process: a UUIDv7, new at each start
}

// SourceFetched says that exactly the commit lies in the workspace.
type SourceFetched struct {
	fact
	inBuild

	Commit   string       `json:"commit"`     // what was checked out: full hash, 40 or 64 hex digits
	Files    int64        `json:"files"`      // count of the files in the commit
	Bytes    int64        `json:"bytes"`      // size of these files together, in bytes
	Duration Milliseconds `json:"durationMs"` // of the fetch, with tries that failed
}

// BuildArgsFiltered names the build args that went to the builder and those
// that the Dockerfile doesn't declare. Values aren't told.
type BuildArgsFiltered struct {
	fact
	inBuild

	Passed  []string `json:"passed"`  // names, sorted, of those that went to the builder, PipeOps' own among them
	Dropped []string `json:"dropped"` // names, sorted, of those that didn't: no ARG declares them, or they are reserved
}

// LayerCached is a step of the Dockerfile that was there already.
type LayerCached struct {
	fact
	inBuild

	Digest string `json:"digest"` // "sha256:…" of the vertex in BuildKit, not of the layer's blob
	Name   string `json:"name"`   // of the step: "[build 2/5] COPY go.mod .", cut at 2 KiB
}

// LayerBuilt is a step of the Dockerfile that was run.
type LayerBuilt struct {
	fact
	inBuild

	Digest   string       `json:"digest"`     // "sha256:…" of the vertex in BuildKit, not of the layer's blob
	Name     string       `json:"name"`       // of the step: "[build 3/5] RUN go build", cut at 2 KiB
	Duration Milliseconds `json:"durationMs"` // of the step
}

// ImageBuilt says that the image is made, not yet pushed.
type ImageBuilt struct {
	fact
	inBuild

	Steps    int          `json:"steps"`      // count of the Dockerfile's steps that it took
	Cached   int          `json:"cached"`     // count of those that were there already
	Duration Milliseconds `json:"durationMs"` // from the start of the build until the image was made
}

// ImagePushRetried says that the registry refused for now and the push will be tried again.
type ImagePushRetried struct {
	fact
	inBuild

	Try   int          `json:"try"`    // number of the try that failed, from 1
	Error string       `json:"error"`  // message of the builder, cut at 2 KiB
	Wait  Milliseconds `json:"waitMs"` // until the next try
}

// ImagePushed is the one image of the build, by digest. It never changes.
type ImagePushed struct {
	fact
	inBuild

	Reference string   `json:"reference"` // of the image, by digest: "ghcr.io/acme/shop@sha256:…"
	Digest    string   `json:"digest"`    // "sha256:" and 64 hex digits, of the manifest, or of the index where the image has one
	Platforms []string `json:"platforms"` // that the image is for: "linux/amd64"
	SizeBytes int64    `json:"sizeBytes"` // bytes in the registry: manifests, configurations and compressed layers of all platforms
}

// ImageTagged says that the tag names the accepted digest, and won't move.
type ImageTagged struct {
	fact
	inBuild

	// of the image, by tag: "ghcr.io/acme/shop:<commit>", or "…:<commit>-<end of the build's id>" where the commit's tag
	// names another image
	Reference string `json:"reference"`
	Digest    string `json:"digest"` // "sha256:…" of the image, as in ImagePushed
}

// WorkspaceRemoved says that nothing of the attempt is left on the worker.
type WorkspaceRemoved struct {
	fact
	inBuild
}

// BuildSucceeded ends a build with its image.
type BuildSucceeded struct {
	fact
	inBuild

	Digest   string       `json:"digest"`     // "sha256:…" of the image, as in ImagePushed
	Duration Milliseconds `json:"durationMs"` // of the attempt that ended it
}

// BuildFailed ends a build without one.
type BuildFailed struct {
	fact
	inBuild

	Diagnosis Diagnosis `json:"diagnosis"` // what went wrong, and what to do
}

// BuildSuperseded ends a build that waited until a newer one of its kind was asked for.
type BuildSuperseded struct {
	fact
	inBuild

	By BuildID `json:"by"` // the newer build
}

// AttemptLost ends an attempt whose worker is gone, or that could not go on
// there. The work waits for another worker, or fails after MaxAttempts.
type AttemptLost struct {
	Attempt AttemptID `json:"attempt"`           // that is over
	Reason  string    `json:"reason"`            // why, in a sentence for people; the words of a worker are cut at 4 KiB
	Stopped bool      `json:"stopped,omitempty"` // the worker was asked to end, and said so: it doesn't count against MaxAttempts
}

func (AttemptLost) isEvent()         {}
func (AttemptLost) buildEvent()      {}
func (AttemptLost) deploymentEvent() {}

// Phase is where a build or a deployment stands.
type Phase string

// The phases. Waiting: wants a worker. The last five are final.
const (
	Waiting     Phase = "waiting"
	Started     Phase = "running"
	RollingBack Phase = "rolling-back" // deployments only: failed, and being undone
	Succeeded   Phase = "succeeded"
	Failed      Phase = "failed"
	RolledBackP Phase = "rolled-back" // deployments only: failed, and undone
	Superseded  Phase = "superseded"
)

// Final says whether nothing follows.
func (p Phase) Final() bool {
	return p == Succeeded || p == Failed || p == RolledBackP || p == Superseded
}

// Build is one build.
type Build struct {
	Request     BuildRequested
	Phase       Phase // empty: no such build
	Attempts    int
	Incarnation string // of the current attempt's worker
	Running     bool   // an attempt is under way
	Lost        bool   // the current attempt's worker is gone
	Losses      int    // attempts that were lost, those of workers that were asked to end left out
	Sequence    int64  // of the current attempt: items stored
	Pushed      *ImagePushed
	Tagged      bool
}

// Evolve applies an event.
func (b *Build) Evolve(e BuildEvent) {
	switch e := e.(type) {
	case BuildRequested:
		b.Request, b.Phase = e, Waiting
	case BuildStarted:
		b.Attempts++
		b.Phase, b.Running, b.Lost, b.Sequence, b.Incarnation = Started, true, false, 0, e.Incarnation
	case SourceFetched, BuildArgsFiltered, LayerCached, LayerBuilt, ImageBuilt, ImagePushRetried, WorkspaceRemoved:
	case ImagePushed:
		b.Pushed = &e
	case ImageTagged:
		b.Tagged = true
	case AttemptLost:
		b.Phase, b.Running, b.Lost = Waiting, false, true
		if !e.Stopped {
			b.Losses++
		}
	case BuildSucceeded:
		b.Phase, b.Running = Succeeded, false
	case BuildFailed:
		b.Phase, b.Running = Failed, false
	case BuildSuperseded:
		b.Phase, b.Running = Superseded, false
	}
}

// Attempt is the current one's id.
func (b *Build) Attempt() AttemptID { return NewAttemptID(string(b.Request.Build), b.Attempts) }

// BuildContext is what a job and a grant say about a build.
type BuildContext struct {
	Request BuildRequested `json:"request"`
}

// RequestBuilds wants one build per distinct plan of a push's project.
type RequestBuilds struct {
	Push PushReceived
	IDs  []BuildID // at least as many as the project has services
}

// Reads implements Command. The streams of the builds are new.
func (c RequestBuilds) Reads(State) []Stream { return []Stream{ProjectStream(c.Push.Project)} }

// Decide implements Command.
func (c RequestBuilds) Decide(s State) ([]Change, error) {
	p := Of[Project](s, ProjectStream(c.Push.Project))
	var requests []BuildRequested
	byPlan := map[string]int{}
	for _, svc := range p.Services {
		key := svc.Spec.plan()
		if i, ok := byPlan[key]; ok {
			requests[i].Services = append(requests[i].Services, svc.ID)
			continue
		}
		if len(requests) == len(c.IDs) {
			return nil, tooMany("builds", len(c.IDs))
		}
		byPlan[key] = len(requests)
		requests = append(requests, BuildRequested{
			Build: c.IDs[len(requests)], Project: p.ID, ProjectName: p.Name, Push: c.Push.Push,
			Repository: p.Settings.Repository, Ref: c.Push.Ref, Branch: c.Push.Branch, Commit: c.Push.Commit,
			Services: []ServiceID{svc.ID},
			Plan:     BuildPlan{RootDir: svc.Spec.RootDir, Dockerfile: svc.Spec.Dockerfile, Args: svc.Spec.BuildArgs},
			Image:    p.image(svc), Tag: c.Push.Commit, ConfigVersion: p.Version,
		})
	}
	changes := make([]Change, len(requests))
	for i, r := range requests {
		changes[i] = Change{BuildStream(r.Build), r}
	}
	return changes, nil
}

// image is the repository of a service's images: the project's name, and the
// service's where it has another.
func (p *Project) image(s Service) string {
	if s.Name == p.Name {
		return p.Settings.Registry + "/" + p.Name
	}
	return p.Settings.Registry + "/" + p.Name + "/" + s.Name
}

// ClaimBuild gives a waiting build to a worker.
type ClaimBuild struct {
	Build       BuildID
	Worker      WorkerID
	Incarnation string
}

// Reads implements Command.
func (c ClaimBuild) Reads(State) []Stream { return []Stream{BuildStream(c.Build)} }

// Decide implements Command.
func (c ClaimBuild) Decide(s State) ([]Change, error) {
	b := Of[Build](s, BuildStream(c.Build))
	if b.Phase != Waiting {
		return nil, notWaiting("build", string(c.Build), b.Phase)
	}
	return []Change{{BuildStream(c.Build), BuildStarted{
		Attempt: NewAttemptID(string(c.Build), b.Attempts+1), Worker: c.Worker, Incarnation: c.Incarnation,
	}}}, nil
}

func notWaiting(what, id string, phase Phase) *Refusal {
	if phase == "" {
		return &Refusal{Code: "UNKNOWN", Message: "there is no " + what + " " + id}
	}
	return &Refusal{Code: "NOT_WAITING", Message: what + " " + id + " is " + string(phase)}
}

// ReportBuild is one item that a build's worker reports.
type ReportBuild struct {
	Attempt  AttemptID
	Sequence int64
	Item     Event
}

// Reads implements Command.
func (c ReportBuild) Reads(State) []Stream {
	id, _, _ := c.Attempt.Split()
	return []Stream{BuildStream(BuildID(id))}
}

// Decide implements Command.
func (c ReportBuild) Decide(s State) ([]Change, error) {
	stream := c.Reads(s)[0]
	b := Of[Build](s, stream)
	if !b.Running || b.Attempt() != c.Attempt {
		return nil, stale(c.Attempt)
	}
	if done, err := inSequence(b.Sequence, c.Sequence); done || err != nil {
		return nil, err
	}
	switch e := c.Item.(type) {
	case AttemptLost:
		return b.lose(e), nil
	case ImagePushed:
		if b.Pushed != nil {
			return nil, &Refusal{Code: "DIGEST_FIXED", Message: "build " + string(b.Request.Build) + " has the image " + b.Pushed.Digest + " already"}
		}
		if e.Digest == "" || e.Reference != b.Request.Image+"@"+e.Digest {
			return nil, &Refusal{Code: "WRONG_IMAGE", Message: "build " + string(b.Request.Build) + " was to push to " + b.Request.Image + ", by digest"}
		}
	case ImageTagged:
		if b.Pushed == nil || b.Pushed.Digest != e.Digest {
			return nil, &Refusal{Code: "NOT_PUSHED", Message: "only the accepted image may be tagged"}
		}
	case BuildSucceeded:
		if b.Pushed == nil || b.Pushed.Digest != e.Digest || !b.Tagged {
			return nil, &Refusal{Code: "NOT_PUSHED", Message: "a build succeeds with its accepted and tagged image only"}
		}
	}
	return []Change{{stream, c.Item}}, nil
}

func stale(a AttemptID) *Refusal {
	return &Refusal{Code: "STALE", Message: "attempt " + string(a) + " isn't the current one"}
}

// GapError asks a worker to send again what follows Stored.
type GapError struct{ Stored int64 }

func (e *GapError) Error() string {
	return fmt.Sprintf("report doesn't follow item %d, the last one stored", e.Stored)
}

// inSequence says whether an item is known already, or a gap lies before it.
func inSequence(stored, sequence int64) (known bool, err error) {
	if sequence > stored+1 {
		return false, &GapError{Stored: stored}
	}
	return sequence <= stored, nil
}

func (b *Build) lose(lost AttemptLost) []Change {
	stream := BuildStream(b.Request.Build)
	lost.Attempt = b.Attempt()
	changes := []Change{{stream, lost}}
	if !lost.Stopped && b.Losses+1 >= MaxAttempts {
		changes = append(changes, Change{stream, BuildFailed{Diagnosis: exhausted("Build", lost.Reason, "Once the cause is gone, "+PushAgain)}})
	}
	return changes
}

// LoseBuildAttempt ends an attempt whose lease lapsed.
type LoseBuildAttempt struct {
	Attempt AttemptID
	Reason  string
}

// Reads implements Command.
func (c LoseBuildAttempt) Reads(s State) []Stream { return ReportBuild{Attempt: c.Attempt}.Reads(s) }

// Decide implements Command.
func (c LoseBuildAttempt) Decide(s State) ([]Change, error) {
	b := Of[Build](s, c.Reads(s)[0])
	if !b.Running || b.Attempt() != c.Attempt {
		return nil, nil
	}
	return b.lose(AttemptLost{Reason: c.Reason}), nil
}

// FailBuild ends a waiting build that can't be handed out at all.
type FailBuild struct {
	Build     BuildID
	Diagnosis Diagnosis
}

// Reads implements Command.
func (c FailBuild) Reads(State) []Stream { return []Stream{BuildStream(c.Build)} }

// Decide implements Command.
func (c FailBuild) Decide(s State) ([]Change, error) {
	if b := Of[Build](s, BuildStream(c.Build)); b.Phase != Waiting {
		return nil, nil
	}
	return []Change{{BuildStream(c.Build), BuildFailed{Diagnosis: c.Diagnosis}}}, nil
}

// SupersedeBuild ends a waiting build in favour of a newer one.
type SupersedeBuild struct{ Build, By BuildID }

// Reads implements Command.
func (c SupersedeBuild) Reads(State) []Stream { return []Stream{BuildStream(c.Build)} }

// Decide implements Command.
func (c SupersedeBuild) Decide(s State) ([]Change, error) {
	if b := Of[Build](s, BuildStream(c.Build)); b.Phase != Waiting {
		return nil, nil
	}
	return []Change{{BuildStream(c.Build), BuildSuperseded{By: c.By}}}, nil
}

func tooMany(what string, n int) *Refusal {
	return &Refusal{Code: "TOO_MANY", Message: fmt.Sprintf("more than %d %s would follow", n, what), Fix: "split the project"}
}

// releases gives the deployments that a succeeded build leads to: its services
// in every environment that follows its branch.
func (b *Build) releases(p *Project) (out []target) {
	for _, env := range p.Environments {
		branch := env.Branch
		if branch == "" {
			branch = p.Settings.Branch
		}
		if branch != b.Request.Branch {
			continue
		}
		for _, svc := range p.Services {
			if slices.Contains(b.Request.Services, svc.ID) {
				out = append(out, target{env, svc})
			}
		}
	}
	return out
}

type target struct {
	environment Environment
	service     Service
}
