package sftp_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	client "github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/mounttest/netfault"
	"cellgate/mounts/servertest"
)

func BenchmarkOpenSSH(b *testing.B) {
	s, key := openSSH(b)
	mounttest.Bench(b, func(b *testing.B) mounts.Backend {
		return attach(b, servertest.SFTPConfig(s, key, "path", empty(b, s)))
	})
}

// direct is a plain client of the library with one channel, as a program of its own would use it.
func direct(t testing.TB, addr, user string, key servertest.SFTPKey) *client.Client {
	t.Helper()
	conn, err := ssh.Dial("tcp", addr, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key.Signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.NewClient(conn, client.UseConcurrentWrites(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); conn.Close() })
	return c
}

// BenchmarkDelay compares with a plain client at 20 ms each way.
func BenchmarkDelay(b *testing.B) {
	s, key := openSSH(b)
	link := netfault.New(b, s.Addr)
	link.Delay(20 * time.Millisecond)
	far := *s
	far.Host, far.Addr = link.Host, link.Addr
	far.Port, _ = strconv.Atoi(link.Addr[len(link.Host)+1:])
	m := attach(b, servertest.SFTPConfig(&far, key, "path", empty(b, s)))
	plain := direct(b, link.Addr, s.User, key)
	dir := empty(b, s)
	ctx := b.Context()
	for _, size := range []int{4 << 10, 64 << 20} {
		content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		label := fmt.Sprintf("%dKiB", size>>10)
		b.Run("Put/"+label, func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := mounts.WriteFile(ctx, m, "f", content); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("PutDirect/"+label, func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				f, err := plain.OpenFile(dir+"/t", os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
				if err == nil {
					_, err = f.ReadFrom(bytes.NewReader(content))
				}
				if err == nil {
					err = f.Close()
				}
				if err == nil {
					err = plain.PosixRename(dir+"/t", dir+"/f")
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
		old := time.Now().Add(-time.Minute)
		os.Chtimes(filepath.Join(dir, "f"), old, old)
		if err := m.(mounts.TimeSetter).SetModTime(ctx, "f", old); err != nil {
			b.Fatal(err)
		}
		b.Run("Open/"+label, func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				r, err := m.Open(ctx, "f", 0, -1)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); err != nil || n != int64(size) {
					b.Fatal(n, err)
				}
				r.Close()
			}
		})
		b.Run("OpenDirect/"+label, func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				f, err := plain.Open(dir + "/f")
				if err != nil {
					b.Fatal(err)
				}
				if n, err := f.WriteTo(io.Discard); err != nil || n != int64(size) {
					b.Fatal(n, err)
				}
				f.Close()
			}
		})
	}
}
