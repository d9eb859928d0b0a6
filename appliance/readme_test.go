package appliance

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var fencePattern = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

// TestReadme runs what the README tells people to type: its sh blocks, one after the other, in a shell with an empty home. The address and
// the folder of the examples are replaced by free ones.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, d := range []string{"bin", "home/Documents", "files"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "bin", "cellgate")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "report.txt"), "a report\n")
	real := strings.NewReplacer("127.0.0.1:8080", freeAddress(t), "127.0.0.1:2022", freeAddress(t), "127.0.0.1:9000", freeAddress(t), "/srv/files", filepath.Join(dir, "files"))

	script := []string{"set -eu", "pids=", `trap 'status=$?; kill $pids 2>/dev/null; wait; exit $status' EXIT`}
	commands := 0
	for _, m := range fencePattern.FindAllStringSubmatch(string(text), -1) {
		kind, block := m[1], real.Replace(m[2])
		switch kind {
		case "yaml":
			name, ok := strings.CutPrefix(strings.SplitN(block, "\n", 2)[0], "# ")
			if !ok {
				t.Fatalf("a yaml block does not say its file:\n%s", block)
			}
			write(t, filepath.Join(dir, name), block)
		case "sh":
			for line := range strings.Lines(block) {
				line = strings.TrimSpace(line)
				commands++
				script = append(script, "echo '$' "+shellQuote(line))
				switch {
				case strings.HasPrefix(line, "cellgate portable"):
					script = append(script, line+" >portable.out 2>&1 & pid=$!",
						"until grep -q ^password portable.out; do kill -0 $pid; sleep 0.1; done; kill $pid; wait $pid")
				case strings.HasSuffix(line, "&"):
					script = append(script, line, `pids="$pids $!"`, "until test -S box/admin.sock; do kill -0 $!; sleep 0.1; done; sleep 0.3")
				default:
					script = append(script, strings.Replace(line, "curl ", "curl -sS --fail ", 1))
				}
			}
		case "console": // make run and make test: too large for a test, but they have to be there
			makefile, err := os.ReadFile("../Makefile")
			if err != nil {
				t.Fatal(err)
			}
			for _, target := range regexp.MustCompile(`(?m)^\$ make (\w+)`).FindAllStringSubmatch(block, -1) {
				if !strings.Contains(string(makefile), "\n"+target[1]+":") {
					t.Errorf("the Makefile has no target %s", target[1])
				}
			}
		}
	}
	if commands < 10 {
		t.Fatalf("found %d commands in the README", commands)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", strings.Join(script, "\n"))
	cmd.WaitDelay = time.Second
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + filepath.Join(dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + filepath.Join(dir, "home"), "TMPDIR=" + dir}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"a report", "denied: ", "all in order", "0 findings"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("%s", out)
	}
}

// TestReadmeLists keeps the tables of the README what the code has: every command, every configuration key that it names.
func TestReadmeLists(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-zA-Z.]+)`(?:, `([a-zA-Z.]+)`)? \\| `CELLGATE").FindAllStringSubmatch(string(text), -1) {
		for _, key := range m[1:] {
			if key != "" && !strings.Contains(Example(), "["+leaf{key: key}.env()+"]") {
				t.Errorf("the README names the key %s, which does not exist", key)
			}
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
