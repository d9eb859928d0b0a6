package sftp_test

import (
	"os"
	"testing"

	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
	"cellgate/mounts/sftp"
)

// attach opens a datasource that is closed with the test.
func attach(t testing.TB, cfg mounts.Config) mounts.Backend {
	t.Helper()
	b, err := sftp.Driver().Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// empty makes a folder below the server's for one test and returns the path.
func empty(t testing.TB, s *servertest.Server) string {
	t.Helper()
	dir, err := os.MkdirTemp(s.Root, "t")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// openSSH starts sshd with a key that may log in.
func openSSH(t testing.TB, lines ...string) (*servertest.Server, servertest.SFTPKey) {
	t.Helper()
	key := servertest.NewSFTPKey(t, "")
	root := ""
	if dir, err := os.MkdirTemp("/dev/shm", "sftp"); err == nil { // in memory, where there is such a place: thousands of syncs cost nothing there
		t.Cleanup(func() { os.RemoveAll(dir) })
		root = dir
	}
	return servertest.SFTP(t, servertest.SFTPOptions{UserKeys: []servertest.SFTPKey{key}, Lines: lines, Root: root}), key
}

func TestOpenSSH(t *testing.T) {
	s, key := openSSH(t)
	mounttest.Run(t, func(t *testing.T) mounts.Backend {
		return attach(t, servertest.SFTPConfig(s, key, "path", empty(t, s)))
	})
}

// TestPlain runs on a server without extensions, which carries requests out in any order.
func TestPlain(t *testing.T) {
	s := servertest.PlainSFTP(t, servertest.PlainSFTPOptions{})
	mounttest.Run(t, func(t *testing.T) mounts.Backend {
		return attach(t, servertest.SFTPConfig(s, servertest.SFTPKey{}, "path", empty(t, s)))
	})
}
