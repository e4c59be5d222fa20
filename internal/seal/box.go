package seal

import (
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/crypto/nacl/box"
)

// boxKeySize is that of X25519 keys, in bytes.
const boxKeySize = 32

// Ephemeral is a key pair of one claim: the secrets of its grant are sealed to it, and it goes when the job ends.
type Ephemeral struct {
	public, private *[boxKeySize]byte
}

// NewEphemeral makes a key pair.
func NewEphemeral() (*Ephemeral, error) {
	public, private, err := box.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an X25519 key: %w", err)
	}
	return &Ephemeral{public: public, private: private}, nil
}

// Public gives the public half, 32 bytes.
func (e *Ephemeral) Public() []byte { return e.public[:] }

// String keeps the private half out of logs.
func (e *Ephemeral) String() string { return "ephemeral key" }

// Open decrypts what was sealed To this key.
func (e *Ephemeral) Open(sealed []byte) ([]byte, error) {
	plaintext, ok := box.OpenAnonymous(nil, sealed, e.public, e.private)
	if !ok {
		return nil, errors.New("not sealed to this claim's key, or changed on the way")
	}
	return plaintext, nil
}

// To seals plaintext (NaCl anonymous box) so that only the holder of the X25519 key's private half can open it.
func To(publicKey, plaintext []byte) ([]byte, error) {
	if len(publicKey) != boxKeySize {
		return nil, fmt.Errorf("ephemeral key has %d bytes: an X25519 public key has %d", len(publicKey), boxKeySize)
	}
	sealed, err := box.SealAnonymous(nil, plaintext, (*[boxKeySize]byte)(publicKey), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("seal to an ephemeral key: %w", err)
	}
	return sealed, nil
}
