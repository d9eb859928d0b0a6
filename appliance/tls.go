package appliance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	selfSignedFor  = 825 * 24 * time.Hour // the longest that Apple's systems accept
	renewBefore    = 30 * 24 * time.Hour
	certCheckEvery = 5 * time.Second
)

// newTLSConfig returns what every HTTPS door of the box speaks: TLS 1.2 with authenticated encryption and forward secrecy, or 1.3.
func newTLSConfig(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: get,
	}
}

// pair is a certificate in two files, read again when they change. A pair that stops being readable or valid leaves the former one in use.
type pair struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]time.Time // modification times of current
	checked time.Time
}

func newPair(cert, key string, log *slog.Logger) (*pair, error) {
	p := &pair{cert: cert, key: key, log: log}
	return p, p.load()
}

// get is for tls.Config.GetCertificate.
func (p *pair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.checked) > certCheckEvery {
		p.checked = now
		if p.stamps() != p.stamp {
			p.reloadLocked()
		}
	}
	return p.current, nil
}

// reload reads the files at once.
func (p *pair) reload() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reloadLocked()
}

func (p *pair) reloadLocked() {
	if err := p.load(); err != nil {
		p.log.Error("certificate not reloaded", "file", p.cert, "err", err)
		return
	}
	p.log.Info("certificate loaded", "file", p.cert, "sha256", fingerprint(p.current), "until", p.current.Leaf.NotAfter)
}

func (p *pair) load() error {
	stamp := p.stamps()
	c, err := loadPair(p.cert, p.key)
	if err != nil {
		return err
	}
	p.current, p.stamp, p.checked = c, stamp, time.Now()
	return nil
}

func (p *pair) stamps() (s [2]time.Time) {
	for i, name := range []string{p.cert, p.key} {
		if info, err := os.Stat(name); err == nil {
			s[i] = info.ModTime()
		}
	}
	return s
}

func loadPair(cert, key string) (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	if c.Leaf == nil {
		return nil, errors.New("no certificate in " + cert)
	}
	return &c, nil
}

func loadRoots(file string) (*x509.CertPool, error) {
	src, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(src) {
		return nil, errors.New("no certificate in " + file)
	}
	return pool, nil
}

// fingerprint returns what a person compares when a client shows the certificate for the first time.
func fingerprint(c *tls.Certificate) string {
	sum := sha256.Sum256(c.Leaf.Raw)
	parts := make([]string, len(sum))
	for i, b := range sum {
		parts[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(parts, ":")
}

// selfSigned returns the box's own certificate, which it keeps in dir, and makes one where there is none, where it soon ends, or where it
// lacks one of names.
func selfSigned(dir string, names []string, now time.Time, log *slog.Logger) (*pair, error) {
	cert, key := filepath.Join(dir, "self-signed.crt"), filepath.Join(dir, "self-signed.key")
	names = append(localNames(), names...)
	if old, err := loadPair(cert, key); err == nil && old.Leaf.NotAfter.After(now.Add(renewBefore)) &&
		!slices.ContainsFunc(names, func(n string) bool { return old.Leaf.VerifyHostname(n) != nil }) {
		return newPair(cert, key, log)
	}
	certPEM, keyPEM, err := makeCertificate(names, now)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// The key goes first: a certificate without its key would be of no use, the other way round it is made anew.
	for _, f := range []struct {
		name string
		data []byte
	}{{key, keyPEM}, {cert, certPEM}} {
		if err := writeFile(f.name, f.data); err != nil {
			return nil, err
		}
	}
	return newPair(cert, key, log)
}

func localNames() []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil && host != "" && host != "localhost" {
		names = append(names, host)
	}
	return names
}

func makeCertificate(names []string, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "cellgate " + names[len(names)-1]},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(selfSignedFor),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

// writeFile replaces a file by one with mode 0600, in one step and durably.
func writeFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
