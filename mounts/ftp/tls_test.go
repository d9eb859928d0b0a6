package ftp_test

import (
	"strings"
	"testing"

	"cellgate/internal/fault"
	"cellgate/mounts/ftp"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
)

func TestTLS(t *testing.T) {
	for _, opt := range []servertest.FTPOptions{
		{Kind: "vsftpd", TLS: "explicit"}, {Kind: "vsftpd", TLS: "implicit"},
		{Kind: "proftpd", TLS: "explicit"}, {Kind: "proftpd", TLS: "implicit"}, {Kind: "pure-ftpd", TLS: "explicit"},
	} {
		t.Run(opt.Kind+"/"+opt.TLS, func(t *testing.T) {
			s, cfg := server(t, opt)
			tour(t, open(t, cfg))
			if opt.TLS == "explicit" {
				cfg.Options["path"] = folder(t, s, 1)
				cfg.Options["tls"] = "auto"
				cfg.Options["mode"] = "active"
				tour(t, open(t, cfg))
				cfg.Options["tls"] = "off"
				if _, err := ftp.Driver().Open(t.Context(), cfg); fault.KindOf(err) != fault.Unsupported || !strings.Contains(err.Error(), "option tls") {
					t.Errorf("without TLS: %v", err)
				}
			}
		})
	}
}

// TestTLSRefused: a server without TLS is not given a password that was to be encrypted.
func TestTLSRefused(t *testing.T) {
	_, cfg := server(t, servertest.FTPOptions{Kind: "pure-ftpd"})
	cfg.Options["tls"] = "explicit"
	_, err := ftp.Driver().Open(t.Context(), cfg)
	if fault.KindOf(err) != fault.Unsupported || !strings.Contains(err.Error(), "option tls") {
		t.Errorf("Open: %v", err)
	}
	cfg.Options["tls"] = "auto"
	tour(t, open(t, cfg))
	cfg.Options["tls"], cfg.Options["timeout"] = "implicit", "1s"
	if _, err := ftp.Driver().Open(t.Context(), cfg); err == nil {
		t.Error("implicit TLS with a server that has none")
	}
}

// TestB04Certificates: a certificate nobody vouches for is refused, with words that help.
func TestB04Certificates(t *testing.T) {
	good := servertest.NewCert(t, servertest.CertOptions{})
	other := servertest.NewCert(t, servertest.CertOptions{})
	for _, test := range []struct {
		name    string
		cert    servertest.CertOptions
		options map[string]string
		want    string // in the error, "" for none
	}{
		{"unknown authority", servertest.CertOptions{}, map[string]string{"ca": ""}, "name its authority in the option ca, or trust this very certificate with tlsPin: sha256:"},
		{"other authority", servertest.CertOptions{}, map[string]string{"ca": other.CA}, "tlsPin"},
		{"expired", servertest.CertOptions{Expired: true}, nil, "expired"},
		{"other name", servertest.CertOptions{Host: "elsewhere.example"}, nil, "127.0.0.1"},
		{"right", servertest.CertOptions{}, nil, ""},
		{"wrong pin", servertest.CertOptions{}, map[string]string{"ca": "", "tlsPin": "sha256:" + strings.Repeat("00", 32)}, "change the option tlsPin"},
		{"insecure", servertest.CertOptions{Expired: true}, map[string]string{"ca": "", "tlsInsecure": "true"}, ""},
	} {
		for _, mode := range []string{"explicit", "implicit"} {
			opt := servertest.FTPOptions{Kind: "vsftpd", TLS: mode, Cert: good}
			if test.cert != (servertest.CertOptions{}) {
				opt.Cert = servertest.NewCert(t, test.cert)
			}
			_, cfg := server(t, opt)
			for k, v := range test.options {
				cfg.Options[k] = v
			}
			b, err := ftp.Driver().Open(t.Context(), cfg)
			if err == nil {
				mounttest.Script(t, b, `put f 1 -> ok`)
				b.Close()
			}
			switch {
			case test.want == "" && err != nil:
				t.Errorf("%s, %s: %v", test.name, mode, err)
			case test.want != "" && (err == nil || fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), test.want)):
				t.Errorf("%s, %s: %v; want %q", test.name, mode, err, test.want)
			}
			if err != nil && test.name == "unknown authority" { // what it says can be done
				_, pin, _ := strings.Cut(err.Error(), "tlsPin: ")
				cfg.Options["tlsPin"], _, _ = strings.Cut(pin, ",")
				b := open(t, cfg)
				mounttest.Script(t, b, `put f 1 -> ok`)
				b.Close()
			}
		}
	}
}
