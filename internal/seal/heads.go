package seal

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
)

// HeadSigner gives the public keys of tree heads, the newest last, and what signs with that one (Ed25519). It looks for
// keys that other processes have made, so that all sign with the same one.
func (k *Keyring) HeadSigner(ctx context.Context) (public []ed25519.PublicKey, sign func(text []byte) ([]byte, error), err error) {
	if err := k.load(ctx); err != nil {
		return nil, nil, fmt.Errorf("load the keys of tree heads: %w", err)
	}
	var newest ed25519.PrivateKey
	for _, key := range k.of(TreeHeads) {
		seed, err := hkdf.Key(sha256.New, key, nil, "pipeops/tree-head/1", ed25519.SeedSize)
		if err != nil {
			return nil, nil, fmt.Errorf("derive a key of tree heads: %w", err)
		}
		newest = ed25519.NewKeyFromSeed(seed)
		public = append(public, newest.Public().(ed25519.PublicKey))
	}
	if newest == nil {
		return nil, nil, errors.New("there is no key for tree heads")
	}
	return public, func(text []byte) ([]byte, error) { return ed25519.Sign(newest, text), nil }, nil
}
