package webhook

import (
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Provider is how one git host signs and words its deliveries. It is named by
// the URL, never guessed from headers: some hosts send those of others too.
type Provider interface {
	// Signed says whether secret, which is never empty, made the delivery's
	// signature over body. It compares in constant time.
	Signed(header http.Header, body, secret []byte) bool
	// ID is the host's own id of the delivery, the same when it is sent again;
	// "" when it gives none.
	ID(header http.Header) string
	// Header gives what ID and Parse look at, as the host sends it with a delivery of that kind and id.
	Header(kind, id string) http.Header
	// Parse reads a delivery whose signature was checked. The error says what
	// is wrong with it.
	Parse(header http.Header, body []byte) (Delivery, error)
}

// providers names each host as it stands in the URL. To add one, write its
// file and its line here.
var providers = map[string]Provider{
	"github": github{},
}

// Providers lists the names of the hosts that deliveries are taken from, sorted.
func Providers() []string { return slices.Sorted(maps.Keys(providers)) }

// Delivery is what a host says, checked: hashes are hashes, texts are bounded.
type Delivery struct {
	Kind    string // "push"; all else by the host's own name of it
	Sender  Person // who caused it
	Ref     string // "refs/heads/main"
	Before  string // commit, zeros for a new ref
	After   string // commit, zeros for a deleted ref
	Forced  bool
	Author  Person // of the commit After
	Message string
	Time    time.Time // of the commit After
}

// Person is somebody as the host names them.
type Person struct {
	Login string // may be empty
	Name  string
	Email string
}

// payload gives the JSON of a delivery that may have been sent as a form.
func payload(header http.Header, body []byte) ([]byte, error) {
	if kind, _, _ := mime.ParseMediaType(header.Get("Content-Type")); kind != "application/x-www-form-urlencoded" {
		return body, nil
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, fmt.Errorf("the body isn't the form that its content type promises: %w", err)
	}
	if !form.Has("payload") {
		return nil, errors.New("the form has no field payload")
	}
	return []byte(form.Get("payload")), nil
}

var commit = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// Bounds of what goes into an event, in bytes; the raw delivery keeps all of it.
const (
	maxRef     = 1024
	maxName    = 320 // an e-mail address has 254 at most
	maxMessage = 8 << 10
)

// check says what no push can have.
func (d Delivery) check() error {
	var problems []error
	if !strings.HasPrefix(d.Ref, "refs/") || len(d.Ref) > maxRef || !utf8.ValidString(d.Ref) || strings.ContainsFunc(d.Ref, notInRef) {
		problems = append(problems, errors.New("ref isn't the full name of a ref, for example refs/heads/main"))
	}
	for _, hash := range []struct{ name, value string }{{"before", d.Before}, {"after", d.After}} {
		if !commit.MatchString(hash.value) {
			problems = append(problems, fmt.Errorf("%s isn't a commit's hash of 40 or 64 hexadecimal digits", hash.name))
		}
	}
	return errors.Join(problems...)
}

func notInRef(r rune) bool { return unicode.IsControl(r) || strings.ContainsRune(" ~^:?*[\\", r) }

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
