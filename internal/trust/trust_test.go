package trust_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"cellgate/internal/trust"
)

// pair makes a certificate for localhost that signs itself.
func pair(t *testing.T, change func(*x509.Certificate)) (cert tls.Certificate, ca, pin string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), "sha256:" + hex.EncodeToString(sum[:])
}

// greet makes a client with o and a server with cert shake hands, and returns what the client says of it.
func greet(t *testing.T, o trust.Options, server *tls.Config) error {
	t.Helper()
	c, err := trust.Config(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // net.Pipe has no buffer: two who both want to say something would wait for each other
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if b, err := l.Accept(); err == nil {
			_ = tls.Server(b, server).HandshakeContext(ctx)
			b.Close()
		}
	}()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	err = tls.Client(a, c).HandshakeContext(ctx)
	a.Close()
	<-done
	return err
}

// B04: who is not vouched for is not believed, and the error says what to do.
func TestB04Trust(t *testing.T) {
	t.Parallel()
	good, ca, pin := pair(t, nil)
	_, otherCA, otherPin := pair(t, nil)
	expired, expiredCA, expiredPin := pair(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	stranger, strangerCA, strangerPin := pair(t, func(c *x509.Certificate) { c.DNSNames = []string{"elsewhere.example.org"} })
	tests := []struct {
		name   string
		cert   tls.Certificate
		o      trust.Options
		refuse string // words of the explained error, "" where it is believed
	}{
		{"signed by nobody known", good, trust.Options{}, "tlsPin: " + pin},
		{"authority named", good, trust.Options{CA: ca}, ""},
		{"another authority named", good, trust.Options{CA: otherCA}, "option ca"},
		{"pinned", good, trust.Options{Pin: pin}, ""},
		{"pinned in other letters", good, trust.Options{Pin: " SHA256:" + strings.ToUpper(colons(pin[7:])) + "\n"}, ""},
		{"another pinned", good, trust.Options{Pin: otherPin}, "change the option tlsPin"},
		{"another pinned, authority named", good, trust.Options{Pin: otherPin, CA: ca}, "it is " + pin},
		{"expired", expired, trust.Options{CA: expiredCA}, "expired"},
		{"expired and pinned", expired, trust.Options{Pin: expiredPin}, ""},
		{"wrong name", stranger, trust.Options{CA: strangerCA}, "elsewhere.example.org"},
		{"wrong name and pinned", stranger, trust.Options{Pin: strangerPin}, ""},
		{"insecure", good, trust.Options{Insecure: true}, ""},
		{"insecure, and another pinned", good, trust.Options{Insecure: true, Pin: otherPin}, "not the pinned one"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.o.Host = "localhost"
			err := greet(t, test.o, &tls.Config{Certificates: []tls.Certificate{test.cert}})
			if test.refuse == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			told := trust.Explain(err)
			if err == nil || !trust.Is(err) || !errors.Is(told, err) && !trust.Is(told) || !strings.Contains(told.Error(), test.refuse) {
				t.Errorf("got %v", told)
			}
		})
	}
}

func colons(digits string) string {
	var all []string
	for ; digits != ""; digits = digits[2:] {
		all = append(all, digits[:2])
	}
	return strings.Join(all, ":")
}

// TLS 1.1 is never spoken, whatever is asked for.
func TestTrustVersions(t *testing.T) {
	t.Parallel()
	good, _, pin := pair(t, nil)
	old := &tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	if err := greet(t, trust.Options{Host: "localhost", Pin: pin, Minimum: tls.VersionTLS10}, old); err == nil {
		t.Error("TLS 1.1 was spoken")
	} else if trust.Is(err) || trust.Explain(err) != err {
		t.Errorf("that is not about a certificate: %v", trust.Explain(err))
	}
	only := &tls.Config{Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12}
	if err := greet(t, trust.Options{Host: "localhost", Pin: pin, Minimum: tls.VersionTLS13}, only); err == nil {
		t.Error("TLS 1.2 was spoken where 1.3 is the least")
	}
	if err := greet(t, trust.Options{Host: "localhost", Pin: pin, Maximum: tls.VersionTLS12}, &tls.Config{Certificates: []tls.Certificate{good}}); err != nil {
		t.Error(err)
	}
}

func TestTrustConfig(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]trust.Options{
		"no PEM": {CA: "here is my certificate"}, "a key": {CA: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
		"no digest": {Pin: "sha256:"}, "another digest": {Pin: "md5:d41d8cd98f00b204e9800998ecf8427e"}, "a short one": {Pin: "sha256:d41d8cd98f00b204e9800998ecf8427e"},
		"no kind": {Pin: strings.Repeat("ab", 32)}, "no hex": {Pin: "sha256:" + strings.Repeat("zz", 32)}, "a long one": {Pin: "sha256:" + strings.Repeat("ab", 33)},
	} {
		if _, err := trust.Config(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if c, err := trust.Config(trust.Options{Host: "h"}); err != nil || c.InsecureSkipVerify || c.MinVersion != tls.VersionTLS12 || c.ServerName != "h" {
		t.Errorf("by default: %+v, %v", c, err)
	}
}

func TestExplainOthers(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("dial: %w", net.ErrClosed)
	if got := trust.Explain(err); got != err || trust.Is(err) {
		t.Errorf("got %v", got)
	}
	if trust.Explain(nil) != nil || trust.Is(nil) {
		t.Error("no error is explained")
	}
}
