package gitremote

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/handlers/commands"
)

// entry is one line of a reflog: a ref was moved.
type entry struct {
	ref    string // "refs/heads/main"
	old    string // commit, zeros: the ref was made
	new    string // commit, zeros: the ref was deleted
	name   string // of who moved it; our own pushes: the actor
	email  string // our own pushes: the id of the push request, which makes the line unique
	at     time.Time
	line   string // as it stands in the file
	repeat int    // how many equal lines stand before it; only foreign ones repeat
}

// identity is "Name <e-mail> 1795392000 +0100" behind the two hashes.
var line = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64}) ([0-9a-f]{40}|[0-9a-f]{64}) (.*?) ?<([^>]*)> ([0-9]{1,12}) [-+][0-9]{4}(?:\t|$)`)

// parseLine reads a line of a ref's reflog; false for what is none.
func parseLine(ref, text string) (entry, bool) {
	m := line.FindStringSubmatch(text)
	if m == nil {
		return entry{}, false
	}
	seconds, err := strconv.ParseInt(m[5], 10, 64)
	if err != nil {
		return entry{}, false
	}
	return entry{ref: ref, old: m[1], new: m[2], name: m[3], email: m[4], at: time.Unix(seconds, 0).UTC(), line: text}, true
}

// deletion is the entry of a deleted ref, whose reflog went with it.
func deletion(p *push, ref, old string) entry {
	zeros := strings.Repeat("0", len(old))
	e := entry{ref: ref, old: old, new: zeros, name: p.actor, email: p.id, at: p.at.Truncate(time.Second).UTC()}
	e.line = fmt.Sprintf("%s %s %s <%s> %d +0000\tdelete", old, zeros, p.actor, p.id, e.at.Unix())
	return e
}

// raw is what is kept of the entry as its delivery.
func (e entry) raw() []byte {
	text := e.ref + " " + e.line + "\n"
	if e.repeat > 0 {
		text += strconv.Itoa(e.repeat) + "\n"
	}
	return []byte(text)
}

// command is what the entry wants, but for the id of the push, and for what the repository knows of the commit.
func (e entry) command(project domain.ProjectID, keyed commands.Keyed) domain.ReceivePush {
	body := keyed.Fingerprint(project, e.raw()) // nothing but the line, so that whoever reads it records the same push
	actor := e.name
	if !e.ours() {
		actor = keyed.Subject(Source, strings.ToLower(e.email))
	}
	return domain.ReceivePush{
		Project: project, Source: Source, Delivery: body[:32], Kind: "push", Ref: e.ref, Before: e.old, Commit: e.new, Body: body,
		Pusher: domain.Personal{Text: e.name, Subject: actor},
	}
}

// Reread gives the command that this version makes of an entry that was recorded before, from what was kept of it. had
// tells what else the recorded event knows: the ids, and what the repository said of the commit then.
func Reread(had domain.ReceivePush, raw []byte, keyed commands.Keyed) (domain.ReceivePush, error) {
	text, repeat, _ := strings.Cut(strings.TrimSuffix(string(raw), "\n"), "\n")
	ref, line, _ := strings.Cut(text, " ")
	e, ok := parseLine(ref, line)
	if !ok {
		return domain.ReceivePush{}, fmt.Errorf("the delivery of push %s is no line of a reflog to this version", had.Push)
	}
	e.repeat, _ = strconv.Atoi(repeat) // none: 0
	cmd := e.command(had.Project, keyed)
	cmd.Push, cmd.Delivery = had.Push, had.Delivery
	cmd.Author, cmd.Message, cmd.Forced, cmd.Time = had.Author, had.Message, had.Forced, had.Time
	return cmd, nil
}

// ours says whether the line was written for a push through this remote.
func (e entry) ours() bool { return strings.HasPrefix(e.email, pushPrefix+"_") }

// short is a commit for people.
func short(commit string) string { return commit[:min(7, len(commit))] }

// deleted says whether the ref was.
func (e entry) deleted() bool { return strings.Trim(e.new, "0") == "" }

func commandID(project domain.ProjectID, delivery string) string {
	return string(domain.PushStream(project, Source, delivery))
}
