package webdav_test

import (
	"testing"

	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
)

// start is one of the servers of servertest.
type start func(t testing.TB, o servertest.WebDAVOptions) *servertest.Server

// suite runs mounttest on one server, each test in a root of its own.
func suite(t *testing.T, begin start, o servertest.WebDAVOptions) {
	steady(t)
	s := begin(t, o)
	cfg := servertest.WebDAVConfig(s, o)
	mounttest.Run(t, func(t *testing.T) mounts.Backend { return fresh(t, s, cfg) })
}

func TestApache(t *testing.T) { suite(t, servertest.Apache, servertest.WebDAVOptions{}) }
func TestNginx(t *testing.T)  { suite(t, servertest.Nginx, servertest.WebDAVOptions{}) }
func TestRclone(t *testing.T) {
	suite(t, servertest.RcloneWebDAV, servertest.WebDAVOptions{Auth: "basic"})
}

func TestApacheDigestTLS(t *testing.T) {
	cert := servertest.NewCert(t, servertest.CertOptions{})
	suite(t, servertest.Apache, servertest.WebDAVOptions{Auth: "digest", Cert: &cert})
}

// TestKinds: what is claimed of which server.
func TestKinds(t *testing.T) {
	for name, test := range map[string]struct {
		begin start
		want  mounts.Features
	}{
		"Apache": {servertest.Apache, mounts.Features{AtomicReplace: mounts.Emulated, Rename: mounts.Native, CaseSensitive: true, Remote: true}},
		"nginx":  {servertest.Nginx, mounts.Features{AtomicReplace: mounts.Native, Rename: mounts.Native, CaseSensitive: true, Remote: true}},
		"rclone": {servertest.RcloneWebDAV, mounts.Features{AtomicReplace: mounts.Refused, Rename: mounts.Emulated, CaseSensitive: true, Remote: true}},
	} {
		s := test.begin(t, servertest.WebDAVOptions{})
		cfg := servertest.WebDAVConfig(s, servertest.WebDAVOptions{})
		if got := mount(t, cfg).Features(); got != test.want {
			t.Errorf("%s: %+v\nwant %+v", name, got, test.want)
		}
		cfg.ReadOnly = true
		b := mount(t, cfg)
		if f := b.Features(); f.AtomicReplace != mounts.Refused || f.Rename != mounts.Refused || !f.CaseSensitive {
			t.Errorf("%s read-only: %+v", name, f)
		}
	}
}

func BenchmarkApache(b *testing.B) { bench(b, servertest.Apache) }
func BenchmarkNginx(b *testing.B)  { bench(b, servertest.Nginx) }

func bench(b *testing.B, begin start) {
	s := begin(b, servertest.WebDAVOptions{})
	mounttest.Bench(b, func(b *testing.B) mounts.Backend {
		return fresh(b, s, servertest.WebDAVConfig(s, servertest.WebDAVOptions{}))
	})
}
