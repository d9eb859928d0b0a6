package appliance

import (
	"bufio"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"cellgate": func() { os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs the stories of testdata, with these commands beside testscript's own:
//
//	serve ARG...        cellgate serve in the background, until it is ready; sets $HTTP, $HTTPS, $SFTP, $S3, $SETUP, $PID; writes serve.out and serve.err
//	halt [SIGNAL]       sends TERM (or KILL, INT, HUP) and, but for HUP, waits for the end
//	fill FILE...        replaces WORK by the script's folder
//	modes DIR           fails when others have any right on what is below DIR
//	nowhere WORD PATH...   fails when a file below one of the paths holds WORD
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Values[runningKey{}] = &running{}
			env.Setenv("CELLGATE_SFTP", "off")
			env.Setenv("CELLGATE_S3", "off")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve": scriptServe, "halt": scriptHalt, "fill": scriptFill, "modes": scriptModes, "nowhere": scriptNowhere,
		},
	})
}

type runningKey struct{}

// running is the box a script has started.
type running struct{ cmd *exec.Cmd }

var doorPattern = regexp.MustCompile(`(https?|sftp|s3)=(\S+)`)

func scriptServe(ts *testscript.TestScript, neg bool, args []string) {
	state := ts.Value(runningKey{}).(*running)
	if neg || state.cmd != nil {
		ts.Fatalf("usage: serve ARG..., once at a time")
	}
	stderr, err := os.Create(ts.MkAbs("serve.err"))
	ts.Check(err)
	defer stderr.Close()
	read, write, err := os.Pipe()
	ts.Check(err)
	// The most careless umask there is: the box has to take care of its files itself (G04).
	cmd := exec.Command("sh", append([]string{"-c", `umask 0; exec cellgate serve "$@"`, "sh"}, args...)...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Stdout, cmd.Stderr = write, stderr
	cmd.Env = scriptEnv(ts)
	ts.Check(cmd.Start())
	write.Close()
	state.cmd = cmd
	ts.Defer(func() {
		if state.cmd == cmd {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(read).ReadString('\n')
		line <- text
		read.Close()
	}()
	select {
	case text := <-line:
		ts.Check(os.WriteFile(ts.MkAbs("serve.out"), []byte(text), 0o600))
		if !strings.HasPrefix(text, "ready ") {
			log, _ := os.ReadFile(stderr.Name())
			ts.Fatalf("no ready line but %q\n%s", text, log)
		}
		for _, m := range doorPattern.FindAllStringSubmatch(text, -1) {
			ts.Setenv(strings.ToUpper(m[1]), m[2])
		}
	case <-time.After(30 * time.Second):
		ts.Fatalf("the box is not ready after 30 s")
	}
	ts.Setenv("PID", strconv.Itoa(cmd.Process.Pid))
	log, err := os.ReadFile(stderr.Name())
	ts.Check(err)
	if m := regexp.MustCompile(`\S+/setup\?token=\S+`).Find(log); m != nil {
		ts.Setenv("SETUP", string(m))
	}
}

// scriptEnv is the script's environment, as far as it concerns the box.
func scriptEnv(ts *testscript.TestScript) []string {
	env := []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "TMPDIR=" + ts.Getenv("TMPDIR")}
	for _, name := range []string{"CELLGATE_DATA", "CELLGATE_DATABASE_FILE", "CELLGATE_METRICS_TOKEN", "CELLGATE_LOG_LEVEL", "CELLGATE_HTTP", "CELLGATE_SFTP", "CELLGATE_S3"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func scriptHalt(ts *testscript.TestScript, neg bool, args []string) {
	state := ts.Value(runningKey{}).(*running)
	if neg || state.cmd == nil || len(args) > 1 {
		ts.Fatalf("usage: halt [SIGNAL], after serve")
	}
	signal := syscall.SIGTERM
	if len(args) == 1 {
		signal = map[string]syscall.Signal{"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP}[args[0]]
	}
	ts.Check(state.cmd.Process.Signal(signal))
	if signal == syscall.SIGHUP {
		return
	}
	err := state.cmd.Wait()
	state.cmd = nil
	if err != nil && signal != syscall.SIGKILL {
		log, _ := os.ReadFile(ts.MkAbs("serve.err"))
		ts.Fatalf("the box ended with %v\n%s", err, log)
	}
}

func scriptFill(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text, err := os.ReadFile(ts.MkAbs(name))
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(strings.ReplaceAll(string(text), "WORK", ts.MkAbs("."))), 0o600))
	}
}

func scriptModes(ts *testscript.TestScript, _ bool, args []string) {
	seen := 0
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		seen++
		if info.Mode().Perm()&0o077 != 0 {
			ts.Fatalf("%s has mode %v", name, info.Mode())
		}
		return nil
	}))
	if seen < 3 {
		ts.Fatalf("%s holds %d files", args[0], seen)
	}
}

func scriptNowhere(ts *testscript.TestScript, _ bool, args []string) {
	seen := 0
	for _, root := range args[1:] {
		ts.Check(filepath.WalkDir(ts.MkAbs(root), func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(name)
			seen += len(text)
			if strings.Contains(string(text), args[0]) {
				ts.Fatalf("%s holds %s", name, args[0])
			}
			return err
		}))
	}
	if seen == 0 {
		ts.Fatalf("nothing was looked at")
	}
}
