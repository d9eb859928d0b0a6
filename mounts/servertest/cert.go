package servertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// Cert is a certificate of a server with its key, and the authority that signed it.
type Cert struct {
	CertFile, KeyFile, BothFile string // PEM
	CA                          string // PEM of the authority
}

// CertOptions make a certificate what it should not be.
type CertOptions struct {
	Host    string // "127.0.0.1" and "localhost" when empty
	Expired bool
}

// NewCert makes an authority and a certificate signed by it.
func NewCert(t testing.TB, opt CertOptions) Cert {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test server"}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if opt.Host != "" {
		leaf.DNSNames, leaf.IPAddresses = []string{opt.Host}, nil
	}
	if opt.Expired {
		leaf.NotAfter = now.Add(-time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	dir := Dir(t)
	cert, keyPEM := encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)
	return Cert{
		CertFile: Write(t, filepath.Join(dir, "cert.pem"), cert), KeyFile: Write(t, filepath.Join(dir, "key.pem"), keyPEM),
		BothFile: Write(t, filepath.Join(dir, "both.pem"), cert+keyPEM), CA: encode("CERTIFICATE", caDER),
	}
}
