package servertest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cellgate/internal/secret"
	"cellgate/mounts"
)

// SMBOptions say how samba serves. The shares are "data", "readonly" (the same folder) and those of Shares.
type SMBOptions struct {
	Port    int               // 0: a free one
	Root    string            // the folder of share "data"; "": a fresh one
	Encrypt string            // "smb encrypt" of the server: "" is its default, "required", "off"
	Signing string            // "server signing": "" is its default, "mandatory", "disabled"
	Min     string            // "server min protocol", such as SMB2_02
	Max     string            // "server max protocol"
	Lines   []string          // more lines of the section of share "data"
	Global  []string          // more lines of the section of the server
	Shares  map[string]string // more shares, and their folders
	Guests  bool              // who is not known is a guest
}

// SMB starts samba in a folder of its own: configuration, passwords, state and logs. Its one user is root, as whom it runs, under the name and
// password of Server.User and Server.Password.
func SMB(t testing.TB, opt SMBOptions) *Server {
	t.Helper()
	Root(t)
	smbd, smbpasswd := Need(t, "smbd"), Need(t, "smbpasswd")
	dir := Dir(t)
	port := opt.Port
	if port == 0 {
		port = Port(t)
	}
	root := opt.Root
	if root == "" {
		root = filepath.Join(dir, "data")
	}
	for _, d := range []string{root, filepath.Join(dir, "private"), filepath.Join(dir, "state")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const user, password = "gate", `pass "word" ü`
	Write(t, filepath.Join(dir, "users"), "root = %s\n", user)
	var conf strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&conf, format+"\n", args...) }
	line("[global]")
	for key, value := range map[string]string{
		"server role": "standalone server", "workgroup": "TEST", "netbios name": "TEST", "disable netbios": "yes", "smb ports": strconv.Itoa(port),
		"interfaces": "lo", "bind interfaces only": "yes", "passdb backend": "tdbsam:" + filepath.Join(dir, "private/passdb.tdb"),
		"username map": filepath.Join(dir, "users"), "private dir": filepath.Join(dir, "private"), "log file": filepath.Join(dir, "state/log"),
		"log level": "0", "load printers": "no", "disable spoolss": "yes", "printcap name": "/dev/null", "server smb encrypt": opt.Encrypt,
		"server signing": opt.Signing, "server min protocol": opt.Min, "server max protocol": opt.Max, "rpc start on demand helpers": "no",
	} {
		if value != "" {
			line("%s = %s", key, value)
		}
	}
	for _, key := range []string{"lock directory", "state directory", "cache directory", "pid directory", "ncalrpc dir", "binddns dir"} {
		line("%s = %s", key, filepath.Join(dir, "state"))
	}
	line("%s", strings.Join(opt.Global, "\n"))
	if opt.Guests {
		line("map to guest = bad user\nguest account = root")
	}
	share := func(name, path, more string) {
		line("[%s]\npath = %s\nguest ok = %v\n%s", name, path, opt.Guests, more)
	}
	share("data", root, "read only = no\n"+strings.Join(opt.Lines, "\n"))
	share("readonly", root, "read only = yes")
	for name, path := range opt.Shares {
		share(name, path, "read only = no")
	}
	file := Write(t, filepath.Join(dir, "smb.conf"), "%s", conf.String())
	add := exec.Command(smbpasswd, "-c", file, "-L", "-s", "-a", "root")
	add.Stdin = strings.NewReader(password + "\n" + password + "\n")
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("smbpasswd: %v\n%s", err, out)
	}
	s := Start(t, port, exec.Command(smbd, "-F", "--no-process-group", "--debug-stdout", "-s", file))
	s.Root, s.User, s.Password = root, user, password
	return s
}

// SMBConfig is the configuration of a datasource on share "data" of s, with more options in pairs of key and value.
func SMBConfig(s *Server, options ...string) mounts.Config {
	cfg := mounts.Config{
		Name:        "smb",
		Options:     map[string]string{"host": s.Host, "port": strconv.Itoa(s.Port), "share": "data"},
		Credentials: map[string]secret.String{"username": secret.New(s.User), "password": secret.New(s.Password)},
	}
	for i := 0; i+1 < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	return cfg
}

// SMBChild ends the samba processes that serve connections at once, so that connections break while the server lives on.
func (s *Server) SMBChild(t testing.TB) {
	t.Helper()
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(s.Cmd.Process.Pid)).Output()
	if err != nil {
		t.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(out)) {
		exec.Command("kill", "-9", pid).Run()
	}
	time.Sleep(50 * time.Millisecond)
}

// SMBShortName returns the DOS short name that samba makes up for a file of share "data".
func SMBShortName(t testing.TB, s *Server, name string) string {
	t.Helper()
	cmd := exec.Command(Need(t, "smbclient"), "//127.0.0.1/data", "-p", strconv.Itoa(s.Port), "-s", "/dev/null", "-m", "SMB3",
		"-c", fmt.Sprintf(`altname "%s"`, name))
	cmd.Env = append(os.Environ(), "USER="+s.User, "PASSWD="+s.Password)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("smbclient: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}
