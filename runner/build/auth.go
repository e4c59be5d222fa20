package build

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"time"

	docker "github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"golang.org/x/crypto/nacl/sign"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// authority logs in for the daemon. BuildKit's own provider tells a token's owner by the registry's host alone, and the
// daemon then uses one tenant's token for another; ours is of the project and its credentials. Tokens are fetched here,
// so that lasting secrets stay out of the daemon wherever the registry knows tokens, and those for writing only for the
// repository of the build.
type authority struct {
	auth.UnimplementedAuthServer

	keychain   authn.Keychain
	project    string
	repository string // host/path
}

// seed makes the keys of this process' own.
var seed = func() []byte {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil { // never fails
		panic(err)
	}
	return b
}()

var _ session.Attachable = (*authority)(nil)

// Register implements session.Attachable.
func (a *authority) Register(s *grpc.Server) { auth.RegisterAuthServer(s, a) }

// Credentials implements auth.AuthServer; it is asked by the daemon where the registry wants user and password itself.
func (a *authority) Credentials(ctx context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	c, err := a.login(ctx, r.Host)
	if err != nil {
		return nil, err
	}
	user, secret := pair(c)
	return &auth.CredentialsResponse{Username: user, Secret: secret}, nil
}

// login is asked anew each time: credentials may be renewed during a long build.
func (a *authority) login(ctx context.Context, host string) (*authn.AuthConfig, error) {
	if host == dockerHub {
		host = name.DefaultRegistry
	}
	registry, err := name.NewRegistry(host)
	if err != nil {
		return nil, fmt.Errorf("log in to %s: %w", host, err)
	}
	login, err := authn.Resolve(ctx, a.keychain, registry)
	if err != nil {
		return nil, fmt.Errorf("log in to %s: %w", host, err)
	}
	c, err := authn.Authorization(ctx, login)
	if err != nil {
		return nil, fmt.Errorf("log in to %s: %w", host, err)
	}
	return c, nil
}

// dockerHub is where docker.io really lies.
const dockerHub = "registry-1.docker.io"

func pair(c *authn.AuthConfig) (user, secret string) {
	if c.IdentityToken != "" {
		return "", c.IdentityToken
	}
	return c.Username, c.Password
}

// FetchToken implements auth.AuthServer.
func (a *authority) FetchToken(ctx context.Context, r *auth.FetchTokenRequest) (*auth.FetchTokenResponse, error) {
	if err := a.mayHave(r.Scopes); err != nil {
		return nil, err
	}
	c, err := a.login(ctx, r.Host)
	if err != nil {
		return nil, err
	}
	if c.RegistryToken != "" {
		return &auth.FetchTokenResponse{Token: c.RegistryToken}, nil
	}
	user, secret := pair(c)
	options := docker.TokenOptions{Realm: r.Realm, Service: r.Service, Scopes: r.Scopes, Username: user, Secret: secret}
	if secret != "" {
		token, err := docker.FetchTokenWithOAuth(ctx, tokenClient, nil, "pipeops", options)
		if err == nil {
			return &auth.FetchTokenResponse{Token: token.AccessToken, ExpiresIn: int64(token.ExpiresInSeconds), IssuedAt: unix(token.IssuedAt)}, nil
		}
		// Many registries know only the older way; if both fail, the second says why.
	}
	token, err := docker.FetchToken(ctx, tokenClient, nil, options)
	if err != nil {
		return nil, fmt.Errorf("fetch token for %s: %w", r.Host, err)
	}
	return &auth.FetchTokenResponse{Token: token.Token, ExpiresIn: int64(token.ExpiresInSeconds), IssuedAt: unix(token.IssuedAt)}, nil
}

var tokenClient = &http.Client{Timeout: 30 * time.Second}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// mayHave refuses scopes beyond reading, except for the repository of the build.
func (a *authority) mayHave(scopes []string) error {
	_, path, _ := strings.Cut(a.repository, "/")
	for _, scope := range scopes {
		kind, rest, _ := strings.Cut(scope, ":")
		at := strings.LastIndexByte(rest, ':')
		if kind != "repository" || at < 0 || rest[:at] == path {
			continue
		}
		for action := range strings.SplitSeq(rest[at+1:], ",") {
			if action != "pull" {
				return status.Errorf(codes.PermissionDenied, "a build of %s may not %s in %s", a.repository, action, rest[:at])
			}
		}
	}
	return nil
}

// GetTokenAuthority implements auth.AuthServer.
func (a *authority) GetTokenAuthority(ctx context.Context, r *auth.GetTokenAuthorityRequest) (*auth.GetTokenAuthorityResponse, error) {
	key, err := a.key(ctx, r.Host, r.Salt)
	if err != nil {
		return nil, err
	}
	return &auth.GetTokenAuthorityResponse{PublicKey: key[32:]}, nil
}

// VerifyTokenAuthority implements auth.AuthServer.
func (a *authority) VerifyTokenAuthority(ctx context.Context, r *auth.VerifyTokenAuthorityRequest) (*auth.VerifyTokenAuthorityResponse, error) {
	key, err := a.key(ctx, r.Host, r.Salt)
	if err != nil {
		return nil, err
	}
	return &auth.VerifyTokenAuthorityResponse{Signed: sign.Sign(nil, r.Payload, (*[64]byte)(key))}, nil
}

// key is the same for the same project, host and credentials only.
func (a *authority) key(ctx context.Context, host string, salt []byte) (ed25519.PrivateKey, error) {
	c, err := a.login(ctx, host)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, seed)
	for _, part := range []string{string(salt), a.repository, a.project, host, c.Username, c.Password, c.IdentityToken, c.RegistryToken} {
		mac.Write(fmt.Appendf(nil, "%d:%s", len(part), part))
	}
	return ed25519.NewKeyFromSeed(mac.Sum(nil)), nil
}
