package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// way is a door as the client of one user sees it. Paths begin with a slash and a slug. A missing node is fs.ErrNotExist, a refused one
// fs.ErrPermission.
type way interface {
	put(p, content string) error
	get(p string) (string, error)
	size(p string) (int64, error)
	list(dir string) ([]string, error) // names, without slashes
	rename(from, to string) error
	remove(p string) error // a file
	mkdir(p string) error
}

// wayNames are the doors.
var wayNames = []string{"webdav", "sftp", "s3", "fuse"}

// ways opens all doors for a user whose S3 key is LOGIN-key with the secret LOGIN-secret-0123456789. The mount is only where there is /dev/fuse.
func (b *box) ways(user string) map[string]way {
	b.t.Helper()
	all := map[string]way{"webdav": davWay{b.as(user)}, "sftp": b.sftpWay(user), "s3": b.s3Way(user)}
	if fuseReady(b.t) {
		all["fuse"] = fuseWay{b.mount(user)}
	}
	return all
}

// fuseReady reports whether this machine can mount.
func fuseReady(t testing.TB) bool {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Logf("no mounts: %v", err)
		return false
	}
	f.Close()
	return true
}

type davWay struct{ c *client }

// outcomeOf turns a status into an error.
func outcomeOf(what string, status int) error {
	switch {
	case status < 300:
		return nil
	case status == http.StatusForbidden:
		return fmt.Errorf("%s: %w", what, fs.ErrPermission)
	case status == http.StatusNotFound, status == http.StatusConflict:
		return fmt.Errorf("%s: %w", what, fs.ErrNotExist)
	}
	return fmt.Errorf("%s: status %d", what, status)
}

func (w davWay) do(method, p, body string, header ...string) (reply, error) {
	r := w.c.do(method, p, body, header...)
	return r, outcomeOf(method+" "+p, r.status)
}

func (w davWay) put(p, content string) error { _, err := w.do("PUT", p, content); return err }

func (w davWay) get(p string) (string, error) {
	r, err := w.do("GET", p, "")
	return r.body, err
}

func (w davWay) size(p string) (int64, error) {
	r, err := w.do("HEAD", p, "")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(r.header.Get("Content-Length"), 10, 64)
}

func (w davWay) list(dir string) (names []string, err error) {
	nodes, status, err := w.c.list(dir, 1)
	if err == nil {
		err = outcomeOf("PROPFIND "+dir, status)
	}
	if err != nil {
		return nil, err
	}
	for _, n := range nodes[1:] {
		names = append(names, path.Base(n.path))
	}
	return names, nil
}

func (w davWay) rename(from, to string) error {
	_, err := w.do("MOVE", from, "", w.c.to(to))
	return err
}
func (w davWay) remove(p string) error { _, err := w.do("DELETE", p, ""); return err }
func (w davWay) mkdir(p string) error  { _, err := w.do("MKCOL", p, ""); return err }

type sftpWay struct{ c *sftp.Client }

func (b *box) sftpWay(user string) way {
	b.t.Helper()
	conn, err := ssh.Dial("tcp", b.sftp, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.Password(user + "-password")}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 30 * time.Second,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	c, err := sftp.NewClient(conn)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close(); conn.Close() })
	return sftpWay{c}
}

func (w sftpWay) put(p, content string) error {
	f, err := w.c.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(content))
	return errors.Join(err, f.Close())
}

func (w sftpWay) get(p string) (string, error) {
	f, err := w.c.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	return string(content), err
}

func (w sftpWay) size(p string) (int64, error) {
	info, err := w.c.Stat(p)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (w sftpWay) list(dir string) (names []string, err error) {
	infos, err := w.c.ReadDir(dir)
	for _, i := range infos {
		names = append(names, i.Name())
	}
	return names, err
}

func (w sftpWay) rename(from, to string) error { return w.c.PosixRename(from, to) }
func (w sftpWay) remove(p string) error        { return w.c.Remove(p) }
func (w sftpWay) mkdir(p string) error         { return w.c.Mkdir(p) }

type s3Way struct{ c *minio.Client }

func (b *box) s3Way(user string) way {
	b.t.Helper()
	c, err := minio.New(b.s3, &minio.Options{Creds: credentials.NewStaticV4(user+"-key", user+"-secret-0123456789", ""), Region: "us-east-1"})
	if err != nil {
		b.t.Fatal(err)
	}
	return s3Way{c}
}

// key splits a path into bucket and key.
func key(p string) (bucket, object string) {
	bucket, object, _ = strings.Cut(strings.TrimPrefix(p, "/"), "/")
	return bucket, object
}

func s3Error(err error) error {
	if err == nil {
		return nil
	}
	switch e := minio.ToErrorResponse(err); e.StatusCode {
	case http.StatusForbidden:
		return fmt.Errorf("%v: %w", err, fs.ErrPermission)
	case http.StatusNotFound:
		return fmt.Errorf("%v: %w", err, fs.ErrNotExist)
	}
	return err
}

func (w s3Way) put(p, content string) error {
	bucket, object := key(p)
	_, err := w.c.PutObject(context.Background(), bucket, object, strings.NewReader(content), int64(len(content)), minio.PutObjectOptions{})
	return s3Error(err)
}

func (w s3Way) get(p string) (string, error) {
	bucket, object := key(p)
	r, err := w.c.GetObject(context.Background(), bucket, object, minio.GetObjectOptions{})
	if err != nil {
		return "", s3Error(err)
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	return string(content), s3Error(err)
}

func (w s3Way) size(p string) (int64, error) {
	bucket, object := key(p)
	info, err := w.c.StatObject(context.Background(), bucket, object, minio.StatObjectOptions{})
	return info.Size, s3Error(err)
}

func (w s3Way) list(dir string) (names []string, err error) {
	bucket, prefix := key(dir)
	if prefix != "" {
		prefix += "/"
	}
	for o := range w.c.ListObjects(context.Background(), bucket, minio.ListObjectsOptions{Prefix: prefix}) {
		if o.Err != nil {
			return nil, s3Error(o.Err)
		}
		if name := strings.TrimSuffix(strings.TrimPrefix(o.Key, prefix), "/"); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

func (w s3Way) rename(from, to string) error {
	bucket, object := key(from)
	target, name := key(to)
	_, err := w.c.CopyObject(context.Background(), minio.CopyDestOptions{Bucket: target, Object: name}, minio.CopySrcOptions{Bucket: bucket, Object: object})
	if err != nil {
		return s3Error(err)
	}
	return w.remove(from)
}

func (w s3Way) remove(p string) error {
	bucket, object := key(p)
	return s3Error(w.c.RemoveObject(context.Background(), bucket, object, minio.RemoveObjectOptions{}))
}

func (w s3Way) mkdir(p string) error { return w.put(p+"/", "") }

// fuseWay is a mount, by the calls of the system.
type fuseWay struct{ dir string }

// mount mounts a user's tree with the command and unmounts it at the end of the test.
func (b *box) mount(user string, args ...string) string {
	b.t.Helper()
	dir := b.t.TempDir()
	b.mountOn(dir, user, args...)
	return dir
}

// mountOn mounts on dir and returns the command's process.
func (b *box) mountOn(dir, user string, args ...string) *exec.Cmd {
	b.t.Helper()
	cmd := exec.Command(binary, append([]string{"mount", "--data", b.data, "--as", user, dir}, args...)...)
	var words strings.Builder
	cmd.Stderr = &words
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
		_ = exec.Command("fusermount3", "-uzq", dir).Run()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "mounted "+dir+"\n" {
		b.t.Fatalf("%q, %v\n%s", line, err, words.String())
	}
	return cmd
}

func (w fuseWay) at(p string) string { return filepath.Join(w.dir, filepath.FromSlash(p)) }

func (w fuseWay) put(p, content string) error { return os.WriteFile(w.at(p), []byte(content), 0o644) }

func (w fuseWay) get(p string) (string, error) {
	content, err := os.ReadFile(w.at(p))
	return string(content), err
}

func (w fuseWay) size(p string) (int64, error) {
	info, err := os.Stat(w.at(p))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (w fuseWay) list(dir string) (names []string, err error) {
	entries, err := os.ReadDir(w.at(dir))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func (w fuseWay) rename(from, to string) error { return os.Rename(w.at(from), w.at(to)) }
func (w fuseWay) remove(p string) error        { return os.Remove(w.at(p)) }
func (w fuseWay) mkdir(p string) error         { return os.Mkdir(w.at(p), 0o755) }

// TestOneTree: what is written, renamed and deleted through one door is so through each other, for all ordered pairs: at once, but for what the
// kernel of a mount still believes for a moment.
func TestOneTree(t *testing.T) {
	t.Parallel()
	b := start(t, `
datasources: [{name: disk, driver: local, options: {path: FILES}, durability: written}]
users:
  - {login: alice, password: alice-password, s3Keys: [{id: alice-key, secret: alice-secret-0123456789}]}
  - {login: bob, password: bob-password, s3Keys: [{id: bob-key, secret: bob-secret-0123456789}]}
workspaces: [{slug: docs, roots: ["disk:/docs"], grants: [{to: "user:alice", rights: [read, write]}, {to: "user:bob", rights: [read, write]}]}]
`)
	alice, bob := b.ways("alice"), b.ways("bob")
	for _, first := range wayNames {
		for _, second := range wayNames {
			a, z := alice[first], bob[second]
			if a == nil || z == nil {
				t.Logf("%s to %s is left out: this machine has no /dev/fuse", first, second)
				continue
			}
			t.Run(first+" to "+second, func(t *testing.T) {
				dir := "/docs/" + first + "-" + second
				must := func(what string, err error) {
					t.Helper()
					if err != nil {
						t.Fatalf("%s: %v", what, err)
					}
				}
				// soon asks until it is so, a mount for a moment: it learns of a change by a notice that may cross a question under way.
				soon := func(w way, so func() bool) {
					_, mount := w.(fuseWay)
					for end := time.Now().Add(3 * time.Second); !so() && mount && time.Now().Before(end); {
						time.Sleep(20 * time.Millisecond)
					}
				}
				shows := func(w way, want ...string) {
					t.Helper()
					var got []string
					var err error
					soon(w, func() bool { got, err = w.list(dir); slices.Sort(got); return slices.Equal(got, want) })
					if err != nil || !slices.Equal(got, want) {
						t.Fatalf("listing %v, %v; want %v", got, err, want)
					}
				}
				gone := func(what string, w way, p string) {
					t.Helper()
					var err error
					soon(w, func() bool { _, err = w.get(p); return errors.Is(err, fs.ErrNotExist) })
					if !errors.Is(err, fs.ErrNotExist) {
						t.Fatalf("%s: %v", what, err)
					}
				}
				reads := func(what string, w way, p, want string) {
					t.Helper()
					var got string
					var err error
					soon(w, func() bool { got, err = w.get(p); return err == nil && got == want })
					if err != nil || got != want {
						t.Fatalf("%s: read %q, %v; want %q", what, got, err, want)
					}
				}
				must("mkdir", a.mkdir(dir))
				for round, content := range []string{"one", "another one", ""} {
					must("put", a.put(dir+"/f", content))
					reads(fmt.Sprint("round ", round), z, dir+"/f", content)
					if n, err := z.size(dir + "/f"); err != nil || n != int64(len(content)) {
						t.Fatalf("round %d: size %d, %v", round, n, err)
					}
				}
				shows(z, "f")
				must("rename", z.rename(dir+"/f", dir+"/g"))
				shows(a, "g")
				gone("the old name", a, dir+"/f")
				must("put through the second", z.put(dir+"/g", "by the second"))
				reads("what the second put", a, dir+"/g", "by the second")
				must("put over both", a.put(dir+"/h", "h"))
				must("rename over", z.rename(dir+"/h", dir+"/g"))
				reads("what took the name", a, dir+"/g", "h")
				must("remove", z.remove(dir+"/g"))
				gone("what was removed", a, dir+"/g")
				if first != "s3" && second != "s3" { // where a folder may end with its last object
					shows(a)
				}
			})
		}
	}
	b.sound()
}
