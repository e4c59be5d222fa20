package local

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is the local cluster's folder of certificates and keys, signed by a CA of its own; keys have mode 0600.
type pki struct{ folder string }

const validity = 10 * 365 * 24 * time.Hour

// ensure makes what isn't there: the CA, the API server's certificate, its client certificate towards the kubelet
// (logs and exec need it), the kubelet's certificate, and the key that signs service account tokens.
func (p pki) ensure(serverNames []string, serverAddresses []net.IP, nodeAddress net.IP) error {
	if err := os.MkdirAll(p.folder, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(p.path("service-accounts.pub")); err == nil { // written last
		return nil
	}
	authority := &x509.Certificate{
		Subject: pkix.Name{CommonName: "pipeops local cluster"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	caKey, err := p.issue("ca", authority, authority, nil)
	if err != nil {
		return err
	}
	leaves := map[string]*x509.Certificate{
		"apiserver": {
			Subject: pkix.Name{CommonName: "kube-apiserver"}, DNSNames: serverNames, IPAddresses: serverAddresses,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		},
		"apiserver-kubelet-client": {
			Subject:     pkix.Name{Organization: []string{"system:masters"}, CommonName: "apiserver-kubelet-client"},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		},
		"kubelet": {
			Subject: pkix.Name{CommonName: "kubelet"}, IPAddresses: []net.IP{nodeAddress},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		},
	}
	for name, leaf := range leaves {
		leaf.KeyUsage = x509.KeyUsageDigitalSignature
		if _, err := p.issue(name, leaf, authority, caKey); err != nil {
			return err
		}
	}
	return p.signingKey()
}

// issue writes <name>.key and <name>.crt; without a signer the certificate signs itself.
func (p pki) issue(name string, certificate, parent *x509.Certificate, signer crypto.Signer) (crypto.Signer, error) {
	key, err := p.key(name)
	if err != nil {
		return nil, err
	}
	if signer == nil {
		signer = key
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	certificate.SerialNumber = serial
	certificate.NotBefore, certificate.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(validity)
	der, err := x509.CreateCertificate(rand.Reader, certificate, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("issue certificate %s: %w", name, err)
	}
	return key, p.write(name+".crt", "CERTIFICATE", der)
}

func (p pki) signingKey() error {
	key, err := p.key("service-accounts")
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return p.write("service-accounts.pub", "PUBLIC KEY", der)
}

func (p pki) key(name string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, p.write(name+".key", "EC PRIVATE KEY", der)
}

func (p pki) write(name, kind string, der []byte) error {
	return writeFile(p.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func (p pki) path(name string) string { return filepath.Join(p.folder, name) }

// pool is the CA as a client's root of trust.
func (p pki) pool() (*x509.CertPool, error) {
	content, err := os.ReadFile(p.path("ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil, errors.New("no certificate in " + p.path("ca.crt"))
	}
	return pool, nil
}
