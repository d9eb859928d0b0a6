package fuse_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/mounts"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/policy"
	"cellgate/protocols/fuse"
)

// TestMain runs the test binary as a helper when it is asked to: what uses a mount in ways that would stop the process serving it.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "helper" {
		if err := helpers[os.Args[2]](os.Args[3:]); err != nil {
			io.WriteString(os.Stderr, err.Error()+"\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper runs a helper in a process of its own.
func helper(t testing.TB, words ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append([]string{"helper"}, words...)...)
	cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1")
	return cmd
}

// help runs a helper to its end and fails when it does.
func help(t testing.TB, words ...string) {
	t.Helper()
	if out, err := helper(t, words...).CombinedOutput(); err != nil {
		t.Fatalf("helper %q: %v\n%s", words, err, out)
	}
}

// house is a gateway whose "disk" is a local folder in the clear, and whose "nas" lies across a network.
type house struct {
	*gatewaytest.House
	dir string // of disk
}

func newHouse(t testing.TB, limits gateway.Limits) *house {
	t.Helper()
	need(t)
	dir := t.TempDir()
	disk, err := local.Driver().Open(context.Background(), mounts.Config{Name: "disk", Options: map[string]string{"path": dir}, Unsynced: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	if limits.Handles == 0 {
		limits.Handles = 4096
	}
	nas := gatewaytest.Far(mem.New(mem.Config{}), mounts.Native)
	return &house{gatewaytest.New(t, gatewaytest.Config{Limits: limits, Disks: map[string]mounts.Backend{"disk": disk, "nas": nas}}), dir}
}

// need skips the test where nothing can be mounted.
func need(t testing.TB) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skip("this machine has no FUSE: ", err)
	} else {
		f.Close()
	}
	if os.Geteuid() != 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			t.Skip("mounting needs root or fusermount3 (Debian: fuse3)")
		}
	}
}

// client skips the test when a program is not installed.
func client(t testing.TB, name, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed (Debian: %s)", name, pkg)
	}
}

// run runs a program in dir and returns what it says; it fails when the program does.
func run(t testing.TB, dir string, words ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "HOME="+os.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", words, err, out)
	}
	return string(out)
}

// logs is where mounts log to; a test that expects no failure looks at it.
type logs struct {
	mu  chan struct{}
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu <- struct{}{}
	defer func() { <-l.mu }()
	return l.buf.Write(p)
}

// mount mounts the tree of a user.
func (h *house) mount(t testing.TB, login string, change func(*fuse.Config)) (string, *fuse.Server) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	srv := h.mountOn(t, dir, login, change)
	return dir, srv
}

func (h *house) mountOn(t testing.TB, dir, login string, change func(*fuse.Config)) *fuse.Server {
	t.Helper()
	s := h.As(login)
	said := &logs{mu: make(chan struct{}, 1)}
	cfg := fuse.Config{
		Session: s, Events: h.Gateway.Events(), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		Place:          func(p gateway.Path) (policy.Place, error) { return h.Gateway.Place(s.Subject(), p) },
		UnmountTimeout: 5 * time.Second, Spool: t.TempDir(),
		Logger: slog.New(slog.NewTextHandler(said, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	srv, err := fuse.Mount(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Unmount(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the mount of %s said:\n%s", login, said.buf.String())
		}
	})
	return srv
}

// places are folders of the mount on each kind of datasource.
var places = map[string]string{"local": "docs", "far": "homes"}

// everywhere runs a test in an empty folder of each kind.
func everywhere(t *testing.T, test func(t *testing.T, h *house, dir string, local bool)) {
	for name, at := range places {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, gateway.Limits{})
			mnt, _ := h.mount(t, "alice", nil)
			test(t, h, filepath.Join(mnt, at), name == "local")
		})
	}
}

func write(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// holds fails unless the file has the content.
func holds(t testing.TB, name, want string) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil || string(got) != want {
		t.Errorf("%s: %.60q, %v; want %.60q", filepath.Base(name), got, err, want)
	}
}

// is fails unless err is want.
func is(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v; want %v", what, err, want)
	}
}

// tells fails unless the listing of a folder is the words.
func tells(t testing.TB, dir string, words string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); err != nil || got != words {
		t.Errorf("listed %q, %v; want %q", got, err, words)
	}
}
