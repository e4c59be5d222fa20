package seal

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tink-crypto/tink-go/v2/daead/subtle"
)

const (
	subjectsFor = 10 * time.Second // how long an erased key may still open fields in another process
	subjectsMax = 4096             // persons whose keys are kept in memory
)

// SubjectKey is one key of a person as it is stored. Sealed is empty once it was erased.
type SubjectKey struct {
	Subject string
	Number  int // from 1; never used again
	KeyID   string
	Sealed  []byte
	Made    time.Time // when it was made; the store tells
}

// SubjectStore keeps persons' keys. internal/records implements it.
type SubjectStore interface {
	// SubjectKeys gives all keys of a person by number, erased ones too.
	SubjectKeys(ctx context.Context, subject string) ([]SubjectKey, error)
	// AddSubjectKey keeps a key, or the one that is there already under its number.
	AddSubjectKey(ctx context.Context, key SubjectKey) error
	// EraseSubject makes all keys of a person unreadable for ever.
	EraseSubject(ctx context.Context, subject string) error
}

// Subjects encrypts personal fields of events, each person's under a key of their own, deterministically (AES-SIV):
// the same field of the same event has the same bytes on a retry. Without the key the events stay as they are, and
// provable, but nobody can read the fields. Its methods may be called at the same time.
type Subjects struct {
	keyring *Keyring
	store   SubjectStore

	mu    sync.Mutex
	cache map[string]person
}

// person is what is known of one subject's keys, by number less one; nil: erased.
type person struct {
	keys   []*subtle.AESSIV
	loaded time.Time
}

// NewSubjects gives the encryption of personal fields.
func NewSubjects(keyring *Keyring, store SubjectStore) *Subjects {
	return &Subjects{keyring: keyring, store: store, cache: map[string]person{}}
}

// String keeps the keys out of logs.
func (s *Subjects) String() string { return "subjects of " + s.keyring.String() }

// SealField encrypts a field. Its form is "<number of the person's key>.<base64url>". A person's first field makes
// their key; so does the first one after an erasure.
func (s *Subjects) SealField(ctx context.Context, subject, eventID, field, plaintext string) (ciphertext string, err error) {
	p, err := s.person(ctx, subject)
	if err == nil && (len(p.keys) == 0 || p.keys[len(p.keys)-1] == nil) {
		p, err = s.addKey(ctx, subject, len(p.keys)+1)
	}
	if err != nil {
		return "", fmt.Errorf("key of subject %s: %w", subject, err)
	}
	number := len(p.keys)
	sealed, err := p.keys[number-1].EncryptDeterministically([]byte(plaintext), fieldData(eventID, field))
	if err != nil {
		return "", fmt.Errorf("seal field %s of event %s: %w", field, eventID, err)
	}
	return strconv.Itoa(number) + "." + base64.RawURLEncoding.EncodeToString(sealed), nil
}

// OpenField decrypts a field; ok is false when the person's key was erased.
func (s *Subjects) OpenField(ctx context.Context, subject, eventID, field, ciphertext string) (plaintext string, ok bool, err error) {
	head, text, _ := strings.Cut(ciphertext, ".")
	number, errNumber := strconv.Atoi(head)
	sealed, errText := base64.RawURLEncoding.DecodeString(text)
	if errNumber != nil || errText != nil || number < 1 {
		return "", false, fmt.Errorf("field %s of event %s is not of the form <number>.<base64url>", field, eventID)
	}
	p, err := s.person(ctx, subject)
	if err == nil && number > len(p.keys) {
		s.forget(subject) // another process may have made it just now
		p, err = s.person(ctx, subject)
	}
	if err != nil {
		return "", false, fmt.Errorf("key of subject %s: %w", subject, err)
	}
	if number > len(p.keys) || p.keys[number-1] == nil {
		return "", false, nil
	}
	opened, err := p.keys[number-1].DecryptDeterministically(sealed, fieldData(eventID, field))
	if err != nil {
		return "", false, fmt.Errorf("field %s of event %s was changed, or is another event's", field, eventID)
	}
	return string(opened), true, nil
}

// Erase destroys a person's keys: all their fields in all events are unreadable from now on, here at once, in other
// processes within seconds. A backup that holds the keys still holds the data: one that was made after since, when the
// first of them was. keys says how many the person has had, erased ones included: all of them are gone.
func (s *Subjects) Erase(ctx context.Context, subject string) (keys int, since time.Time, err error) {
	if err := s.store.EraseSubject(ctx, subject); err != nil {
		return 0, since, err
	}
	s.forget(subject)
	stored, err := s.store.SubjectKeys(ctx, subject)
	for _, k := range stored {
		if since.IsZero() {
			since = k.Made
		}
		if len(k.Sealed) == 0 {
			keys = k.Number
		}
	}
	return keys, since, err
}

func fieldData(eventID, field string) []byte { return []byte(eventID + "/" + field) }

func (s *Subjects) person(ctx context.Context, subject string) (person, error) {
	s.mu.Lock()
	p, ok := s.cache[subject]
	s.mu.Unlock()
	if ok && time.Since(p.loaded) < subjectsFor {
		return p, nil
	}
	p = person{loaded: time.Now()}
	stored, err := s.store.SubjectKeys(ctx, subject)
	if err != nil {
		return person{}, err
	}
	for _, k := range stored {
		aead, err := s.unwrap(ctx, k)
		if err != nil {
			return person{}, err
		}
		p.keys = append(p.keys, aead)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.cache) >= subjectsMax {
		clear(s.cache)
	}
	s.cache[subject] = p
	return p, nil
}

func (s *Subjects) forget(subject string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.cache, subject)
}

func (s *Subjects) unwrap(ctx context.Context, k SubjectKey) (*subtle.AESSIV, error) {
	if len(k.Sealed) == 0 {
		return nil, nil //nolint:nilnil // nil is an erased key
	}
	key, err := s.keyring.Open(ctx, SubjectKeys, subjectKeyAbout(k.Subject, k.Number), k.KeyID, k.Sealed)
	if err != nil {
		return nil, err
	}
	return subtle.NewAESSIV(key)
}

// addKey makes the next key and gives what is stored then: another process may have been faster.
func (s *Subjects) addKey(ctx context.Context, subject string, number int) (person, error) {
	id, sealed, err := s.keyring.Seal(SubjectKeys, subjectKeyAbout(subject, number), random(subtle.AESSIVKeySize))
	if err != nil {
		return person{}, err
	}
	if err := s.store.AddSubjectKey(ctx, SubjectKey{Subject: subject, Number: number, KeyID: id, Sealed: sealed}); err != nil {
		return person{}, err
	}
	s.forget(subject)
	p, err := s.person(ctx, subject)
	if err == nil && (len(p.keys) < number || p.keys[len(p.keys)-1] == nil) {
		return person{}, errors.New("it was erased while it was made")
	}
	return p, err
}

func subjectKeyAbout(subject string, number int) string { return subject + "/" + strconv.Itoa(number) }
