package gitremote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
)

// Source is what pushes to this remote are recorded as.
const Source = "git"

// maxMessage bounds the commit message in an event, in bytes; the repository has all of it.
const maxMessage = 8 << 10

// recordWithin bounds what one entry may take; someone waits at a terminal.
const recordWithin = 15 * time.Second

// mark says how much of a reflog is recorded.
type mark struct {
	offset  int64          // bytes, up to the end of a line
	first   string         // first line: another one means another reflog, of a ref made anew
	changed time.Time      // of the file, when all of it was recorded
	seen    map[string]int // foreign lines, and how often each: they need not be unique
}

// Reconcile records every entry of every reflog that isn't recorded yet. What
// can't be recorded doesn't keep other refs from it; the error joins all of them.
func (r *Remote) Reconcile(ctx context.Context) error {
	folders, err := os.ReadDir(r.cfg.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("git remote: list repositories: %w", err)
	}
	var problems []error
	for _, folder := range folders {
		id, ok := strings.CutSuffix(folder.Name(), suffix)
		if !ok || !folder.IsDir() {
			continue
		}
		problems = append(problems, r.reconcile(ctx, r.repository(domain.ProjectID(id))))
	}
	return errors.Join(problems...)
}

func (r *Remote) reconcile(ctx context.Context, repo *repository) error {
	refs, err := repo.logged()
	problems := []error{err}
	for _, ref := range refs {
		if context.Cause(ctx) != nil {
			return context.Cause(ctx)
		}
		problems = append(problems, r.recordRef(ctx, repo, ref))
	}
	if repo.hasGrown() {
		if _, err := repo.git(ctx, "gc", "--auto", "--quiet"); err != nil && context.Cause(ctx) == nil {
			r.cfg.Log.WarnContext(ctx, "repository not tidied up", "project", repo.project, "err", err)
		}
	}
	return errors.Join(problems...)
}

// logged lists the refs that have a reflog.
func (repo *repository) logged() (refs []string, err error) {
	root := filepath.Join(repo.dir, "logs")
	err = filepath.WalkDir(filepath.Join(root, "refs"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile, or nothing was pushed yet
		}
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".lock") {
			return err
		}
		ref, err := filepath.Rel(root, path)
		refs = append(refs, filepath.ToSlash(ref))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list reflogs of project %s: %w", repo.project, err)
	}
	return refs, nil
}

// hasGrown says whether anything was pushed since it was asked last.
func (repo *repository) hasGrown() bool {
	repo.mu.Lock()
	defer repo.mu.Unlock()
	defer func() { repo.grown = false }()
	return repo.grown
}

// recordRef records the entries of a ref's reflog that aren't recorded yet, in
// order; the first one that can't be ends it.
func (r *Remote) recordRef(ctx context.Context, repo *repository, ref string) error {
	repo.mu.Lock()
	defer repo.mu.Unlock()
	m, unread, changed, err := repo.unread(ref)
	if err != nil || m == nil {
		return err
	}
	for text := range strings.Lines(unread) {
		if !strings.HasSuffix(text, "\n") {
			return nil // git is writing it
		}
		if err := r.recordLine(ctx, repo, m, ref, strings.TrimSuffix(text, "\n")); err != nil {
			return err
		}
		if m.offset == 0 {
			m.first = text
		}
		m.offset += int64(len(text))
		repo.grown = true
	}
	m.changed = changed
	return nil
}

// unread gives the mark of a ref and what its reflog has beyond it; no mark when there is nothing new.
func (repo *repository) unread(ref string) (m *mark, lines string, changed time.Time, err error) {
	f, err := os.Open(filepath.Join(repo.dir, "logs", filepath.FromSlash(ref)))
	if errors.Is(err, fs.ErrNotExist) {
		delete(repo.read, ref)
		return nil, "", time.Time{}, nil
	}
	if err != nil {
		return nil, "", time.Time{}, fmt.Errorf("read reflog of %s, project %s: %w", ref, repo.project, err)
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return nil, "", time.Time{}, fmt.Errorf("read reflog of %s, project %s: %w", ref, repo.project, err)
	}
	m = repo.read[ref]
	if m != nil && info.Size() == m.offset && info.ModTime().Equal(m.changed) {
		return nil, "", time.Time{}, nil
	}
	if m == nil || info.Size() < m.offset || !startsWith(f, m.first) {
		m = &mark{seen: map[string]int{}}
		repo.read[ref] = m
	}
	rest, err := io.ReadAll(io.NewSectionReader(f, m.offset, 1<<62))
	if err != nil {
		return nil, "", time.Time{}, fmt.Errorf("read reflog of %s, project %s: %w", ref, repo.project, err)
	}
	return m, string(rest), info.ModTime(), nil
}

func startsWith(f io.ReaderAt, text string) bool {
	head := make([]byte, len(text))
	n, _ := f.ReadAt(head, 0) // less than all is another text
	return bytes.Equal(head[:n], []byte(text))
}

// recordLine records one line, and tells the push that it came from, if that is still under way.
func (r *Remote) recordLine(ctx context.Context, repo *repository, m *mark, ref, text string) error {
	e, ok := parseLine(ref, text)
	if !ok {
		r.cfg.Log.ErrorContext(ctx, "line of a reflog can't be read; it is left out", "project", repo.project, "ref", ref, "offset", m.offset)
		return nil
	}
	if !e.ours() {
		e.repeat = m.seen[text]
	}
	if _, err := r.record(ctx, repo, e); err != nil {
		return err
	}
	if !e.ours() {
		m.seen[text]++
	}
	return nil
}

// record records one entry, once. A refusal of the domain is an answer too.
func (r *Remote) record(ctx context.Context, repo *repository, e entry) (outcome, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, recordWithin, errors.New("recording a push took longer than "+recordWithin.String()))
	defer cancel()
	cmd := e.command(repo.project, commands.Keyed{Subject: r.cfg.Subject, Fingerprint: r.cfg.Fingerprint})
	cmd.Push = domain.PushID(r.cfg.NewID("psh"))
	delivery, actor := cmd.Delivery, cmd.Pusher.Subject
	if !e.deleted() {
		if err := r.describe(ctx, repo, e, &cmd); err != nil {
			return outcome{}, err
		}
	}
	keyID, sealed, err := r.cfg.Seal(string(cmd.Push), e.raw())
	if err != nil {
		return outcome{}, fmt.Errorf("seal the reflog line of %s, project %s: %w", e.ref, repo.project, err)
	}
	got, err := r.cfg.Receiver.Receive(ctx, cmd, commands.Meta{
		CommandID: commandID(repo.project, delivery), Actor: actor, CorrelationID: string(cmd.Push), At: e.at, Project: repo.project,
	}, commands.WithAttachment(eventstore.Attachment{
		ID: string(cmd.Push), ProjectID: repo.project, ContentType: "text/x-git-reflog", KeyID: keyID, Sealed: sealed,
	}))
	o := outcome{entry: e, Received: got}
	if errors.As(err, &o.refusal) {
		r.cfg.Log.WarnContext(ctx, "push refused", "project", repo.project, "ref", e.ref, "reason", o.refusal.Message)
	} else if err != nil {
		return outcome{}, err
	}
	r.tell(o)
	return o, nil
}

// describe fills in what the repository knows of the commit.
func (r *Remote) describe(ctx context.Context, repo *repository, e entry, cmd *domain.ReceivePush) error {
	out, err := repo.git(ctx, "log", "-1", "--no-show-signature", "--encoding=UTF-8", "--format=%an%x00%ae%x00%ct%x00%B", e.new, "--")
	if gone(err) {
		r.cfg.Log.WarnContext(ctx, "commit of a push can't be read", "project", repo.project, "ref", e.ref, "commit", e.new, "err", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read commit %s of project %s: %w", e.new, repo.project, err)
	}
	parts := strings.SplitN(strings.ToValidUTF8(string(out), "\uFFFD"), "\x00", 4)
	if len(parts) == 4 {
		name, email, message := clip(parts[0], 320), clip(parts[1], 320), clip(strings.TrimSpace(parts[3]), maxMessage)
		subject := r.cfg.Subject(Source, strings.ToLower(email))
		cmd.Author = domain.Personal{Text: strings.TrimSpace(name + " <" + email + ">"), Subject: subject}
		cmd.Message = domain.Personal{Text: message, Subject: subject}
		if seconds, err := strconv.ParseInt(parts[2], 10, 64); err == nil {
			cmd.Time = domain.At(time.Unix(seconds, 0))
		}
	}
	if strings.Trim(e.old, "0") == "" {
		return nil
	}
	_, err = repo.git(ctx, "merge-base", "--is-ancestor", e.old, e.new)
	if gone(err) {
		cmd.Forced, err = true, nil // 1: not an ancestor; 128: the old commit was tidied away, so nothing leads to it
	}
	return err
}

// gone says whether git itself said no, rather than that it couldn't run.
func gone(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Exited()
}

// clip cuts text to at most n bytes, between characters.
func clip(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}
