package main

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
)

// simulator makes histories as PipeOps records them, the same for the same seed: pushes, their builds step by step,
// their deployments, some that fail and are rolled back. It is used by one goroutine.
type simulator struct {
	dice     *rand.Rand
	now      time.Time
	versions map[domain.Stream]int64
}

func newSimulator(seed uint64) *simulator {
	return &simulator{
		dice: rand.New(rand.NewPCG(seed, 1)), //nolint:gosec // a benchmark's dice
		now:  time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), versions: map[domain.Stream]int64{},
	}
}

// simulated is a project, and what it runs.
type simulated struct {
	id          domain.ProjectID
	name        string
	service     domain.ServiceID
	environment domain.EnvironmentID
	head        string // commit
	active      *domain.Activation
	pushes      int
	fencing     int64
}

func (s *simulator) uuid() string {
	var b [16]byte
	for i := range b {
		b[i] = byte(s.dice.Uint32())
	}
	b[6], b[8] = b[6]&0x0f|0x70, b[8]&0x3f|0x80 // version 7
	return uuid.UUID(b).String()
}

func (s *simulator) hash(n int) string {
	const digits = "0123456789abcdef"
	text := make([]byte, n)
	for i := range text {
		text[i] = digits[s.dice.IntN(16)]
	}
	return string(text)
}

// said is an event of a stream.
type said struct {
	stream domain.Stream
	event  domain.Event
}

// origin is what all events of an append have in common.
type origin struct {
	project     domain.ProjectID
	correlation string
	attempt     domain.AttemptID
	sequence    int64 // of the first event; 0: no worker reported them
}

// append makes one append of events.
func (s *simulator) append(o origin, events ...said) eventstore.Append {
	s.now = s.now.Add(time.Duration(s.dice.IntN(400)) * time.Millisecond)
	at := map[domain.Stream]int{}
	var a eventstore.Append
	for _, e := range events {
		id := s.uuid()
		body, err := domain.Encode(e.event, id, func(_, _, field, text string) (string, error) {
			return "1." + base64.RawURLEncoding.EncodeToString([]byte(field+"sixteen bytes more"+text)), nil // as long as sealed, by a key that is gone
		})
		if err != nil {
			panic(err)
		}
		i, there := at[e.stream]
		if !there {
			i = len(a.Writes)
			at[e.stream] = i
			a.Writes = append(a.Writes, eventstore.Write{Stream: e.stream, Expected: s.versions[e.stream]})
		}
		a.Writes[i].Events = append(a.Writes[i].Events, eventstore.NewEvent{
			ID: id, Type: domain.TypeOf(e.event), SchemaVersion: domain.SchemaVersion(domain.TypeOf(e.event)), Body: body,
			ProjectID: o.project, OccurredAt: s.now, Actor: "act_5f0c2a7e91", CorrelationID: o.correlation,
			Attempt: o.attempt, AttemptSeq: o.sequence,
		})
		if o.sequence > 0 {
			o.sequence++
		}
		s.versions[e.stream]++
	}
	return a
}

// project begins one.
func (s *simulator) project(name string) (*simulated, eventstore.Append) {
	p := &simulated{
		id: domain.ProjectID("prj_" + s.uuid()), name: name, service: domain.ServiceID("svc_" + s.uuid()),
		environment: domain.EnvironmentID("env_" + s.uuid()),
	}
	stream := domain.ProjectStream(p.id)
	return p, s.append(origin{project: p.id, correlation: "cmd_" + s.uuid()},
		said{domain.ProjectNameStream(name), domain.ProjectNameClaimed{Project: p.id, Name: name}},
		said{stream, domain.ProjectCreated{Project: p.id, Name: name, Settings: domain.ProjectSettings{Branch: "main", Registry: "registry.test"}}},
		said{stream, domain.ServiceAdded{Service: p.service, Name: name, Spec: domain.DefaultSpec()}},
		said{stream, domain.EnvironmentAdded{Environment: p.environment, Name: "production", Branch: "main", Namespace: name + "-production"}},
	)
}

// push gives the appends of a push up to its end, in order; steps is how many steps its Dockerfile has.
func (s *simulator) push(p *simulated, steps int) []eventstore.Append {
	p.pushes++
	push, build := domain.PushID("psh_"+s.uuid()), domain.BuildID("bld_"+s.uuid())
	commit, before := s.hash(40), p.head
	p.head = commit
	const ref = "refs/heads/main"
	o := origin{project: p.id, correlation: string(push)}
	person := func(text string) domain.Personal {
		return domain.Personal{Text: text, Subject: "sub_" + p.name[len(p.name)-1:]}
	}
	image := "registry.test/" + p.name
	appends := []eventstore.Append{
		s.append(
			o, said{domain.PushStream(p.id, "github", fmt.Sprint(p.pushes)), domain.PushReceived{
				Push: push, Project: p.id, Source: "github", Delivery: fmt.Sprint(p.pushes), Ref: ref, Branch: "main", Before: before,
				Commit: commit, Pusher: person("ada"), Author: person("Ada Lovelace"), Message: person("make it faster"), Timestamp: domain.At(s.now),
			}},
			said{domain.RefStream(p.id, ref), domain.RefMoved{Project: p.id, Ref: ref, Before: before, After: commit, Push: push, Body: s.hash(64)}},
		),
		s.append(o, said{domain.BuildStream(build), domain.BuildRequested{
			Build: build, Project: p.id, ProjectName: p.name, Push: push, Ref: ref, Branch: "main", Commit: commit,
			Services: []domain.ServiceID{p.service}, Plan: domain.BuildPlan{RootDir: ".", Dockerfile: "Dockerfile"}, Image: image, Tag: commit, ConfigVersion: 3,
		}}),
	}
	appends = append(appends, s.build(p, o, build, commit, image, steps)...)
	return append(appends, s.deploy(p, o, build, push, commit, image)...)
}

// build gives what a runner reports, ten events at a time.
func (s *simulator) build(p *simulated, o origin, build domain.BuildID, commit, image string, steps int) []eventstore.Append {
	stream := domain.BuildStream(build)
	attempt := domain.AttemptID(string(build) + ".1")
	appends := []eventstore.Append{s.append(o, said{stream, domain.BuildStarted{
		Attempt: attempt, Worker: "wrk_01", Incarnation: "inc_" + s.hash(8),
	}})}
	events := []domain.Event{
		domain.SourceFetched{Commit: commit, Files: int64(s.dice.IntN(5000)), Bytes: int64(s.dice.IntN(1 << 24)), Duration: 800},
		domain.BuildArgsFiltered{Passed: []string{"PIPEOPS_GIT_COMMIT"}, Dropped: []string{"PIPEOPS_BUILD_SHA"}},
	}
	for i := range steps {
		name := fmt.Sprintf("[build %d/%d] RUN --mount=type=cache,target=/root/.cache make target-%d", i+1, steps, s.dice.IntN(1000))
		digest := "sha256:" + s.hash(64)
		if s.dice.IntN(3) == 0 {
			events = append(events, domain.LayerCached{Digest: digest, Name: name})
		} else {
			events = append(events, domain.LayerBuilt{Digest: digest, Name: name, Duration: domain.Milliseconds(s.dice.IntN(60_000))})
		}
	}
	digest := "sha256:" + commit + commit[:24]
	events = append(
		events,
		domain.ImageBuilt{Steps: steps, Cached: steps / 3, Duration: 70_000},
		domain.ImagePushed{Reference: image + "@" + digest, Digest: digest, Platforms: []string{"linux/amd64"}, SizeBytes: 41 << 20},
		domain.ImageTagged{Reference: image + ":" + commit, Digest: digest},
		domain.WorkspaceRemoved{},
		domain.BuildSucceeded{Digest: digest, Duration: 83_000},
	)
	o.attempt = attempt
	for first := 0; first < len(events); first += 10 {
		o.sequence = int64(first + 1)
		var report []said
		for _, e := range events[first:min(first+10, len(events))] {
			report = append(report, said{stream, e})
		}
		appends = append(appends, s.append(o, report...))
	}
	return appends
}

// deploy gives a deployment; one in eight fails and is rolled back, if there is something to go back to.
func (s *simulator) deploy(p *simulated, o origin, build domain.BuildID, push domain.PushID, commit, image string) []eventstore.Append {
	id := domain.DeploymentID("dep_" + s.uuid())
	stream, slot := domain.DeploymentStream(id), domain.SlotStream(p.environment, p.service)
	attempt := domain.AttemptID(string(id) + ".1")
	digest := "sha256:" + commit + commit[:24]
	spec := domain.DefaultSpec()
	release := domain.NewRelease(p.service, build, commit, image+"@"+digest, 3, spec)
	p.fencing++
	appends := []eventstore.Append{
		s.append(
			o, said{stream, domain.DeploymentRequested{
				Deployment: id, Project: p.id, ProjectName: p.name, Environment: p.environment, EnvironmentName: "production",
				Namespace: p.name + "-production", Service: p.service, ServiceName: p.name, Release: release, Spec: spec, Reason: "push",
			}}, said{slot, domain.DeploymentAdmitted{Deployment: id, Push: push}},
		),
		s.append(
			o, said{stream, domain.DeploymentStarted{
				Attempt: attempt, Worker: "wrk_02", Incarnation: "inc_1", FencingEpoch: p.fencing,
				Deadline: domain.At(s.now.Add(5 * time.Minute)), Previous: p.active,
			}}, said{slot, domain.DeploymentClaimed{Deployment: id, Attempt: attempt, FencingEpoch: p.fencing}},
		),
	}
	o.attempt, o.sequence = attempt, 1
	progress := []said{{stream, domain.ManifestsApplied{Namespace: p.name + "-production", Objects: []string{"Namespace/" + p.name, "Deployment/" + p.name, "Service/" + p.name}, Changed: 1}}}
	for i := range 8 {
		progress = append(progress, said{stream, domain.RolloutProgressed{Wanted: 4, Updated: min(4, i+1), Ready: i / 2, Available: i / 2, Message: "waiting for pods"}})
	}
	appends = append(appends, s.append(o, progress...))
	o.sequence = int64(len(progress) + 1)
	if p.active != nil && s.dice.IntN(8) == 0 {
		return append(appends, s.append(o,
			said{stream, domain.DeploymentFailed{Diagnosis: domain.Diagnosis{
				Code: "PROGRAM_EXITED", Title: "Deployment failed: the program ends", Step: "rollout", Error: "container app ended 4 times",
				Reason: "The program ends with an error each time it is started", Fixes: []string{"Look at its output", "Mend the program and push again"},
			}}},
			said{slot, domain.ReleaseQuarantined{Release: release.ID, Deployment: id, Why: "Deployment failed: the program ends"}},
			said{stream, domain.RollbackStarted{To: *p.active}},
			said{stream, domain.RolledBack{To: p.active.Release.ID, Available: 4, Duration: 3000}},
			said{slot, domain.DeploymentReleased{Deployment: id}},
		))
	}
	p.active = &domain.Activation{Deployment: id, Release: release, Spec: spec}
	return append(appends, s.append(o,
		said{stream, domain.DeploymentSucceeded{Digest: digest, Available: 4, Address: p.name + "." + p.name + "-production.svc:80", Duration: 21_000}},
		said{slot, domain.ReleaseActivated{Deployment: id, Release: release, Spec: spec}},
		said{slot, domain.DeploymentReleased{Deployment: id}},
	))
}
