// Package registry receives digests of pushed images, and hands back what the registry really has, and tags that name
// them; effects.
package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Registry talks to image registries; those on this machine over http. It may be used concurrently.
type Registry struct {
	Keychain authn.Keychain
}

// Image is an image as the registry has it.
type Image struct {
	Reference string // "ghcr.io/acme/shop@sha256:…"
	Digest    string
	Platforms []string // "linux/amd64", sorted
	SizeBytes int64    // compressed, all platforms together
}

// Error is a refusal of a registry.
type Error struct {
	Status  int // HTTP status; 0: it wasn't reached
	Message string
}

func (e *Error) Error() string { return e.Message }

// TakenError says that a tag names another image already. It won't be moved.
type TakenError struct{ Reference, Digest string }

func (e *TakenError) Error() string { return e.Reference + " names " + e.Digest + " already" }

// attestation marks children of an index that say something about an image and are none.
const attestation = "vnd.docker.reference.type"

// settle bounds how long a registry may take until it shows what was pushed.
var settle = remote.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 5}

func (r Registry) options(ctx context.Context, further ...remote.Option) []remote.Option {
	return append([]remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(r.Keychain)}, further...)
}

// Describe looks at a pushed image, and that all its parts are there.
func (r Registry) Describe(ctx context.Context, repository, digest string) (Image, error) {
	ref, err := name.NewDigest(repository + "@" + digest)
	if err != nil {
		return Image{}, fmt.Errorf("name of the image: %w", err)
	}
	options := r.options(ctx, remote.WithRetryBackoff(settle), remote.WithRetryStatusCodes(
		http.StatusNotFound, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
	))
	if _, err := remote.Head(ref, options...); err != nil {
		return Image{}, refusal(err)
	}
	got, err := remote.Get(ref, options...)
	if err != nil {
		return Image{}, refusal(err)
	}
	image := Image{Reference: repository + "@" + digest, Digest: digest, SizeBytes: got.Size}
	if !got.MediaType.IsIndex() {
		one, err := got.Image()
		if err != nil {
			return Image{}, refusal(err)
		}
		return image, image.add(one)
	}
	index, err := got.ImageIndex()
	if err != nil {
		return Image{}, refusal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return Image{}, refusal(err)
	}
	for _, child := range manifest.Manifests {
		if child.Annotations[attestation] != "" || !child.MediaType.IsImage() {
			continue
		}
		one, err := index.Image(child.Digest)
		if err != nil {
			return Image{}, refusal(err)
		}
		image.SizeBytes += child.Size
		if err := image.add(one); err != nil {
			return Image{}, err
		}
	}
	slices.Sort(image.Platforms)
	return image, nil
}

// add counts the image of one platform.
func (i *Image) add(one v1.Image) error {
	manifest, err := one.Manifest()
	if err != nil {
		return refusal(err)
	}
	config, err := one.ConfigFile()
	if err != nil {
		return refusal(err)
	}
	i.Platforms = append(i.Platforms, config.Platform().String())
	i.SizeBytes += manifest.Config.Size
	for _, layer := range manifest.Layers {
		i.SizeBytes += layer.Size
	}
	return nil
}

// Tag lets a tag name the image, and gives its reference. A tag that names it already is fine; one that names another
// is left alone: *TakenError.
func (r Registry) Tag(ctx context.Context, repository, tag, digest string) (reference string, err error) {
	ref, err := name.NewTag(repository + ":" + tag)
	if err != nil {
		return "", fmt.Errorf("name of the image: %w", err)
	}
	there, err := r.named(ctx, ref)
	switch {
	case err != nil:
		return "", err
	case there == digest:
		return repository + ":" + tag, nil
	case there != "":
		return "", &TakenError{ref.Name(), there}
	}
	got, err := remote.Get(ref.Digest(digest), r.options(ctx)...)
	if err != nil {
		return "", refusal(err)
	}
	if err := remote.Tag(ref, got, r.options(ctx)...); err != nil {
		return "", refusal(err)
	}
	if there, err = r.named(ctx, ref); err != nil {
		return "", err
	}
	if there != digest {
		return "", &TakenError{ref.Name(), there}
	}
	return repository + ":" + tag, nil
}

// named gives the digest that a tag names, empty when there is no such tag.
func (r Registry) named(ctx context.Context, ref name.Tag) (string, error) {
	d, err := remote.Head(ref, r.options(ctx)...)
	var refused *transport.Error
	if errors.As(err, &refused) && refused.StatusCode == http.StatusNotFound {
		return "", nil
	}
	if err != nil {
		return "", refusal(err)
	}
	return d.Digest.String(), nil
}

// refusal keeps the library's errors in here.
func refusal(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	e := &Error{Message: err.Error()}
	if refused, ok := errors.AsType[*transport.Error](err); ok {
		e.Status = refused.StatusCode
	}
	return e
}
