package domain

import (
	"slices"
	"strings"
)

// PushEvent may stand in a push's stream.
//
//sumtype:decl
type PushEvent interface {
	Event
	pushEvent()
}

type inPush struct{}

func (inPush) pushEvent() {}

// PushReceived is a push that shall be built. The raw delivery is its attachment.
type PushReceived struct {
	fact
	inPush

	Push     PushID    `json:"push"`
	Project  ProjectID `json:"project"`
	Source   string    `json:"source"`   // who told of it: "github", "git" (the built-in remote)
	Delivery string    `json:"delivery"` // the source's own id of it, or where it has none one made of what was delivered
	Ref      string    `json:"ref"`      // full name of what was pushed: "refs/heads/main"
	Branch   string    `json:"branch"`   // the ref without refs/heads/: "main"
	// commit that the branch stood at: full hash, 40 or 64 hex digits; empty for a new branch
	Before    string   `json:"before"`
	Commit    string   `json:"commit"`               // commit that it stands at now: full hash, 40 or 64 hex digits
	Pusher    Personal `json:"pusher" pii:"pusher"`  // who pushed, as the source names them
	Author    Personal `json:"author" pii:"author"`  // name and e-mail of who wrote the commit; empty where the source tells none
	Message   Personal `json:"message" pii:"author"` // the commit's, cut at 8 KiB; empty where the source tells none
	Forced    bool     `json:"forced,omitempty"`     // the branch was rewritten: the commit before is no ancestor
	Timestamp Time     `json:"timestamp,omitzero"`   // of the commit, as it says itself
}

// PushIgnored is a delivery that leads to nothing, and why.
type PushIgnored struct {
	fact
	inPush

	Push     PushID    `json:"push"`
	Project  ProjectID `json:"project"`
	Source   string    `json:"source"`   // who told of it: "github", "git" (the built-in remote)
	Delivery string    `json:"delivery"` // the source's own id of it, or where it has none one made of what was delivered
	// "push", "ping", "issues", …: what the source called it; "unparsable" where it can't be read
	Kind string `json:"kind"`
	Ref  string `json:"ref,omitempty"` // full name of what was pushed: "refs/heads/main"
	// commit that the ref stands at now: full hash, 40 or 64 hex digits; zeros: the ref was deleted
	Commit string `json:"commit,omitempty"`
	// stable: "ping", "tag", "branch-deleted", "other-branch", "duplicate", "overtaken", "not-configured", "not-a-push"
	Reason    string     `json:"reason"`
	Diagnosis *Diagnosis `json:"diagnosis,omitempty"` // why, and what to do, where something can be done
}

// Push is one delivery.
type Push struct{ Received bool }

// Evolve applies an event.
func (p *Push) Evolve(e PushEvent) {
	switch e.(type) {
	case PushReceived, PushIgnored:
		p.Received = true
	}
}

// RefEvent may stand in a ref's stream.
//
//sumtype:decl
type RefEvent interface {
	Event
	refEvent()
}

// RefMoved says where a ref stands since a push.
type RefMoved struct {
	Project ProjectID `json:"project"`
	Ref     string    `json:"ref"`    // full name: "refs/heads/main"
	Before  string    `json:"before"` // commit that the push moved it from: full hash, 40 or 64 hex digits; empty for a new branch
	After   string    `json:"after"`  // commit that it stands at now: full hash, 40 or 64 hex digits
	Push    PushID    `json:"push"`   // that moved it
	// MAC of the raw delivery, 64 hex digits, so that a replay under another id is known, and a guess at what it says
	// isn't
	Body string `json:"body"`
}

func (RefMoved) isEvent()  {}
func (RefMoved) refEvent() {}

// keptCommits is how many commits a ref remembers to know late deliveries by.
const keptCommits = 200

// Ref is where a ref stands and which deliveries moved it.
type Ref struct {
	Head   string
	Bodies map[string]bool
	order  map[PushID]int // which push came when, from 1
	left   []string       // commits that it stood at and moved on from, oldest first
	missed []string       // those of them whose own push hasn't come
}

// overtaken says whether a push from before to after happened before the one that is the head: deliveries are late
// when the host had to send them again. What moves the head itself is never late. Of three pushes missed in a row,
// the middle one alone can't be told from a new one.
func (r *Ref) overtaken(before, after string) bool {
	return before != r.Head && (slices.Contains(r.missed, after) || before != "" && slices.Contains(r.left, before))
}

func (r *Ref) leave(commit string) {
	if commit == "" {
		return
	}
	if r.left = append(r.left, commit); len(r.left) > keptCommits {
		r.left = slices.Clone(r.left[1:])
	}
}

// newer says whether push a came after push b; false when the ref knows neither or one only.
func (r *Ref) newer(a, b PushID) bool { return r.order[b] > 0 && r.order[a] > r.order[b] }

// Evolve applies an event.
func (r *Ref) Evolve(e RefEvent) {
	switch e := e.(type) {
	case RefMoved:
		r.leave(r.Head)
		if e.Before != r.Head && e.Before != "" {
			r.leave(e.Before)
			if r.missed = append(r.missed, e.Before); len(r.missed) > keptCommits {
				r.missed = slices.Clone(r.missed[1:])
			}
		}
		r.Head = e.After
		if r.Bodies == nil {
			r.Bodies, r.order = map[string]bool{}, map[PushID]int{}
		}
		r.Bodies[e.Body] = true
		r.order[e.Push] = len(r.order) + 1
	}
}

// ReceivePush records a verified delivery of a source, whatever it says.
type ReceivePush struct {
	Push     PushID
	Project  ProjectID
	Source   string
	Delivery string
	Kind     string // "push" is a push; all else is ignored under that name
	Ref      string
	Before   string
	Commit   string // all zeros: the ref was deleted
	Body     string // MAC of the raw delivery, see seal.Keyring.Fingerprint
	Forced   bool
	Time     Time
	Pusher   Personal
	Author   Personal
	Message  Personal
}

// Reads implements Command.
func (c ReceivePush) Reads(State) []Stream {
	return []Stream{c.stream(), ProjectStream(c.Project), RefStream(c.Project, c.Ref)}
}

func (c ReceivePush) stream() Stream { return PushStream(c.Project, c.Source, c.Delivery) }

// Decide implements Command.
func (c ReceivePush) Decide(s State) ([]Change, error) {
	if Of[Push](s, c.stream()).Received {
		return nil, nil
	}
	p := Of[Project](s, ProjectStream(c.Project))
	if p.ID == "" {
		return nil, noProject(string(c.Project))
	}
	if reason, diagnosis := c.ignore(p, Of[Ref](s, RefStream(c.Project, c.Ref))); reason != "" {
		return []Change{{c.stream(), PushIgnored{
			Push: c.Push, Project: c.Project, Source: c.Source, Delivery: c.Delivery, Kind: c.Kind,
			Ref: c.Ref, Commit: c.Commit, Reason: reason, Diagnosis: diagnosis,
		}}}, nil
	}
	return []Change{
		{c.stream(), PushReceived{
			Push: c.Push, Project: c.Project, Source: c.Source, Delivery: c.Delivery,
			Ref: c.Ref, Branch: branchOf(c.Ref), Before: nonZero(c.Before), Commit: c.Commit,
			Pusher: c.Pusher, Author: c.Author, Message: c.Message, Forced: c.Forced, Timestamp: c.Time,
		}},
		{RefStream(c.Project, c.Ref), RefMoved{
			Project: c.Project, Ref: c.Ref, Before: nonZero(c.Before), After: c.Commit, Push: c.Push, Body: c.Body,
		}},
	}, nil
}

// ignore says why a delivery leads to nothing, "" when it shall be built.
func (c ReceivePush) ignore(p *Project, ref *Ref) (reason string, d *Diagnosis) {
	switch {
	case c.Kind == "ping":
		return "ping", nil
	case c.Kind != "push":
		return "not-a-push", nil
	case strings.HasPrefix(c.Ref, "refs/tags/"):
		return "tag", nil
	case nonZero(c.Commit) == "":
		return "branch-deleted", nil
	case !p.tracks(branchOf(c.Ref)):
		return "other-branch", nil
	case ref.Head == c.Commit || ref.Bodies[c.Body]:
		return "duplicate", nil
	case ref.overtaken(nonZero(c.Before), c.Commit):
		return "overtaken", c.overtaken(p, ref)
	}
	if d := p.unconfigured(); d != nil {
		return "not-configured", d
	}
	return "", nil
}

func (c ReceivePush) overtaken(p *Project, ref *Ref) *Diagnosis {
	return &Diagnosis{
		Code: "PUSH_OVERTAKEN", Title: "Push ignored: a newer one was there before it", Step: "push",
		Error:  "commit " + c.Commit + " of " + c.Ref + " arrived after " + ref.Head + ", which was pushed later",
		Reason: "Its delivery was late, and building it now would bring an older version back",
		Fixes: []string{
			"If the newer commit is what shall run, there is nothing to do",
			"If the older one shall run, make it the head of the branch again: git push --force, or revert and push",
		},
		Run: "pipeops status " + p.Name,
	}
}

// tracks says whether pushes to the branch are built.
func (p *Project) tracks(branch string) bool {
	if branch == "" {
		return false
	}
	if branch == p.Settings.Branch {
		return true
	}
	for _, e := range p.Environments {
		if e.Branch == branch {
			return true
		}
	}
	return false
}

func branchOf(ref string) string {
	branch, ok := strings.CutPrefix(ref, "refs/heads/")
	if !ok {
		return ""
	}
	return branch
}

// nonZero maps git's all-zero hash, "no commit", to the empty text.
func nonZero(commit string) string {
	if strings.Trim(commit, "0") == "" {
		return ""
	}
	return commit
}
