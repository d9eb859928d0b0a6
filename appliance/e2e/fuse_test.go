package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mountState is a box with one user who may do everything in docs, and another who reads.
const mountState = `
datasources: [{name: disk, driver: local, options: {path: FILES}, durability: written}]
users:
  - {login: alice, password: alice-password}
  - {login: bob, password: bob-password}
workspaces: [{slug: docs, roots: ["disk:/docs"], grants: [{to: "user:alice", rights: [read, write]}, {to: "user:bob", rights: [read]}]}]
`

func needFuse(t *testing.T) {
	t.Helper()
	if !fuseReady(t) {
		t.Skip("there is no /dev/fuse")
	}
}

// N06: the box is killed under a mount: who uses the mount gets an error at once, nothing that was closed is lost, and the mount comes back with
// the box.
func TestN06Mount(t *testing.T) {
	t.Parallel()
	needFuse(t)
	b := start(t, mountState)
	dir := t.TempDir()
	cmd := b.mountOn(dir, "alice")
	name := filepath.Join(dir, "docs", "f")
	if err := os.WriteFile(name, []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.kill()
	failed := make(chan error, 1)
	go func() { _, err := os.ReadFile(name); failed <- err }()
	select {
	case err := <-failed:
		if err == nil {
			t.Error("a file of a dead box could be read")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("reading from a dead box hangs")
	}
	b.serve()
	var content []byte
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if content, err = os.ReadFile(name); err == nil {
			break
		}
	}
	if err != nil || string(content) != "kept" {
		t.Fatalf("after the restart: %q, %v", content, err)
	}
	if err := os.WriteFile(name, []byte("goes on"), 0o644); err != nil {
		t.Fatal(err)
	}
	command{}.run(t, program(t, "fusermount3"), "-u", dir)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the command ends with %v once it is unmounted", err)
	}
	if got := b.as("bob").do("GET", "/docs/f", "").body; got != "goes on" {
		t.Errorf("the other door has %q", got)
	}
	b.sound()
}

// TestMountTree: work as people do it on a mount: a source tree, a repository, a build.
func TestMountTree(t *testing.T) {
	t.Parallel()
	needFuse(t)
	b := start(t, mountState)
	docs := filepath.Join(b.mount("alice"), "docs")
	tarball, digests := sourceTree(t, "net/http", "encoding/xml", "html")
	command{}.run(t, program(t, "tar"), "-C", docs, "--no-same-owner", "-xf", tarball)
	sameTree(t, "through the mount", digestsOf(t, docs), digests)
	sameTree(t, "on the disk", digestsOf(t, b.disk("")), digests)
	git := program(t, "git")
	run := func(args ...string) string {
		return command{env: []string{"HOME=" + t.TempDir(), "GIT_CONFIG_NOSYSTEM=1"}}.run(t, git, append([]string{"-C", docs, "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "safe.directory=*"}, args...)...)
	}
	run("init", "-q")
	run("add", ".")
	run("commit", "-q", "-m", "all")
	run("clone", "-q", ".", "../docs/clone")
	if out := run("fsck", "--full", "--strict"); strings.Contains(out, "error") {
		t.Error(out)
	}
	sameTree(t, "of the clone", digestsOf(t, filepath.Join(docs, "clone", "html")), digestsOf(t, filepath.Join(docs, "html")))
	if err := os.RemoveAll(filepath.Join(docs, "net")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.disk("net")); !os.IsNotExist(err) {
		t.Errorf("on the disk: %v", err)
	}
	b.sound()
}

// TestMountRights: the mount is its user's, whatever the disk below says; another user's lock holds; nobody else enters.
func TestMountRights(t *testing.T) {
	t.Parallel()
	needFuse(t)
	b := start(t, mountState)
	alice, bob := filepath.Join(b.mount("alice"), "docs"), filepath.Join(b.mount("bob"), "docs")
	if err := os.WriteFile(filepath.Join(alice, "f"), []byte("alice's"), 0o666); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(bob, "f")); err != nil || string(got) != "alice's" {
		t.Errorf("bob reads %q, %v", got, err)
	}
	for what, err := range map[string]error{
		"write":  os.WriteFile(filepath.Join(bob, "f"), nil, 0o666),
		"create": os.WriteFile(filepath.Join(bob, "new"), nil, 0o666),
		"remove": os.Remove(filepath.Join(bob, "f")),
		"rename": os.Rename(filepath.Join(bob, "f"), filepath.Join(bob, "g")),
		"mkdir":  os.Mkdir(filepath.Join(bob, "d"), 0o777),
	} {
		if !os.IsPermission(err) {
			t.Errorf("%s by who may only read: %v", what, err)
		}
	}
	var mounted, readOnly syscall.Statfs_t
	if err := syscall.Statfs(alice, &mounted); err != nil || mounted.Flags&(syscall.MS_NOSUID|syscall.MS_NODEV) != syscall.MS_NOSUID|syscall.MS_NODEV {
		t.Errorf("mount flags %x, %v", mounted.Flags, err)
	}
	dir := t.TempDir()
	b.mountOn(dir, "alice", "--read-only")
	if err := syscall.Statfs(dir, &readOnly); err != nil || readOnly.Flags&syscall.MS_RDONLY == 0 {
		t.Errorf("mount flags %x, %v", readOnly.Flags, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "docs", "f"), nil, 0o666); err == nil {
		t.Error("a read-only mount takes writes")
	}
	out, err := exec.Command(binary, "mount", "--data", b.data, "--as", "nobody-here", t.TempDir()).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("there is no user")) {
		t.Errorf("a mount for nobody: %s, %v", out, err)
	}
}
