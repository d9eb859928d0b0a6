package e2e

import (
	"bufio"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// common is a declared state with alice, bob and carol, whose passwords are as password says. Alice and bob write in docs, carol reads.
const common = `
datasources: [{name: disk, driver: local, options: {path: FILES}}]
users:
  - {login: alice, password: alice-password}
  - {login: bob, password: bob-password}
  - {login: carol, password: carol-password}
workspaces:
  - slug: docs
    roots: ["disk:/docs"]
    grants:
      - {to: "user:alice", rights: [read, write]}
      - {to: "user:bob", rights: [read, write]}
      - {to: "user:carol", rights: [read]}
`

// password is that of every user of the tests.
func password(login string) string { return login + "-password" }

// box is a running cellgate with folders of its own.
type box struct {
	t     testing.TB
	data  string   // its data folder
	files string   // its datasource, FILES in declared states
	args  []string // of serve, beside --data and --http
	env   []string
	umask int
	begun func(*os.Process) // called as soon as the process exists

	http, https, sftp, s3 string // host:port, the same after a restart
	log                   string // file with its standard error
	out                   string // file with its standard output
	took                  time.Duration
	cmd                   *exec.Cmd // nil when it does not run
}

// start serves a declared state in a new box.
func start(t testing.TB, state string) *box {
	t.Helper()
	b := prepare(t)
	b.serve()
	if state != "" {
		b.apply(state)
	}
	return b
}

// prepare makes a box that does not run yet, so that it can be changed before.
func prepare(t testing.TB) *box {
	t.Helper()
	boxes <- struct{}{}
	dir := t.TempDir()
	b := &box{t: t, data: filepath.Join(dir, "data"), files: filepath.Join(dir, "files"), http: "127.0.0.1:0", sftp: "127.0.0.1:0", s3: "127.0.0.1:0", umask: -1,
		log: filepath.Join(dir, "log"), out: filepath.Join(dir, "out")}
	if err := os.MkdirAll(filepath.Join(b.files, "docs"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.kill()
		<-boxes
		if t.Failed() {
			text, _ := os.ReadFile(b.log)
			t.Logf("the box said:\n%s", tail(string(text), 5000))
		}
	})
	return b
}

var doors = regexp.MustCompile(`(https?|sftp|s3)=(\S+)`)

// serve starts the box and waits for its ready line. It listens where it did before.
func (b *box) serve() {
	b.t.Helper()
	if err := b.tryServe(); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) tryServe() error {
	log, err := os.OpenFile(b.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	args := append([]string{"serve", "--data", b.data, "--http", b.http, "--sftp", b.sftp, "--s3", b.s3}, b.args...)
	cmd := exec.Command(binary, args...)
	if b.umask >= 0 {
		cmd = exec.Command("sh", append([]string{"-c", fmt.Sprintf(`umask %03o; exec "$@"`, b.umask), "sh", binary}, args...)...)
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = filepath.Dir(b.data), write, log
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(b.data)}, b.env...)
	began := time.Now()
	err = cmd.Start()
	write.Close()
	if err != nil {
		return err
	}
	if b.begun != nil {
		b.begun(cmd.Process)
	}
	_ = read.SetReadDeadline(began.Add(60 * time.Second))
	line, err := bufio.NewReader(read).ReadString('\n')
	b.took = time.Since(began)
	if out, oerr := os.OpenFile(b.out, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); oerr == nil {
		fmt.Fprint(out, line)
		out.Close()
	}
	if !strings.HasPrefix(line, "ready ") {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		text, _ := os.ReadFile(b.log)
		return fmt.Errorf("no ready line but %q (%v)\n%s", line, err, tail(string(text), 4000))
	}
	b.cmd = cmd
	for _, m := range doors.FindAllStringSubmatch(line, -1) {
		*map[string]*string{"http": &b.http, "https": &b.https, "sftp": &b.sftp, "s3": &b.s3}[m[1]] = m[2]
	}
	return nil
}

func (b *box) pid() int { return b.cmd.Process.Pid }

// stop asks the box to end, and wants it to do so without a complaint.
func (b *box) stop() {
	b.t.Helper()
	cmd := b.cmd
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		b.t.Fatal(err)
	}
	timer := time.AfterFunc(60*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	b.cmd = nil
	if err := cmd.Wait(); err != nil {
		b.t.Fatalf("the box ended with %v", err)
	}
}

// kill ends the box as a power cut would, but for what the kernel holds.
func (b *box) kill() {
	if b.cmd != nil {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait()
		b.cmd = nil
	}
}

// alive reports whether the box has neither ended nor crashed.
func (b *box) alive() bool { return b.cmd != nil && b.cmd.Process.Signal(syscall.Signal(0)) == nil }

// cellgate runs a command against the box and wants it to succeed.
func (b *box) cellgate(args ...string) string {
	b.t.Helper()
	return command{}.run(b.t, binary, append(args, "--data", b.data)...)
}

// apply makes a declared state so.
func (b *box) apply(state string) {
	b.t.Helper()
	command{stdin: b.fill(state)}.run(b.t, binary, "apply", "-f", "-", "--data", b.data)
}

func (b *box) fill(state string) string { return strings.ReplaceAll(state, "FILES", b.files) }

// url is the address of a path of the tree, for clients that take it as one word. With a user it carries login and password.
func (b *box) url(user, path string) string {
	if user != "" {
		user += ":" + password(user) + "@"
	}
	return "http://" + user + b.http + "/dav" + path
}

// disk returns where a path of docs lies on disk.
func (b *box) disk(name string) string { return filepath.Join(b.files, "docs", name) }

// sound wants fsck and the audit log to find nothing wrong, in the box that runs or, when none does, in its folders.
func (b *box) sound() {
	b.t.Helper()
	if out := b.cellgate("fsck"); !strings.Contains(out, "0 findings") {
		b.t.Errorf("fsck: %s", out)
	}
	if b.cmd == nil {
		return // fsck of folders verifies the audit log, too
	}
	if out := b.cellgate("audit", "verify"); !strings.Contains(out, "all in order") {
		b.t.Errorf("audit verify: %s", out)
	}
}

// rss is the memory the box holds, in bytes: what it holds now, or at most since the last call of forget.
func (b *box) rss(peak bool) int64 {
	b.t.Helper()
	key := "VmRSS:"
	if peak {
		key = "VmHWM:"
	}
	for line := range strings.Lines(read(b.t, fmt.Sprintf("/proc/%d/status", b.pid()))) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				b.t.Fatal(err)
			}
			return kib << 10
		}
	}
	b.t.Fatalf("no %s", key)
	return 0
}

// forget makes the peak of rss begin anew.
func (b *box) forget() int64 {
	b.t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", b.pid()), []byte("5"), 0); err != nil {
		b.t.Logf("the peak is that since the start: %v", err)
	}
	return b.rss(false)
}

// grew fails when the box took more than limit bytes beyond base.
func (b *box) grew(base, limit int64) {
	b.t.Helper()
	peak := b.rss(true)
	b.t.Logf("memory: %d MiB, then at most %d MiB", base>>20, peak>>20)
	if peak-base > limit {
		b.t.Errorf("memory grew by %d MiB, more than %d", (peak-base)>>20, limit>>20)
	}
}

// staged is what lies in the private area of the datasource: uploads on their way, and what is being deleted.
func (b *box) staged() (files int, bytes int64) {
	area := filepath.Join(b.files, ".cellgate")
	_ = filepath.WalkDir(area, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Dir(name) == area {
			return nil
		}
		if info, err := d.Info(); err == nil {
			files, bytes = files+1, bytes+info.Size()
		}
		return nil
	})
	return files, bytes
}

// dial connects to the box.
func (b *box) dial() net.Conn {
	b.t.Helper()
	c, err := net.Dial("tcp", b.http)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}
