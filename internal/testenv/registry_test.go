package testenv_test

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/pipeops/pipeops/internal/testenv"
)

func TestRegistryGivesBackWhatWasPushed(t *testing.T) {
	t.Parallel()
	reference, err := name.ParseReference(testenv.Registry(t) + "/testenv/empty:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(reference, empty.Image, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Head(reference, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if want, err := empty.Image.Digest(); err != nil || got.Digest != want {
		t.Errorf("digest %s, want %s (%v)", got.Digest, want, err)
	}
}
