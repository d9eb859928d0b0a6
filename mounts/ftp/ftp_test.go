package ftp_test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"cellgate/mounts"
	"cellgate/mounts/ftp"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
)

var kinds = []string{"vsftpd", "proftpd", "pure-ftpd"}

// server starts a server and returns it with the datasource for it.
func server(t testing.TB, opt servertest.FTPOptions) (*servertest.Server, mounts.Config) {
	t.Helper()
	if opt.TLS != "" && opt.Cert.CA == "" {
		opt.Cert = servertest.NewCert(t, servertest.CertOptions{})
	}
	s := servertest.FTP(t, opt)
	return s, servertest.FTPConfig(s, opt)
}

func open(t testing.TB, cfg mounts.Config) mounts.Backend {
	t.Helper()
	b, err := ftp.Driver().Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// suite runs mounttest against one server, in a new folder each time.
func suite(t *testing.T, opt servertest.FTPOptions, options ...string) {
	t.Parallel()
	s, cfg := server(t, opt)
	for i := 0; i < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	n := 0
	mounttest.Run(t, func(t *testing.T) mounts.Backend {
		n++
		cfg.Options["path"] = folder(t, s, n)
		return open(t, cfg)
	})
}

// folder makes a folder on the server that belongs to its user.
func folder(t testing.TB, s *servertest.Server, n int) string {
	t.Helper()
	name := fmt.Sprintf("d%d", n)
	dir := filepath.Join(s.Root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(s.Root)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
		t.Fatal(err)
	}
	return "/" + name
}

func TestVsftpd(t *testing.T)   { suite(t, servertest.FTPOptions{Kind: "vsftpd"}) }
func TestProFTPD(t *testing.T)  { suite(t, servertest.FTPOptions{Kind: "proftpd"}) }
func TestPureFTPd(t *testing.T) { suite(t, servertest.FTPOptions{Kind: "pure-ftpd"}) }
