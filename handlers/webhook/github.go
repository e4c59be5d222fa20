package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// github reads the webhooks of GitHub and GitHub Enterprise.
// Source: docs.github.com, "Webhook events and payloads", "Validating webhook deliveries".
type github struct{}

// Signed implements Provider: hex HMAC-SHA256 over the body as it was received.
func (github) Signed(header http.Header, body, secret []byte) bool {
	given := header.Values("X-Hub-Signature-256")
	if len(given) != 1 {
		return false
	}
	digits, ok := strings.CutPrefix(given[0], "sha256=")
	want, err := hex.DecodeString(digits)
	if !ok || err != nil {
		return false
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(body)
	return hmac.Equal(mac.Sum(nil), want)
}

// ID implements Provider: a redelivery keeps it.
func (github) ID(header http.Header) string { return header.Get("X-GitHub-Delivery") }

// Header implements Provider.
func (github) Header(kind, id string) http.Header {
	return http.Header{"X-Github-Event": {kind}, "X-Github-Delivery": {id}}
}

// githubEvent is what every event has.
type githubEvent struct {
	Sender struct {
		Login string `json:"login"`
	} `json:"sender"`
}

func (e githubEvent) delivery(kind string) Delivery {
	return Delivery{Kind: kind, Sender: Person{Login: clip(e.Sender.Login, maxName)}}
}

type githubPush struct {
	githubEvent

	Ref     string `json:"ref"`
	Before  string `json:"before"`
	After   string `json:"after"`
	Forced  bool   `json:"forced"`
	Deleted bool   `json:"deleted"`
	Head    *struct {
		ID        string       `json:"id"`
		Message   string       `json:"message"`
		Timestamp string       `json:"timestamp"`
		Author    githubPerson `json:"author"`
	} `json:"head_commit"`
	Pusher githubPerson `json:"pusher"`
}

type githubPerson struct {
	Name     string `json:"name"`
	Email    string `json:"email"`
	Username string `json:"username"`
}

// Parse implements Provider.
func (github) Parse(header http.Header, body []byte) (Delivery, error) {
	kind := header.Get("X-GitHub-Event")
	if !eventName.MatchString(kind) {
		return Delivery{}, errors.New("the header X-GitHub-Event names no event")
	}
	text, err := payload(header, body)
	if err != nil {
		return Delivery{}, err
	}
	if kind != "push" { // fields of the same name mean other things there
		var event githubEvent
		err := json.Unmarshal(text, &event)
		return event.delivery(kind), named(kind, err)
	}
	var push githubPush
	if err := json.Unmarshal(text, &push); err != nil {
		return Delivery{}, named(kind, err)
	}
	return push.delivery()
}

func named(kind string, err error) error {
	if err != nil {
		return fmt.Errorf("the payload isn't the JSON of GitHub's event %s: %w", kind, err)
	}
	return nil
}

func (p githubPush) delivery() (Delivery, error) {
	d := p.githubEvent.delivery("push")
	d.Ref, d.Before, d.After, d.Forced = p.Ref, p.Before, p.After, p.Forced
	if p.Deleted {
		d.After = strings.Repeat("0", 40)
	}
	// The pusher's name is the login of who pushed; the sender is the same or an app acting for it.
	d.Sender.Name, d.Sender.Email = clip(p.Pusher.Name, maxName), clip(p.Pusher.Email, maxName)
	if d.Sender.Login == "" {
		d.Sender.Login = d.Sender.Name
	}
	if h := p.Head; h != nil && h.ID == d.After {
		d.Author = Person{Login: clip(h.Author.Username, maxName), Name: clip(h.Author.Name, maxName), Email: clip(h.Author.Email, maxName)}
		d.Message = clip(h.Message, maxMessage)
		d.Time, _ = time.Parse(time.RFC3339, h.Timestamp) // the zero time: not told
	}
	return d, d.check()
}

var eventName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
