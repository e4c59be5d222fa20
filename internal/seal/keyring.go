// Package seal receives plaintext and keys from handlers and internal/records, and hands back ciphertext that may lie
// in the database, in events and on the wire; effects (the master key's file; keys through interfaces).
//
// One master key wraps one data key per purpose; each data key has a number, so that a purpose can get a new one while
// old values stay readable. A value is sealed for one use (its purpose and what it is about) and opens for no other.
// Personal fields have a key per person, which can be erased (Subjects). What goes to a worker is sealed to its claim's
// own key (To). Nothing here logs.
//
//	master, err := seal.LoadMaster(filepath.Join(home, "master.key"))
//	keys, err := seal.Open(ctx, master, records.NewKeys(pool))
//	keyID, sealed, err := keys.Seal(seal.Deliveries, deliveryID, raw)
package seal

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/pipeops/pipeops/domain"
)

// Purpose is what a data key is for. The text is stored.
type Purpose string

// Purposes whose keys seal, then those whose keys only make HMACs, then those that sign.
const (
	Deliveries    Purpose = "deliveries"     // raw deliveries, about: the delivery's id
	Secrets       Purpose = "secrets"        // secrets of projects, about: project, name, version
	SubjectKeys   Purpose = "subject-keys"   // keys of persons, about: subject and number
	Actors        Purpose = "actors"         // opaque ids of persons: a new key would give everybody a new id
	AttemptTokens Purpose = "attempt-tokens" // tokens that workers show with reports
	APITokens     Purpose = "api-tokens"     // bearer tokens at rest
	Fingerprints  Purpose = "fingerprints"   // of secrets and deliveries, to tell equal from different
	TreeHeads     Purpose = "tree-heads"     // Ed25519 keys that sign the log's tree heads are derived from them
)

// Purposes lists all of them.
func Purposes() []Purpose {
	return []Purpose{Deliveries, Secrets, SubjectKeys, Actors, AttemptTokens, APITokens, Fingerprints, TreeHeads}
}

// WrappedKey is a data key as it is stored.
type WrappedKey struct {
	Purpose  Purpose
	Number   int    // from 1; the highest of a purpose seals
	MasterID string // of the master key that wrapped it
	Wrapped  []byte
}

// KeyStore keeps wrapped keys. internal/records implements it.
type KeyStore interface {
	// Keys gives all of them.
	Keys(ctx context.Context) ([]WrappedKey, error)
	// AddKey keeps a key, or the one that is there already under its purpose and number.
	AddKey(ctx context.Context, key WrappedKey) error
}

// Keyring seals and opens. Its methods may be called at the same time.
type Keyring struct {
	master *Master
	store  KeyStore

	mu   sync.RWMutex
	keys map[Purpose][][]byte // by number less one
}

// String keeps the keys out of logs.
func (k *Keyring) String() string { return "keyring of " + k.master.String() }

// Open loads the data keys, and makes those of purposes that have none.
func Open(ctx context.Context, master *Master, store KeyStore) (*Keyring, error) {
	k := &Keyring{master: master, store: store}
	if err := k.load(ctx); err != nil {
		return nil, err
	}
	made := false
	for _, purpose := range Purposes() {
		if len(k.keys[purpose]) > 0 {
			continue
		}
		if err := k.make(ctx, purpose, 1); err != nil {
			return nil, err
		}
		made = true
	}
	if made { // another process may have been faster: what is stored counts
		return k, k.load(ctx)
	}
	return k, nil
}

func (k *Keyring) make(ctx context.Context, purpose Purpose, number int) error {
	wrapped, err := encrypt(k.master.key, "key/"+keyID(purpose, number), random(keySize))
	if err != nil {
		return fmt.Errorf("make key %s: %w", keyID(purpose, number), err)
	}
	return k.store.AddKey(ctx, WrappedKey{Purpose: purpose, Number: number, MasterID: k.master.id, Wrapped: wrapped})
}

func (k *Keyring) load(ctx context.Context) error {
	stored, err := k.store.Keys(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(stored, func(a, b WrappedKey) int { return a.Number - b.Number })
	keys := map[Purpose][][]byte{}
	for _, w := range stored {
		id := keyID(w.Purpose, w.Number)
		if w.MasterID != k.master.id {
			return fmt.Errorf("key %s is wrapped by master key %s, but this process has %s: give the master key's file "+
				"that this database was set up with", id, w.MasterID, k.master.id)
		}
		if w.Number != len(keys[w.Purpose])+1 {
			return fmt.Errorf("key %s is there, but not the one before it", id)
		}
		key, err := decrypt(k.master.key, "key/"+id, w.Wrapped)
		if err != nil {
			return fmt.Errorf("unwrap key %s: %w", id, err)
		}
		keys[w.Purpose] = append(keys[w.Purpose], key)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = keys
	return nil
}

// Rotate makes the next key of a purpose and gives its id: it is used from now on, the ones before it stay readable.
// Other processes go on with the one before until they meet the new one, or start again.
func (k *Keyring) Rotate(ctx context.Context, purpose Purpose) (id string, err error) {
	if err := k.load(ctx); err != nil {
		return "", err
	}
	if err := k.make(ctx, purpose, len(k.of(purpose))+1); err != nil {
		return "", err
	}
	err = k.load(ctx)
	return keyID(purpose, len(k.of(purpose))), err
}

// Seal encrypts what is about something (an id, or several joined by "/") for a purpose. The key's id is
// stored beside it.
func (k *Keyring) Seal(purpose Purpose, about string, plaintext []byte) (id string, sealed []byte, err error) {
	keys := k.of(purpose)
	id = keyID(purpose, len(keys))
	sealed, err = encrypt(keys[len(keys)-1], use(purpose, about), plaintext)
	if err != nil {
		return "", nil, fmt.Errorf("seal %s %s: %w", purpose, about, err)
	}
	return id, sealed, nil
}

// Open decrypts what Seal made for the same purpose and the same thing.
func (k *Keyring) Open(ctx context.Context, purpose Purpose, about, id string, sealed []byte) ([]byte, error) {
	key, err := k.find(ctx, purpose, id)
	if err != nil {
		return nil, fmt.Errorf("open %s %s: %w", purpose, about, err)
	}
	plaintext, err := decrypt(key, use(purpose, about), sealed)
	if err != nil {
		return nil, fmt.Errorf("open %s %s, sealed with key %s: %w", purpose, about, id, err)
	}
	return plaintext, nil
}

func use(purpose Purpose, about string) string { return string(purpose) + "/" + about }

func keyID(purpose Purpose, number int) string { return string(purpose) + "/" + strconv.Itoa(number) }

func (k *Keyring) of(purpose Purpose) [][]byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.keys[purpose]
}

// find gives the key of that id; one that another process has made since is loaded.
func (k *Keyring) find(ctx context.Context, purpose Purpose, id string) ([]byte, error) {
	text, ok := strings.CutPrefix(id, string(purpose)+"/")
	number, err := strconv.Atoi(text)
	if !ok || err != nil || number < 1 {
		return nil, fmt.Errorf("%q is no key for %s", id, purpose)
	}
	if number > len(k.of(purpose)) {
		if err := k.load(ctx); err != nil {
			return nil, err
		}
	}
	keys := k.of(purpose)
	if number > len(keys) {
		return nil, fmt.Errorf("key %s is gone", id)
	}
	return keys[number-1], nil
}

// MAC gives the HMAC-SHA256 of parts, in hex, under the newest key of the purpose: the same parts, the same text.
func (k *Keyring) MAC(purpose Purpose, parts ...string) string {
	keys := k.of(purpose)
	return mac(keys[len(keys)-1], parts)
}

// MACs gives it under every key of the purpose, the newest first: to find what an older key has made.
func (k *Keyring) MACs(purpose Purpose, parts ...string) (all []string) {
	for _, key := range slices.Backward(k.of(purpose)) {
		all = append(all, mac(key, parts))
	}
	return all
}

// Fingerprint tells equal deliveries to a project from different ones, and nothing about them to who lacks the key: 64
// hex digits. It is stored for ever and compared with what was stored, so it is always made under the purpose's first key.
func (k *Keyring) Fingerprint(project domain.ProjectID, raw []byte) string {
	return mac(k.of(Fingerprints)[0], []string{"delivery", string(project), string(raw)})
}

// mac puts its length before each part, so that no two lists of parts read the same.
func mac(key []byte, parts []string) string {
	h := hmac.New(sha256.New, key)
	for _, part := range parts {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part)))) //nolint:gosec // a delivery at most, 25 MiB
		h.Write([]byte(part))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Actor is the opaque id of a person at a provider ("github", "octocat"): "act_" and 32 hex digits.
func (k *Keyring) Actor(provider, login string) string {
	return "act_" + k.MAC(Actors, provider, login)[:32]
}

// AttemptToken is what the worker shows that was granted the attempt. It can be checked without being stored.
func (k *Keyring) AttemptToken(attempt domain.AttemptID, incarnation string) string {
	return k.MAC(AttemptTokens, string(attempt), incarnation)
}

// CheckAttemptToken says whether the token is of this attempt and this start of the worker.
func (k *Keyring) CheckAttemptToken(attempt domain.AttemptID, incarnation, token string) bool {
	for _, want := range k.MACs(AttemptTokens, string(attempt), incarnation) {
		if hmac.Equal([]byte(want), []byte(token)) {
			return true
		}
	}
	return false
}
