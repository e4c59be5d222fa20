package domain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"
)

// registry names every event type.
// A type is never removed or renamed; see docs in CONTRIBUTING, "Add an event type".
var registry = func() codec {
	m := codec{}
	for _, e := range []Event{
		ProjectNameClaimed{},
		ProjectCreated{},
		ProjectConfigured{},
		ServiceAdded{},
		ServiceConfigured{},
		EnvironmentAdded{},
		WebhookSecretRotated{},
		SecretSet{},
		PushReceived{},
		PushIgnored{},
		RefMoved{},
		BuildRequested{},
		BuildStarted{},
		SourceFetched{},
		BuildArgsFiltered{},
		LayerCached{},
		LayerBuilt{},
		ImageBuilt{},
		ImagePushRetried{},
		ImagePushed{},
		ImageTagged{},
		WorkspaceRemoved{},
		BuildSucceeded{},
		BuildFailed{},
		BuildSuperseded{},
		AttemptLost{},
		DeploymentAdmitted{},
		DeploymentClaimed{},
		DeploymentReleased{},
		ReleaseActivated{},
		ReleaseQuarantined{},
		QuarantineLifted{},
		DeploymentRequested{},
		DeploymentQueued{},
		DeploymentStarted{},
		ManifestsApplied{},
		RolloutProgressed{},
		DeploymentSucceeded{},
		DeploymentFailed{},
		RollbackStarted{},
		RolledBack{},
		RollbackFailed{},
		DeploymentSuperseded{},
		WorkerEnrolled{},
		SubjectErased{},
		TokenCreated{},
		TokenRevoked{},
		CheckpointKeyCreated{},
		ProjectionRetried{},
		ProjectionSkipped{},
		ReplayRun{},
	} {
		t := reflect.TypeOf(e)
		m[t.Name()] = entry{t, upcasts[t.Name()]}
	}
	return m
}()

// upcasts stand here for types that have had more than one schema version.
var upcasts = map[string][]upcast{}

// codec reads events of the types that it names.
type codec map[string]entry

type entry struct {
	goType  reflect.Type
	upcasts []upcast // the first makes a body of schema version 1 one of version 2, and so on up to the one written now
}

// upcast gives a body as the next schema version would have it.
type upcast func(body []byte) ([]byte, error)

// version is the schema version that is written now.
func (en entry) version() int { return len(en.upcasts) + 1 }

// Types lists the names of all event types, sorted.
func Types() []string {
	names := make([]string, 0, len(registry))
	for n := range registry {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// TypeOf is the stored name of e's type.
func TypeOf(e Event) string { return reflect.TypeOf(e).Name() }

// SchemaVersion is the version that Encode writes for a type, 0 for an unknown one.
func SchemaVersion(eventType string) int {
	en, ok := registry[eventType]
	if !ok {
		return 0
	}
	return en.version()
}

// Zero gives an empty event of the type, or UnknownTypeError.
func Zero(eventType string) (Event, error) {
	en, ok := registry[eventType]
	if !ok {
		return nil, &UnknownTypeError{Type: eventType}
	}
	return reflect.Zero(en.goType).Interface().(Event), nil
}

// UnknownTypeError is an event of a type or schema version that this binary
// does not know: it was written by a newer one.
type UnknownTypeError struct {
	Type          string
	SchemaVersion int // 0: the type itself is unknown
}

func (e *UnknownTypeError) Error() string {
	if e.SchemaVersion == 0 {
		return fmt.Sprintf("event type %q is unknown to this version of pipeops: upgrade it", e.Type)
	}
	return fmt.Sprintf("schema version %d of event type %s is unknown to this version of pipeops: upgrade it", e.SchemaVersion, e.Type)
}

// Personal is a field that tells something about a person. It is stored
// encrypted under the key of its subject, as {"enc":…,"sub":…}; deleting that
// key erases it wherever it stands, and every proof stays valid.
type Personal struct {
	Text    string // what it says; empty when erased or not opened
	Subject string // opaque id of the person, HMAC of provider and login
	sealed  string // ciphertext, base64
}

// Sealed tells whether the field can be written.
func (p Personal) Sealed() bool { return p.sealed != "" || p == (Personal{}) }

type personalJSON struct {
	Enc string `json:"enc"`
	Sub string `json:"sub"`
}

var errUnsealed = errors.New("personal field isn't sealed: it is written through Encode only")

// MarshalJSON implements json.Marshaler; it refuses to write plain text.
func (p Personal) MarshalJSON() ([]byte, error) {
	if !p.Sealed() {
		return nil, errUnsealed
	}
	return json.Marshal(personalJSON{p.sealed, p.Subject})
}

// UnmarshalJSON implements json.Unmarshaler; Text stays empty until Open.
func (p *Personal) UnmarshalJSON(b []byte) error {
	var j personalJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*p = Personal{Subject: j.Sub, sealed: j.Enc}
	return nil
}

// Sealer encrypts a personal field under its subject's key, deterministically:
// the event's id and the field's name are associated data.
type Sealer func(subject, eventID, field, text string) (ciphertext string, err error)

// Opener decrypts what a Sealer made; false when the subject's key was erased.
type Opener func(subject, eventID, field, ciphertext string) (text string, ok bool, err error)

// Encode gives the body that is stored: canonical JSON (Go's encoder, HTML
// escaping off), personal fields sealed.
func Encode(e Event, eventID string, seal Sealer) ([]byte, error) {
	e, err := mapPersonal(e, func(field string, p Personal) (Personal, error) {
		if p.Sealed() {
			return p, nil
		}
		c, err := seal(p.Subject, eventID, field, p.Text)
		return Personal{Subject: p.Subject, sealed: c}, err
	})
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", TypeOf(e), err)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("encode %s: %w", TypeOf(e), err)
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// Decode reads a stored body into the current Go type, upcasting older schema
// versions; body stays as it is. Personal fields stay sealed; see Open.
func Decode(eventType string, schemaVersion int, body []byte) (Event, error) {
	return registry.decode(eventType, schemaVersion, body)
}

func (c codec) decode(eventType string, schemaVersion int, body []byte) (Event, error) {
	en, ok := c[eventType]
	if !ok {
		return nil, &UnknownTypeError{Type: eventType}
	}
	if schemaVersion < 1 || schemaVersion > en.version() {
		return nil, &UnknownTypeError{Type: eventType, SchemaVersion: schemaVersion}
	}
	for i, up := range en.upcasts[schemaVersion-1:] {
		var err error
		if body, err = up(bytes.Clone(body)); err != nil { // a clone: what is stored is shared with other readers
			return nil, fmt.Errorf("read schema version %d of %s as %d: %w", schemaVersion+i, eventType, schemaVersion+i+1, err)
		}
	}
	v := reflect.New(en.goType)
	if err := json.Unmarshal(body, v.Interface()); err != nil {
		return nil, fmt.Errorf("decode %s: %w", eventType, err)
	}
	return v.Elem().Interface().(Event), nil
}

// Open decrypts the personal fields of e. Erased ones stay empty.
func Open(e Event, eventID string, open Opener) (Event, error) {
	return mapPersonal(e, func(field string, p Personal) (Personal, error) {
		if p.sealed == "" {
			return p, nil
		}
		text, ok, err := open(p.Subject, eventID, field, p.sealed)
		if err == nil && ok {
			p.Text = text
		}
		return p, err
	})
}

var personalType = reflect.TypeFor[Personal]()

// mapPersonal gives a copy of e with every Personal field of the top level mapped.
func mapPersonal(e Event, f func(field string, p Personal) (Personal, error)) (Event, error) {
	t := reflect.TypeOf(e)
	v := reflect.New(t).Elem()
	v.Set(reflect.ValueOf(e))
	var errs []error
	for i := range t.NumField() {
		if t.Field(i).Type != personalType {
			continue
		}
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		p, err := f(name, v.Field(i).Interface().(Personal))
		errs = append(errs, err)
		v.Field(i).Set(reflect.ValueOf(p))
	}
	return v.Interface().(Event), errors.Join(errs...)
}

// Decode gives the typed event of a recorded one.
func (r Recorded) Decode() (Event, error) { return Decode(r.Type, r.SchemaVersion, r.Body) }

// WorkerItem reads one item of a worker's report: only the types that its
// class may report are accepted.
func WorkerItem(class string, eventType string, data []byte) (Event, error) {
	if !slices.Contains(reportable[class], eventType) {
		return nil, fmt.Errorf("a %s worker may not report %q", class, eventType)
	}
	return Decode(eventType, SchemaVersion(eventType), data)
}

// reportable says which events a class of worker may report.
var reportable = map[string][]string{
	"build": {
		"SourceFetched", "BuildArgsFiltered", "LayerCached", "LayerBuilt", "ImageBuilt", "ImagePushRetried", "ImagePushed",
		"ImageTagged", "WorkspaceRemoved", "BuildSucceeded", "BuildFailed", "AttemptLost",
	},
	"deploy": {
		"ManifestsApplied", "RolloutProgressed", "DeploymentSucceeded", "DeploymentFailed", "RolledBack", "RollbackFailed", "AttemptLost",
	},
}
