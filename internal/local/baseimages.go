package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Base images that EnsureBaseImages can make.
const (
	Busybox = "busybox" // busybox:stable
	Debian  = "debian"  // debian:bookworm, debian:bookworm-slim
	Golang  = "golang"  // golang:<major.minor> with the Go of this machine, on Debian, with git
)

// baseKey is the label that says what a base image was made from; with the same key it isn't made again.
const baseKey = "pipeops.base"

// EnsureBaseImages makes the named base images (all, if none is named) from this machine's own packages and pushes
// them into the registry, host:port over HTTP, under the names that Dockerfiles use (library/golang:1.26), so that a
// BuildKit with that mirror builds ordinary Dockerfiles on a machine that can't reach Docker Hub. Where Docker Hub
// answers it does nothing. They hold the machine's CA bundle, and golang the machine's own settings of GOPROXY,
// GOSUMDB and the like, if there are any. Takes a second for busybox and about a minute for the rest; the parts are
// kept in the cache folder.
func EnsureBaseImages(ctx context.Context, c Config, registry string, names ...string) error {
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	if dockerHubAnswers(ctx) {
		return nil
	}
	unlock, err := lock(ctx, filepath.Join(c.Cache, "images", "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if len(names) == 0 {
		names = []string{Busybox, Debian, Golang}
	}
	for _, image := range names {
		base, err := c.base(ctx, image)
		if err == nil {
			err = base.push(ctx, c, registry)
		}
		if err != nil {
			return fmt.Errorf("make base image %s, because Docker Hub doesn't answer: %w", image, err)
		}
	}
	return nil
}

func dockerHubAnswers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Second, errors.New("no answer within 2 s"))
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://registry-1.docker.io/v2/", http.NoBody)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close() //nolint:errcheck // only the status counts
	return response.StatusCode == http.StatusOK || response.StatusCode == http.StatusUnauthorized
}

// baseImage is a base image before it is made.
type baseImage struct {
	names  []string // repository:tag, below library/
	config v1.Config
	layers []layerFile
}

// layerFile makes one layer as a .tar.gz file in the cache folder, unless a file of that name is there.
type layerFile struct {
	name string
	make func(ctx context.Context, c Config, path string) error
}

func (c Config) base(ctx context.Context, image string) (baseImage, error) {
	path := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	switch image {
	case Busybox:
		layer, err := busyboxLayer()
		return baseImage{
			names: []string{"busybox:stable", "busybox:latest"}, layers: []layerFile{layer},
			config: v1.Config{Env: path, Cmd: []string{"sh"}},
		}, err
	case Debian:
		return baseImage{
			names: []string{"debian:bookworm", "debian:bookworm-slim"}, layers: []layerFile{debianLayer("ca-certificates")},
			config: v1.Config{Env: path, Cmd: []string{"bash"}},
		}, nil
	case Golang:
		return golangImage(ctx)
	}
	return baseImage{}, fmt.Errorf("no base image of that name; there are %s, %s, %s", Busybox, Debian, Golang)
}

// push makes and pushes the image unless the registry has it as it would be made now.
func (b baseImage) push(ctx context.Context, c Config, registry string) error {
	bundle, err := caBundle()
	if err != nil {
		return err
	}
	key := b.fullKey(bundle)
	if b.pushed(ctx, registry, key) {
		return nil
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	b.config.Labels = map[string]string{baseKey: key}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: b.config, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		return err
	}
	layers := append(slices.Clone(b.layers), certificatesLayer(bundle))
	for _, layer := range layers {
		path := filepath.Join(c.Cache, "images", layer.name+".tar.gz")
		if _, err := os.Stat(path); err != nil {
			if err := makeFile(path, func(path string) error { return layer.make(ctx, c, path) }); err != nil {
				return fmt.Errorf("layer %s: %w", layer.name, err)
			}
		}
		content, err := tarball.LayerFromFile(path, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return fmt.Errorf("read layer %s: %w", path, err)
		}
		if image, err = mutate.AppendLayers(image, content); err != nil {
			return err
		}
	}
	for _, reference := range b.names {
		c.Progress("pushing base image " + reference + " into the local registry")
		if err := pushImage(ctx, registry+"/library/"+reference, image); err != nil {
			return err
		}
	}
	return nil
}

func (b baseImage) fullKey(bundle []byte) string {
	hash := sha256.New()
	parts := slices.Concat(b.config.Env, b.names)
	for _, layer := range b.layers {
		parts = append(parts, layer.name)
	}
	hash.Write([]byte(strings.Join(parts, "\n")))
	hash.Write(bundle)
	return hex.EncodeToString(hash.Sum(nil))[:32]
}

func (b baseImage) pushed(ctx context.Context, registry, key string) bool {
	for _, reference := range b.names {
		parsed, err := name.ParseReference(registry+"/library/"+reference, name.Insecure)
		if err != nil {
			return false
		}
		image, err := remote.Image(parsed, remote.WithContext(ctx))
		if err != nil {
			return false
		}
		config, err := image.ConfigFile()
		if err != nil || config.Config.Labels[baseKey] != key {
			return false
		}
	}
	return true
}

func pushImage(ctx context.Context, reference string, image v1.Image) error {
	parsed, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(parsed, image, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push %s: %w", reference, err)
	}
	return nil
}

// caBundle reads the certificates that this machine trusts: a company's own CA must count inside of builds, too.
func caBundle() ([]byte, error) {
	places := []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"}
	for _, place := range append([]string{os.Getenv("SSL_CERT_FILE")}, places...) {
		if bundle, err := os.ReadFile(place); err == nil { //nolint:gosec // the user's own setting
			return bundle, nil
		}
	}
	return nil, &MissingError{What: "a bundle of CA certificates (" + strings.Join(places, ", ") + ")", Fix: "apt-get install ca-certificates"}
}

// makeFile gives the file its name only when it is whole.
func makeFile(path string, fill func(path string) error) error {
	fresh := path + ".new"
	if err := fill(fresh); err != nil {
		return errors.Join(err, ignoring(os.Remove(fresh), os.ErrNotExist))
	}
	return os.Rename(fresh, path)
}
