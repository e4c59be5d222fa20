package domain

import (
	"cmp"
	"slices"
)

// beside tells what doesn't serve: every push that isn't among the steps, with what it led to, and every deployment
// that isn't told of by then.
func (t *tale) beside(serving []Link) []Aside {
	told := map[string]bool{}
	note := func(steps []Link) {
		for _, s := range steps {
			told[s.Subject] = true
		}
	}
	note(serving)
	type placed struct {
		aside    Aside
		position int64
	}
	var all []placed
	for _, id := range t.order {
		push := t.pushes[id]
		if a, ok := t.asidePush(id, push); ok && !told[string(id)] {
			note(a.Steps)
			all = append(all, placed{a, push.Recorded.Cursor.Position})
		}
	}
	for _, stream := range t.streams {
		d, ok := t.state[stream].(*Deployment)
		if !ok || told[string(d.Request.Deployment)] || !t.here(d) {
			continue
		}
		a := t.asideDeployment(d)
		a.Subject = string(d.Request.Deployment)
		all = append(all, placed{a, t.told[stream][0].Recorded.Cursor.Position})
	}
	slices.SortFunc(all, func(a, b placed) int { return cmp.Compare(b.position, a.position) })
	out := make([]Aside, len(all))
	for i, p := range all {
		p.aside.Steps = newestFirst(p.aside.Steps)
		out[i] = p.aside
	}
	return out
}

// here says whether a deployment goes through this slot.
func (t *tale) here(d *Deployment) bool { return d.Slot() == t.slot }

// asidePush tells of a push by its newest deployment here, else by its build; false when it never was for here.
func (t *tale) asidePush(id PushID, push Happened) (Aside, bool) {
	a := Aside{Subject: string(id), Steps: []Link{t.step(push, "")}}
	var build *Build
	var deployment *Deployment
	for _, stream := range t.streams {
		switch s := t.state[stream].(type) {
		case *Build:
			if s.Request.Push == id && slices.Contains(s.Request.Services, t.service) {
				build = s
			}
		case *Deployment:
			if t.here(s) && s.Request.Reason == "push" && t.build(s.Request.Release.Build).Request.Push == id {
				deployment = s
			}
		}
	}
	switch e := push.Event.(type) {
	case PushIgnored:
		a.Commit, a.Outcome, a.Text = e.Commit, WasIgnored, "ignored: "+e.Reason
		if e.Diagnosis != nil {
			a.Text = e.Diagnosis.Title
		}
		return a, true
	case PushReceived:
		a.Commit, a.Outcome, a.Text = e.Commit, UnderWay, "its build isn't asked for yet"
	}
	if build != nil {
		a.Steps = append(a.Steps, t.life(BuildStream(build.Request.Build), push.Recorded.ID)...)
		t.judgeBuild(&a, build)
	}
	if deployment != nil {
		d := t.asideDeployment(deployment)
		a.Outcome, a.Text, a.By = d.Outcome, d.Text, d.By
		a.Steps = append(a.Steps, d.Steps...)
	}
	return a, build != nil || deployment != nil || t.follows(push)
}

// follows says whether the environment takes pushes of that branch by itself.
func (t *tale) follows(push Happened) bool {
	received, ok := push.Event.(PushReceived)
	e, known := t.project().Environment(string(t.environment))
	branch := e.Branch
	if branch == "" {
		branch = t.project().Settings.Branch
	}
	return ok && known && received.Branch == branch
}

func (t *tale) judgeBuild(a *Aside, b *Build) {
	events := t.told[BuildStream(b.Request.Build)]
	switch last := events[len(events)-1].Event.(type) {
	case BuildSuperseded:
		a.Outcome, a.By = WasSuperseded, string(last.By)
		a.Text = "superseded: a newer push took the place of its build, which still waited"
		if by := t.build(last.By).Request; by.Commit != "" {
			a.Text = "superseded: " + shortCommit(by.Commit) + " was pushed while its build still waited"
		}
	case BuildFailed:
		a.Outcome, a.Text = HasFailed, last.Diagnosis.Title
	case BuildSucceeded:
		a.Outcome, a.Text = NotDeployed, "built, and not deployed here"
	default:
		a.Outcome, a.Text = UnderWay, "its build waits for a worker"
		if b.Running {
			a.Text = "it is being built"
		}
	}
}

// asideDeployment tells why a deployment doesn't serve.
func (t *tale) asideDeployment(d *Deployment) Aside {
	stream := DeploymentStream(d.Request.Deployment)
	a := Aside{Commit: d.Request.Release.Commit, Steps: t.life(stream, lastOf(t.lifeOf(BuildStream(d.Request.Release.Build))))}
	for _, h := range t.barred {
		if e, ok := h.Event.(ReleaseQuarantined); ok && e.Deployment == d.Request.Deployment {
			a.Steps = append(a.Steps, t.step(h, failureOf(t.told[stream])))
		}
	}
	a.Steps = append(a.Steps, t.lifted(d.Request)...)
	var why *Diagnosis
	for _, h := range t.told[stream] {
		switch e := h.Event.(type) {
		case DeploymentFailed:
			why = &e.Diagnosis
		case DeploymentSuperseded:
			a.By = string(e.By)
		}
	}
	switch d.Phase {
	case Superseded:
		a.Outcome, a.Text = WasSuperseded, "superseded: a newer deployment took its place before it began"
		if by := t.deployment(DeploymentID(a.By)).Request.Release; by.Commit != "" {
			a.Text = "superseded: " + shortCommit(by.Commit) + " was to be deployed before this had begun"
		}
	case RolledBackP:
		a.Outcome, a.Text = WasRolledBack, "rolled back by itself"
	case Failed:
		a.Outcome, a.Text = HasFailed, "failed"
	case Succeeded:
		t.replaced(&a, d)
	case Waiting:
		a.Outcome, a.Text = UnderWay, "it waits to be rolled out"
	case Started:
		a.Outcome, a.Text = UnderWay, "it is being rolled out"
	case RollingBack:
		a.Outcome, a.Text = UnderWay, "it is being rolled back"
	}
	if why != nil {
		a.Text += ": " + why.Title
	}
	return a
}

func failureOf(events []Happened) string {
	for _, h := range events {
		if _, failed := h.Event.(DeploymentFailed); failed {
			return h.Recorded.ID
		}
	}
	return ""
}

// replaced tells of a deployment that went live what came in its place.
func (t *tale) replaced(a *Aside, d *Deployment) {
	a.Outcome, a.Text = WasReplaced, "it served"
	for i, h := range t.activations {
		if h.Event.(ReleaseActivated).Deployment != d.Request.Deployment {
			continue
		}
		a.Steps = append(a.Steps, t.step(h, lastOf(t.lifeOf(DeploymentStream(d.Request.Deployment)))))
		if i+1 == len(t.activations) {
			continue
		}
		next := t.activations[i+1].Event.(ReleaseActivated)
		a.By = string(next.Deployment)
		switch by := t.deployment(next.Deployment).Request; by.Reason {
		case "rollback":
			a.Text = "it served until it was rolled back by hand to " + shortCommit(next.Release.Commit)
			if asked := t.told[DeploymentStream(next.Deployment)]; len(asked) > 0 {
				a.Text += ", by " + t.who(asked[0])
			}
		default:
			a.Text = "it served until " + shortCommit(next.Release.Commit) + " took its place"
		}
	}
}
