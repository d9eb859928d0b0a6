package sftp

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cellgate/gateway/gatewaytest"
)

// TestSCP: scp speaks SFTP today, and hears in words why its old protocol does not work.
func TestSCP(t *testing.T) {
	b := start(t, onDisk(t), Config{})
	content := random(3<<20 + 1)
	src, back := file(t, content), filepath.Join(t.TempDir(), "back")
	args := func(more ...string) []string { return append(append(b.options(), "-P", b.port), more...) }
	for _, target := range []string{"/docs/f", "docs/g", "~/docs/h"} {
		if out, err := run(t, "", "scp", args("-s", "-p", src, "alice@127.0.0.1:"+target)...); err != nil {
			t.Fatalf("%s: %v\n%s", target, err, out)
		}
	}
	if out, err := run(t, "", "scp", args("-s", "-r", "alice@127.0.0.1:/docs", back)...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"f", "g", "h"} {
		if got, err := os.ReadFile(filepath.Join(back, name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if out, err := run(t, "", "scp", args("-O", src, "alice@127.0.0.1:/docs/old")...); err == nil || !strings.Contains(out, "only SFTP") {
		t.Errorf("the old protocol: %v, %q", err, out)
	}
}

// TestReput: OpenSSH's client goes on with what is there.
func TestReput(t *testing.T) {
	b := start(t, onDisk(t), Config{})
	content := random(2<<20 + 5)
	src := file(t, content)
	b.write("alice", "/docs/f", string(content[:700_000]))
	if out, err := b.batch("reput " + src + " /docs/f"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := b.content("bob", "/docs/f"); got != string(content) {
		t.Errorf("%d bytes, or other ones", len(got))
	}
	half := filepath.Join(t.TempDir(), "half")
	if err := os.WriteFile(half, content[:500_000], 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := b.batch("reget /docs/f " + half); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, err := os.ReadFile(half); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestLFTP mirrors there and back.
func TestLFTP(t *testing.T) {
	b := start(t, onDisk(t), Config{})
	src := tree(t)
	back := filepath.Join(t.TempDir(), "back")
	connect := "ssh " + strings.Join(append([]string{"-a", "-x"}, b.options()...), " ")
	out, err := run(t, "", "lftp", "-c", "set sftp:connect-program '"+connect+"'; set net:max-retries 1; set net:timeout 30; set cmd:fail-exit yes; "+
		"open -u alice, sftp://127.0.0.1:"+b.port+"; mirror -R "+src+" /docs/tree; mirror /docs/tree "+back+
		"; mv /docs/tree/one.txt /docs/tree/three.txt; chmod 600 /docs/tree/three.txt; rm -r /docs/tree/sub; cls -l /docs/tree")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	same(t, src, back)
	if !strings.Contains(out, "three.txt") || strings.Contains(out, "sub") {
		t.Errorf("listed\n%s", out)
	}
}

// TestRclone copies and checks.
func TestRclone(t *testing.T) {
	b := start(t, onDisk(t), Config{})
	src := tree(t)
	remote := ":sftp,host=127.0.0.1,port=" + b.port + ",user=alice,key_file=" + b.key + ",shell_type=none:/docs/tree"
	back := filepath.Join(t.TempDir(), "back")
	for _, args := range [][]string{
		{"copy", src, remote}, {"check", "--download", src, remote}, {"copy", remote, back}, {"moveto", remote + "/one.txt", remote + "/three.txt"},
		{"sync", src, remote}, {"check", "--download", src, remote}, {"purge", remote},
	} {
		if out, err := run(t, "", "rclone", append([]string{"--config", "/dev/null", "--retries", "1"}, args...)...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	same(t, src, back)
	if _, err := b.client("alice").Stat("/docs/tree"); err == nil {
		t.Error("purged, and still there")
	}
}

// TestSSHFS mounts the tree and works in it.
func TestSSHFS(t *testing.T) {
	if _, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skip("no /dev/fuse: nothing is tested with sshfs")
	}
	if _, err := exec.LookPath("sshfs"); err != nil {
		t.Skip("sshfs is not installed: nothing is tested with it")
	}
	b := start(t, onDisk(t), Config{})
	dir := t.TempDir()
	args := []string{"alice@127.0.0.1:/docs", dir, "-p", b.port, "-o", "IdentityFile=" + b.key, "-o", "UserKnownHostsFile=" + b.hint, "-F", "/dev/null"}
	if out, err := run(t, "", "sshfs", append(args, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes")...); err != nil {
		t.Skipf("sshfs does not mount here: %v\n%s", err, out)
	}
	defer run(t, "", "fusermount3", "-u", "-z", dir)
	content := random(1<<20 + 3)
	name := filepath.Join(dir, "f")
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	step(os.WriteFile(name, content, 0o640))
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	step(err)
	_, err = f.WriteAt([]byte("in the middle"), 1000)
	step(err)
	step(f.Truncate(1 << 20))
	step(f.Sync())
	step(f.Close())
	copy(content[1000:], "in the middle")
	if got := b.content("bob", "/docs/f"); got != string(content[:1<<20]) {
		t.Errorf("changed in the middle: %d bytes, or other ones", len(got))
	}
	f, err = os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	step(err)
	_, err = f.WriteString("end")
	step(err)
	step(f.Close())
	step(os.Mkdir(filepath.Join(dir, "d"), 0o755))
	step(os.Rename(name, filepath.Join(dir, "d", "g")))
	step(os.Symlink("g", filepath.Join(dir, "d", "l")))
	step(os.Chtimes(filepath.Join(dir, "d", "g"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
	if i, err := os.Stat(filepath.Join(dir, "d", "l")); err != nil || i.Size() != 1<<20+3 || i.ModTime().Unix() != 1e9 {
		t.Errorf("%v, %v", i, err)
	}
	if out, err := run(t, "", "sh", "-c", "cd "+dir+" && for i in $(seq 50); do echo $i > d/t.tmp && mv d/t.tmp d/n$i || exit 1; done && cat d/n* | wc -l && rm d/n*"); err != nil || !strings.Contains(out, "50") {
		t.Errorf("%v, %q", err, out)
	}
	if err := os.Remove(filepath.Join(dir, "d")); err == nil {
		t.Error("a full folder is removed")
	}
	step(os.RemoveAll(filepath.Join(dir, "d")))
}

// TestParamiko lets Python's library use what programs use.
func TestParamiko(t *testing.T) {
	python := "/usr/bin/python3"
	if err := exec.Command(python, "-c", "import paramiko").Run(); err != nil {
		t.Skip("python3-paramiko is not installed: nothing is tested with it")
	}
	b := start(t, gatewaytest.Config{}, Config{})
	src := file(t, random(1<<20+9))
	out, err := run(t, "", python, "-W", "ignore", "testdata/client.py", b.port, password, src, filepath.Join(t.TempDir(), "back"))
	if err != nil || !strings.Contains(out, "all well") {
		t.Errorf("%v\n%s", err, out)
	}
}

// tree makes a folder with some files.
func tree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	for name, size := range map[string]int{"one.txt": 10, "empty": 0, "sub/two words": 100_000, "sub/deep/big": 3 << 20, "ünï": 5, "a'b\"c": 1} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, random(size), 0o644); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-time.Hour).Truncate(time.Second)
		if err := os.Chtimes(name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// same compares folders.
func same(t *testing.T, a, b string) {
	t.Helper()
	if out, err := run(t, "", "diff", "-r", a, b); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
