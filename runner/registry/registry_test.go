package registry_test

import (
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	server "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/pipeops/pipeops/runner/registry"
)

// start gives a repository of a registry of the test's own.
func start(t *testing.T) (repository string, r registry.Registry) {
	t.Helper()
	s := httptest.NewServer(server.New(server.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://") + "/acme/app", registry.Registry{Keychain: authn.NewMultiKeychain()}
}

func image(t *testing.T, platform string) v1.Image {
	t.Helper()
	i, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	c, err := i.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture, _ = strings.Cut(platform, "/")
	if i, err = mutate.ConfigFile(i, c); err != nil {
		t.Fatal(err)
	}
	return i
}

// push pushes by digest.
func push(t *testing.T, repository string, taggable remote.Taggable, digest func() (v1.Hash, error)) string {
	t.Helper()
	d, err := digest()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(repository + "@" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	switch what := taggable.(type) {
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, what)
	case v1.Image:
		err = remote.Write(ref, what)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func TestImageIsDescribedAsTheRegistryHasIt(t *testing.T) {
	t.Parallel()
	repository, r := start(t)
	one := image(t, "linux/amd64")
	digest := push(t, repository, one, one.Digest)
	got, err := r.Describe(t.Context(), repository, digest)
	if err != nil || got.Reference != repository+"@"+digest || !slices.Equal(got.Platforms, []string{"linux/amd64"}) || got.SizeBytes < 2000 {
		t.Errorf("%+v, %v", got, err)
	}

	attestation := mutate.IndexAddendum{Add: image(t, "unknown/unknown"), Descriptor: v1.Descriptor{Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}}}
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image(t, "linux/arm64")}, mutate.IndexAddendum{Add: one}, attestation)
	digest = push(t, repository, index, index.Digest)
	several, err := r.Describe(t.Context(), repository, digest)
	if err != nil || !slices.Equal(several.Platforms, []string{"linux/amd64", "linux/arm64"}) || several.SizeBytes < 2*got.SizeBytes-500 {
		t.Errorf("%+v, %v", several, err)
	}
}

func TestTagIsSetOnceAndNeverMoves(t *testing.T) {
	t.Parallel()
	repository, r := start(t)
	first, second := image(t, "linux/amd64"), image(t, "linux/amd64")
	a, b := push(t, repository, first, first.Digest), push(t, repository, second, second.Digest)
	for range 2 { // the second time it is there already
		if got, err := r.Tag(t.Context(), repository, "v1", a); err != nil || got != repository+":v1" {
			t.Errorf("%q, %v", got, err)
		}
	}
	_, err := r.Tag(t.Context(), repository, "v1", b)
	var taken *registry.TakenError
	if !errors.As(err, &taken) || taken.Digest != a {
		t.Errorf("%v", err)
	}
}

func TestRefusalsTellTheirStatus(t *testing.T) {
	t.Parallel()
	repository, r := start(t)
	_, err := r.Tag(t.Context(), repository, "v1", "sha256:"+strings.Repeat("0", 64))
	var refused *registry.Error
	if !errors.As(err, &refused) || refused.Status != 404 {
		t.Errorf("%v", err)
	}
	if _, err = r.Tag(t.Context(), "127.0.0.1:1/app", "v1", "sha256:"+strings.Repeat("0", 64)); !errors.As(err, &refused) || refused.Status != 0 {
		t.Errorf("%v", err)
	}
}
