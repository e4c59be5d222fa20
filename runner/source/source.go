// Package source receives the address of a repository and a commit, and hands back a folder that holds exactly that
// commit, without .git; effects: it runs git.
//
// Whatever the repository holds, git runs no program of it (no hooks, filters, submodules, fsmonitor), reads none of the
// machine's settings, speaks https only (http to our own remote and to this machine), follows no redirect, and asks
// nobody for a password. Secrets go to git in its environment, never as arguments.
package source

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Request is what to fetch. Workspace is a folder that is empty but for what an earlier try left there.
type Request struct {
	URL        string
	Ref        string // where the commit was pushed, "refs/heads/main"; a help for old servers, may be empty
	Commit     string // full hash, 40 or 64 hex digits
	Credential string // for this very repository: "user:token", or a token alone; may be empty
	OwnRemote  string // base URL of our own remote, for which http is fine; may be empty
	Workspace  string
	MaxFiles   int64 // default 200,000
	MaxBytes   int64 // of all files; default 1 GiB
}

// Fetched is what lies in Folder now.
type Fetched struct {
	Folder string
	Files  int64
	Bytes  int64
}

// Codes of errors.
const (
	BadURL             = "REPOSITORY_URL"
	BadCommit          = "COMMIT_HASH"
	Denied             = "CLONE_AUTH"
	RepositoryNotFound = "REPOSITORY_NOT_FOUND"
	CommitNotFound     = "COMMIT_NOT_FOUND"
	Network            = "CLONE_NETWORK" // may mend by itself
	TooLarge           = "SOURCE_TOO_LARGE"
	Failed             = "CLONE_FAILED"
)

// Error is why the source couldn't be had: a stable code, and git's own words.
type Error struct{ Code, Message string }

func (e *Error) Error() string { return e.Message }

var hash = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// Fetch fetches one commit. All errors but those of this machine are *Error.
func Fetch(ctx context.Context, r Request) (Fetched, error) {
	if r.MaxFiles == 0 {
		r.MaxFiles = 200_000
	}
	if r.MaxBytes == 0 {
		r.MaxBytes = 1 << 30
	}
	if !hash.MatchString(r.Commit) {
		return Fetched{}, &Error{BadCommit, fmt.Sprintf("%q isn't the full hash of a commit", r.Commit)}
	}
	u, err := address(r.URL, r.OwnRemote)
	if err != nil {
		return Fetched{}, err
	}
	g := &git{
		dir: filepath.Join(r.Workspace, "git"), tree: filepath.Join(r.Workspace, "source"), home: filepath.Join(r.Workspace, "home"),
		config: settings(u, r.Credential), maxBytes: 2 * r.MaxBytes,
	}
	for _, folder := range []string{g.tree, g.home} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return Fetched{}, fmt.Errorf("fetch source: %w", err)
		}
	}
	fetched, err := g.checkOut(ctx, u.String(), r)
	if err != nil {
		return Fetched{}, err
	}
	if err := errors.Join(os.RemoveAll(g.dir), os.RemoveAll(g.home)); err != nil {
		return Fetched{}, fmt.Errorf("fetch source: %w", err)
	}
	return fetched, nil
}

// address checks where to fetch from.
func address(text, ownRemote string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return nil, &Error{BadURL, "the address of the repository isn't a URL of the form https://host/path"}
	}
	if u.User != nil {
		return nil, &Error{BadURL, "the address of the repository holds a user or password; give them with pipeops project set --git-credential-file"}
	}
	own := ownRemote != "" && strings.HasPrefix(text, strings.TrimSuffix(ownRemote, "/")+"/")
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && (own || loopback(u.Hostname())):
	default:
		return nil, &Error{BadURL, "repositories are fetched over https, not " + u.Scheme}
	}
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// settings are the only ones that git sees.
func settings(u *url.URL, credential string) [][2]string {
	s := [][2]string{
		{"protocol.allow", "never"},
		{"protocol." + u.Scheme + ".allow", "always"},
		{"protocol.version", "2"},
		{"http.followRedirects", "false"},
		{"http.lowSpeedLimit", "1000"},
		{"http.lowSpeedTime", "60"},
		{"credential.helper", ""},
		{"core.hooksPath", "/dev/null"},
		{"core.fsmonitor", "false"},
		{"core.attributesFile", "/dev/null"},
		{"core.autocrlf", "false"},
		{"core.symlinks", "true"},
		{"init.templateDir", ""},
		{"init.defaultBranch", "none"},
		{"transfer.fsckObjects", "true"},
		{"submodule.recurse", "false"},
		{"fetch.recurseSubmodules", "false"},
		{"gc.auto", "0"},
		{"maintenance.auto", "false"},
		{"advice.detachedHead", "false"},
	}
	if credential != "" {
		if !strings.Contains(credential, ":") { // any user name will do for a token at GitHub, GitLab, Gitea, Bitbucket and ours
			credential = "x-access-token:" + credential
		}
		basic := base64.StdEncoding.EncodeToString([]byte(credential))
		s = append(s, [2]string{"http." + u.String() + ".extraHeader", "Authorization: Basic " + basic})
	}
	return s
}

// checkOut brings the commit into g.tree.
func (g *git) checkOut(ctx context.Context, address string, r Request) (Fetched, error) {
	format := "sha1"
	if len(r.Commit) == 64 {
		format = "sha256"
	}
	if _, err := g.run(ctx, "init", "--quiet", "--object-format="+format); err != nil {
		return Fetched{}, err
	}
	if err := g.fetch(ctx, address, r); err != nil {
		return Fetched{}, err
	}
	f := Fetched{Folder: g.tree}
	listing, err := g.run(ctx, "ls-tree", "-r", "-l", "-z", r.Commit)
	if err != nil {
		return f, err
	}
	f.Files, f.Bytes = count(listing)
	if f.Files > r.MaxFiles || f.Bytes > r.MaxBytes {
		return f, &Error{TooLarge, fmt.Sprintf("the commit holds %d files of %d bytes together; %d files and %d bytes are allowed", f.Files, f.Bytes, r.MaxFiles, r.MaxBytes)}
	}
	if _, err := g.run(ctx, "checkout", "--quiet", "--force", "--detach", r.Commit); err != nil {
		return f, err
	}
	head, err := g.run(ctx, "rev-parse", "HEAD")
	if err != nil {
		return f, err
	}
	if got := strings.TrimSpace(head); got != r.Commit {
		return f, &Error{CommitNotFound, fmt.Sprintf("the repository gave commit %s instead of %s", got, r.Commit)}
	}
	return f, nil
}

// fetch gets the commit alone, or from a server that gives only tips, the history of its ref until it is found.
func (g *git) fetch(ctx context.Context, address string, r Request) error {
	_, err := g.run(ctx, "fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--end-of-options", address, r.Commit)
	var failed *Error
	if !errors.As(err, &failed) || failed.Code != CommitNotFound || !strings.Contains(failed.Message, "unadvertised") || r.Ref == "" {
		return err
	}
	for _, depth := range []string{"--depth=50", "--depth=200", "--depth=1000", "--depth=2147483647"} {
		if _, err := g.run(ctx, "fetch", "--quiet", depth, "--no-tags", "--no-write-fetch-head", "--end-of-options", address, r.Ref); err != nil {
			return err
		}
		if _, err := g.run(ctx, "cat-file", "-e", r.Commit+"^{commit}"); err == nil {
			return nil
		}
	}
	return &Error{CommitNotFound, fmt.Sprintf("commit %s isn't in the history of %s", r.Commit, r.Ref)}
}

// count adds up a listing of a tree: "<mode> <type> <id> <size>\t<path>\0".
func count(listing string) (files, bytes int64) {
	for entry := range strings.SplitSeq(listing, "\x00") {
		meta, _, ok := strings.Cut(entry, "\t")
		if !ok {
			continue
		}
		files++
		fields := strings.Fields(meta)
		if size, err := strconv.ParseInt(fields[len(fields)-1], 10, 64); err == nil {
			bytes += size
		}
	}
	return files, bytes
}

// watchEvery is how often the size of what is fetched is looked at.
const watchEvery = time.Second
