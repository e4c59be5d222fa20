package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const keySize = 32

// Master wraps all data keys of an installation. Who has its file and the database can read everything; who has only
// one of them can read no secret.
type Master struct {
	id  string
	key []byte
}

// ID tells master keys apart without telling anything of them.
func (m *Master) ID() string { return m.id }

// String keeps the key out of logs.
func (m *Master) String() string { return "master key " + m.id }

// LoadMaster reads the master key from a file of mode 0600 (32 bytes in base64), and makes that file when it is
// missing. Several processes may do so at the same time.
func LoadMaster(path string) (*Master, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeMaster(path); err == nil {
			text, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("master key: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("master key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("master key %s can be read by others (mode %04o): type chmod 600 %s", path, info.Mode().Perm(), path)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != keySize {
		return nil, fmt.Errorf("master key %s does not hold %d bytes in base64: give the file that this database was set up with", path, keySize)
	}
	return newMaster(key), nil
}

func newMaster(key []byte) *Master {
	id := sha256.Sum256(append([]byte("pipeops/master/1/"), key...))
	return &Master{id: hex.EncodeToString(id[:8]), key: key}
}

// makeMaster puts a whole file in place at once, or leaves the one that somebody else has put there. It is on disk
// before anything is sealed with it: a lost master key loses every secret.
func makeMaster(path string) error {
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(folder, ".master-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) //nolint:errcheck // its name only; the file lives on under path
	_, err = file.WriteString(base64.StdEncoding.EncodeToString(random(keySize)) + "\n")
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	directory, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: it ends the program instead
	return b
}

// encrypt seals plaintext with AES-256-GCM under a key that is derived for this one use. The result is a random nonce
// of 12 bytes, then ciphertext and tag.
func encrypt(key []byte, use string, plaintext []byte) ([]byte, error) {
	aead, err := newAEAD(key, use)
	if err != nil {
		return nil, err
	}
	nonce := random(aead.NonceSize())
	return aead.Seal(nonce, nonce, plaintext, nil), nil
}

func decrypt(key []byte, use string, sealed []byte) ([]byte, error) {
	aead, err := newAEAD(key, use)
	if err != nil {
		return nil, err
	}
	if len(sealed) < aead.NonceSize() {
		return nil, errors.New("sealed value is cut short")
	}
	plaintext, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], nil)
	if err != nil {
		return nil, errors.New("sealed value was changed, or sealed for another use or with another key")
	}
	return plaintext, nil
}

func newAEAD(key []byte, use string) (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, key, nil, "pipeops/seal/1/"+use, keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
