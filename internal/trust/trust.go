// Package trust decides which certificate of a server is believed, and says what to do when one is not.
package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Options say whom to trust. The zero value trusts the authorities of the system.
type Options struct {
	Host     string // the name the certificate must be for
	CA       string // PEM of the authorities to trust instead of the system's
	Pin      string // "sha256:" and the hex digest of the one certificate to trust, whoever signed it and whatever name it bears
	Insecure bool   // trust everybody: for tests and for storage nobody else can reach
	Minimum  uint16 // lowest TLS version; 0 is 1.2
	Maximum  uint16 // highest, 0 is the latest
}

// Config returns the TLS configuration for o. It fails when CA or Pin make no sense.
func Config(o Options) (*tls.Config, error) {
	c := &tls.Config{ServerName: o.Host, MinVersion: max(o.Minimum, tls.VersionTLS12), MaxVersion: o.Maximum, InsecureSkipVerify: o.Insecure}
	if o.CA != "" {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM([]byte(o.CA)) {
			return nil, errors.New("ca holds no certificate in PEM form")
		}
	}
	if o.Pin != "" {
		digest, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(o.Pin)), "sha256:")
		pin, err := hex.DecodeString(strings.ReplaceAll(digest, ":", ""))
		if !ok || err != nil || len(pin) != sha256.Size {
			return nil, errors.New(`tlsPin must be "sha256:" and 64 hex digits`)
		}
		c.InsecureSkipVerify = true // the pin says more than a signature would
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("the server shows no certificate")
			}
			have := sha256.Sum256(s.PeerCertificates[0].Raw)
			if !bytes.Equal(have[:], pin) {
				return &PinError{Have: "sha256:" + hex.EncodeToString(have[:])}
			}
			return nil
		}
	}
	return c, nil
}

// PinError says that the server's certificate is not the pinned one.
type PinError struct{ Have string }

// Error says what the certificate is.
func (e *PinError) Error() string {
	return "the server's certificate is not the pinned one: it is " + e.Have
}

// Explain returns err with what to do about it when it is about a certificate, and err itself otherwise.
func Explain(err error) error {
	var pin *PinError
	if errors.As(err, &pin) {
		return fmt.Errorf("%w; if the server was given a new one on purpose, change the option tlsPin", err)
	}
	var verify *tls.CertificateVerificationError
	if !errors.As(err, &verify) {
		return err
	}
	how := "name its authority in the option ca"
	if len(verify.UnverifiedCertificates) > 0 {
		sum := sha256.Sum256(verify.UnverifiedCertificates[0].Raw)
		how += ", or trust this very certificate with tlsPin: sha256:" + hex.EncodeToString(sum[:]) + ", once somebody has compared it at the server"
	}
	return fmt.Errorf("%w; %s", err, how)
}

// Is reports whether err is about a certificate that is not believed.
func Is(err error) bool {
	var pin *PinError
	var verify *tls.CertificateVerificationError
	return errors.As(err, &pin) || errors.As(err, &verify)
}
