package appliance

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"go.uber.org/zap"
)

// acme gets certificates from an authority, keeps them in the data folder and renews them.
type acme struct {
	domains []string
	cache   *certmagic.Cache
	magic   *certmagic.Config
	issuer  *certmagic.ACMEIssuer
}

func newACME(c *TLS, dir string, log *slog.Logger) (*acme, error) {
	a := &acme{domains: c.Domains}
	// certmagic logs to zap only; what matters comes as events.
	a.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return a.magic, nil },
		Logger:           zap.NewNop(),
	})
	a.magic = certmagic.New(a.cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: filepath.Join(dir, "acme")},
		Logger:  zap.NewNop(),
		OnEvent: func(_ context.Context, event string, data map[string]any) error {
			switch event {
			case "cert_obtained":
				log.Info("certificate obtained", "name", data["identifier"], "renewal", data["renewal"])
			case "cert_failed":
				log.Error("certificate not obtained", "name", data["identifier"], "renewal", data["renewal"], "err", data["error"])
			}
			return nil
		},
	})
	template := certmagic.ACMEIssuer{CA: c.Directory, Email: c.Email, Agreed: true, Logger: zap.NewNop()}
	if c.Directory == "" {
		template.CA = certmagic.LetsEncryptProductionCA
	}
	template.TestCA = template.CA
	if c.Roots != "" {
		roots, err := loadRoots(c.Roots)
		if err != nil {
			return nil, err
		}
		template.TrustedRoots = roots
	}
	a.issuer = certmagic.NewACMEIssuer(a.magic, template)
	a.magic.Issuers = []certmagic.Issuer{a.issuer}
	return a, nil
}

func (a *acme) tlsConfig() *tls.Config {
	tc := newTLSConfig(a.magic.GetCertificate)
	tc.NextProtos = append(tc.NextProtos, acmez.ACMETLS1Protocol)
	return tc
}

// challenge answers the authority's questions over HTTP and leaves all else to next.
func (a *acme) challenge(next http.Handler) http.Handler { return a.issuer.HTTPChallengeHandler(next) }

// start begins to get and renew certificates, until ctx ends. The doors already listen: their ports answer the challenges.
func (a *acme) start(ctx context.Context, clear, secure string) error {
	host, port, _ := net.SplitHostPort(secure)
	a.issuer.ListenHost = host
	a.issuer.AltTLSALPNPort, _ = strconv.Atoi(port)
	if clear == "" {
		a.issuer.DisableHTTPChallenge = true
	} else if _, port, err := net.SplitHostPort(clear); err == nil {
		a.issuer.AltHTTPPort, _ = strconv.Atoi(port)
	}
	return a.magic.ManageAsync(ctx, a.domains)
}

func (a *acme) stop() { a.cache.Stop() }
