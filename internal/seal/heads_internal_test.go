package seal

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"path/filepath"
	"testing"
)

// Whoever keeps a public key elsewhere must find it again: how it follows from the stored key is for ever.
func TestAKeyOfTreeHeadsIsDerivedAsEver(t *testing.T) {
	t.Parallel()
	master, err := LoadMaster(filepath.Join(t.TempDir(), "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := encrypt(master.key, "key/tree-heads/1", bytes.Repeat([]byte{7}, keySize))
	if err != nil {
		t.Fatal(err)
	}
	store := &rows{Keyring: []WrappedKey{{Purpose: TreeHeads, Number: 1, MasterID: master.id, Wrapped: wrapped}}}
	keys, err := Open(t.Context(), master, store)
	if err != nil {
		t.Fatal(err)
	}
	public, sign, err := keys.HeadSigner(t.Context())
	if err != nil || len(public) != 1 {
		t.Fatalf("%d keys, %v", len(public), err)
	}
	const want = "8c9f0fe2653345d9d43fe30b4f4a33247643a5898954098cb14f127fd71e7cc4"
	if got := hex.EncodeToString(public[0]); got != want {
		t.Errorf("public key %s, want %s", got, want)
	}
	if id, err := keys.Rotate(t.Context(), TreeHeads); id != "tree-heads/2" || err != nil {
		t.Errorf("rotated to %s, %v", id, err)
	}
	again, signNew, err := keys.HeadSigner(t.Context())
	if err != nil || len(again) != 2 || !again[0].Equal(public[0]) {
		t.Fatalf("after the rotation: %x, %v", again, err)
	}
	for i, sign := range []func([]byte) ([]byte, error){sign, signNew} {
		signature, err := sign([]byte("text"))
		if err != nil || !ed25519.Verify(again[i], []byte("text"), signature) {
			t.Errorf("key %d: %v", i+1, err)
		}
	}
}
