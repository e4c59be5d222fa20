// Package webhook receives signed deliveries from git hosts over HTTP, and
// hands each to handlers/commands as a push to be recorded; effects.
//
// Invariants it keeps: nothing is parsed before its signature was checked over
// the bytes as they came; 202 means committed; the same delivery, however
// often and through however many servers it comes, is one push; and who can't
// sign learns nothing, not even which projects there are.
//
//	POST /webhooks/github/prj_0190…   →  202 {"push":"psh_…","status":"accepted","cursor":"1.42"}
package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pipeops/pipeops/domain"
	"github.com/pipeops/pipeops/eventstore"
	"github.com/pipeops/pipeops/handlers/commands"
)

// Receiver records deliveries. *commands.Handler is one.
type Receiver interface {
	Receive(ctx context.Context, cmd domain.ReceivePush, m commands.Meta, opts ...commands.Option) (commands.Received, error)
}

// Secrets gives what deliveries to a project are signed with, the newest
// revision first; none for an unknown project or one without a secret.
type Secrets interface {
	WebhookSecrets(ctx context.Context, project domain.ProjectID, provider string) ([]Secret, error)
}

// Secret is one revision of a webhook's secret.
type Secret struct {
	Revision   int       // from 1
	Value      []byte    // never empty
	ReplacedAt time.Time // when the next revision came; zero for the current one
}

// LogValue implements slog.LogValuer: the value never reaches a log.
func (s Secret) LogValue() slog.Value { return slog.IntValue(s.Revision) }

// Config of a Handler.
type Config struct {
	Receiver Receiver // required
	Secrets  Secrets  // required
	// Seal encrypts a raw delivery under a key of its own, for the place that id names.
	Seal func(id string, raw []byte) (keyID string, sealed []byte, err error)
	// Fingerprint tells equal deliveries from different ones, for ever: a MAC, because a plain hash would tell who guesses
	// what an erased person has sent; 64 hex digits; required.
	Fingerprint func(project domain.ProjectID, raw []byte) string
	Subject     func(provider, person string) string // opaque id of a person, an HMAC; required
	NewID       domain.NewID                         // required
	Now         func() time.Time                     // default time.Now
	Log         *slog.Logger                         // default: none

	MaxDeliveries int           // handled at the same time; default 64
	ReadWithin    time.Duration // for a body to arrive; default 20 s
	Within        time.Duration // for the rest; default 20 s: a sender may wait for less, but then it sends again what is recorded
}

// Validate says all that is wrong.
func (c Config) Validate() error {
	var problems []error
	for _, required := range []struct {
		name    string
		missing bool
	}{
		{"Receiver", c.Receiver == nil},
		{"Secrets", c.Secrets == nil},
		{"Seal", c.Seal == nil},
		{"Fingerprint", c.Fingerprint == nil},
		{"Subject", c.Subject == nil},
		{"NewID", c.NewID == nil},
	} {
		if required.missing {
			problems = append(problems, fmt.Errorf("webhook: %s is missing", required.name))
		}
	}
	if c.MaxDeliveries < 0 || c.ReadWithin < 0 || c.Within < 0 {
		problems = append(problems, errors.New("webhook: a bound is negative: 0 means its default"))
	}
	return errors.Join(problems...)
}

// Handler serves /webhooks/{provider}/{project id}.
type Handler struct {
	cfg    Config
	bodies *bodies
	dummy  []byte // what an unknown project's deliveries are checked against, to take as long
}

// rotation is how long the secret before the current one stays good.
const rotation = 24 * time.Hour

// New gives a handler.
func New(cfg Config) (*Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxDeliveries == 0 {
		cfg.MaxDeliveries = 64
	}
	if cfg.ReadWithin == 0 {
		cfg.ReadWithin = 20 * time.Second
	}
	if cfg.Within == 0 {
		cfg.Within = 20 * time.Second
	}
	return &Handler{cfg: cfg, bodies: newBodies(cfg.MaxDeliveries, cfg.ReadWithin), dummy: []byte(cfg.NewID("none"))}, nil
}

// answer is what the sender reads.
type answer struct {
	Push      domain.PushID     `json:"push,omitempty"`
	Status    string            `json:"status"`           // "accepted", "ignored" or "refused"
	Reason    string            `json:"reason,omitempty"` // why not accepted
	Diagnosis *domain.Diagnosis `json:"diagnosis,omitempty"`
	Cursor    string            `json:"cursor,omitempty"`
}

// refusal is an answer that isn't 202.
type refusal struct {
	status int
	reason string
	retry  time.Duration // when to come again; 0: not as it is
	push   commands.Received
}

func (r *refusal) Error() string { return strconv.Itoa(r.status) + ": " + r.reason }

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	got, err := h.handle(w, r)
	var no *refusal
	switch {
	case err == nil:
		reply(w, http.StatusAccepted, accepted(got))
	case errors.As(err, &no):
		if no.retry > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(no.retry.Seconds())))
		}
		if no.status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", http.MethodPost)
		}
		a := accepted(no.push)
		a.Status, a.Reason = "refused", no.reason
		reply(w, no.status, a)
	default:
		h.cfg.Log.ErrorContext(r.Context(), "delivery not recorded", "err", err)
		w.Header().Set("Retry-After", "30")
		reply(w, http.StatusServiceUnavailable, answer{Status: "refused", Reason: "it can't be recorded right now: send it again"})
	}
}

func accepted(r commands.Received) answer {
	a := answer{Push: r.Push, Status: "accepted", Cursor: r.Cursor.String()}
	if r.Cursor == (domain.Cursor{}) {
		a.Cursor = ""
	}
	if r.Ignored != "" {
		a.Status, a.Reason, a.Diagnosis = "ignored", r.Ignored, r.Diagnosis
	}
	return a
}

func reply(w http.ResponseWriter, status int, a answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(a) // the sender has gone: it will send again
}

// handle goes from the outside to the inside: nothing is looked at before what
// stands before it was found good.
func (h *Handler) handle(w http.ResponseWriter, r *http.Request) (commands.Received, error) {
	if r.Method != http.MethodPost {
		return commands.Received{}, &refusal{status: http.StatusMethodNotAllowed, reason: "webhooks are sent by POST"}
	}
	name, project, ok := target(r.URL.Path)
	provider := providers[name]
	if !ok || provider == nil {
		return commands.Received{}, &refusal{status: http.StatusNotFound, reason: "the address of a webhook is /webhooks/<provider>/<project id>; see: pipeops project show"}
	}
	body, release, err := h.bodies.read(w, r)
	if err != nil {
		return commands.Received{}, err
	}
	defer release()
	// The sender may hang up now: what has arrived is recorded all the same.
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(r.Context()), h.cfg.Within, errors.New("recording the delivery took longer than "+h.cfg.Within.String()))
	defer cancel()
	if err := h.authenticate(ctx, provider, name, project, r.Header, body); err != nil {
		return commands.Received{}, err
	}
	return h.record(ctx, source{provider, name, project}, r.Header, body)
}

var projectID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// target reads "/webhooks/{provider}/{project}".
func target(path string) (provider string, project domain.ProjectID, ok bool) {
	rest, ok := strings.CutPrefix(path, "/webhooks/")
	provider, id, cut := strings.Cut(rest, "/")
	return provider, domain.ProjectID(id), ok && cut && projectID.MatchString(id)
}

var errUnsigned = &refusal{status: http.StatusUnauthorized, reason: "the signature isn't that of this webhook's secret"}

// authenticate checks the signature. Whatever is wrong, the answer and the work are the same.
func (h *Handler) authenticate(ctx context.Context, p Provider, name string, project domain.ProjectID, header http.Header, body []byte) error {
	secrets, err := h.cfg.Secrets.WebhookSecrets(ctx, project, name)
	if err != nil {
		return fmt.Errorf("look up the webhook secret of %s for %s: %w", project, name, err)
	}
	now, tried := h.cfg.Now(), 0
	for _, s := range secrets {
		if len(s.Value) == 0 || !s.ReplacedAt.IsZero() && now.Sub(s.ReplacedAt) > rotation {
			continue
		}
		tried++
		if p.Signed(header, body, s.Value) {
			if !s.ReplacedAt.IsZero() {
				h.cfg.Log.InfoContext(ctx, "webhook still signs with the secret before the current one", "project", project, "provider", name, "revision", s.Revision)
			}
			return nil
		}
	}
	why := "wrong signature"
	if tried == 0 {
		p.Signed(header, body, h.dummy)
		why = "no such project, or no secret is set"
	}
	h.cfg.Log.WarnContext(ctx, "webhook refused", "project", project, "provider", name, "reason", why)
	return errUnsigned
}

// source is where a delivery comes from.
type source struct {
	provider Provider
	name     string
	project  domain.ProjectID
}

// command is what a delivery wants, but for the id of the push. problem says what it can't be read for; it is recorded
// all the same.
func command(s source, header http.Header, body []byte, keyed commands.Keyed) (cmd domain.ReceivePush, problem error) {
	fingerprint := keyed.Fingerprint(s.project, body)
	d, problem := s.provider.Parse(header, body)
	if problem != nil {
		d = Delivery{Kind: unparsable}
	}
	cmd = domain.ReceivePush{
		Project: s.project, Source: s.name, Delivery: deliveryID(s.provider.ID(header), fingerprint), Body: fingerprint,
		Kind: d.Kind, Ref: d.Ref, Before: d.Before, Commit: d.After, Forced: d.Forced, Time: domain.At(d.Time),
		Pusher: person(s.name, d.Sender, keyed.Subject), Author: person(s.name, d.Author, keyed.Subject),
	}
	if d.Message != "" {
		cmd.Message = domain.Personal{Text: d.Message, Subject: cmd.Author.Subject}
	}
	return cmd, problem
}

// unparsable is the kind of a delivery that can't be read.
const unparsable = "unparsable"

// Reread gives the command that this version makes of a delivery that was recorded before. had tells what the recorded
// event knows of it: push, project, source, delivery and kind; its signature was checked when it came.
func Reread(had domain.ReceivePush, contentType string, body []byte, keyed commands.Keyed) (domain.ReceivePush, error) {
	provider := providers[had.Source]
	if provider == nil {
		return domain.ReceivePush{}, fmt.Errorf("this version knows no provider %q", had.Source)
	}
	if had.Kind == unparsable {
		had.Kind = "push" // what it called itself isn't kept
	}
	header := provider.Header(had.Kind, had.Delivery)
	header.Set("Content-Type", contentType)
	cmd, _ := command(source{provider, had.Source, had.Project}, header, body, keyed) // a problem is its kind
	cmd.Push, cmd.Delivery = had.Push, had.Delivery
	return cmd, nil
}

// record hands on a delivery whose signature was good.
func (h *Handler) record(ctx context.Context, s source, header http.Header, body []byte) (commands.Received, error) {
	cmd, problem := command(s, header, body, commands.Keyed{Subject: h.cfg.Subject, Fingerprint: h.cfg.Fingerprint})
	cmd.Push = domain.PushID(h.cfg.NewID("psh"))
	keyID, sealed, err := h.cfg.Seal(string(cmd.Push), body)
	if err != nil {
		return commands.Received{}, fmt.Errorf("seal delivery %s of %s to %s: %w", cmd.Delivery, s.name, s.project, err)
	}
	got, err := h.cfg.Receiver.Receive(ctx, cmd, commands.Meta{
		// Derived from what the host repeats, so that a repeat is known.
		CommandID: string(domain.PushStream(s.project, s.name, cmd.Delivery)),
		Actor:     actor(cmd.Pusher, s.name), CorrelationID: string(cmd.Push), At: h.cfg.Now(), Project: s.project,
		Trace: domain.Traceparent(header.Get("traceparent")),
	}, commands.WithAttachment(eventstore.Attachment{
		ID: string(cmd.Push), ProjectID: s.project, ContentType: contentType(header), KeyID: keyID, Sealed: sealed,
	}))
	if no, ok := errors.AsType[*domain.Refusal](err); ok {
		h.cfg.Log.WarnContext(ctx, "webhook refused", "project", s.project, "provider", s.name, "reason", no.Message)
		return commands.Received{}, errUnsigned // a secret outlived its project
	}
	if err == nil && problem != nil {
		return commands.Received{}, &refusal{status: http.StatusBadRequest, reason: problem.Error(), push: got}
	}
	return got, err
}

var hostID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// deliveryID is the host's own id when it can stand in a stream's name, else
// one made from the body.
func deliveryID(given, fingerprint string) string {
	if hostID.MatchString(given) {
		return given
	}
	return "mac-" + fingerprint
}

// person makes a personal field; the subject is the same whenever the host
// names the same login, or else the same e-mail.
func person(provider string, p Person, subject func(provider, person string) string) domain.Personal {
	id := p.Login
	if id == "" {
		id = strings.ToLower(p.Email)
	}
	if id == "" {
		return domain.Personal{}
	}
	text := p.Name
	if text == "" {
		text = p.Login
	}
	if p.Email != "" {
		text = strings.TrimSpace(text + " <" + p.Email + ">")
	}
	return domain.Personal{Text: text, Subject: subject(provider, id)}
}

// actor is the sender's opaque id, or the host's name when it names nobody.
func actor(sender domain.Personal, provider string) string {
	if sender.Subject == "" {
		return provider
	}
	return sender.Subject
}

// contentType keeps what a header may say within bounds.
func contentType(header http.Header) string {
	kind := header.Get("Content-Type")
	if kind == "" || len(kind) > 200 || bytes.ContainsFunc([]byte(kind), func(r rune) bool { return r < ' ' || r > '~' }) {
		return "application/octet-stream"
	}
	return kind
}
