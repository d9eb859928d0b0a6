package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The names of the servers in the report.
const (
	ours   = "cellgate"
	synced = "cellgate synced"
	nginx  = "nginx"
	apache = "apache"
	bare   = "gofloor"
)

// server is a running process.
type server struct {
	name  string
	addr  string
	cmd   *exec.Cmd
	ready time.Duration // from the start of the process to the first answer
	done  chan struct{} // closed when the process has ended
}

// side is a folder that a server serves.
type side struct {
	*server
	name  string // in the report
	root  string // "/dav/docs", "" at the root
	auth  string // value of Authorization, "" for none
	files string // the folder on this machine
}

// launch makes a server ready to serve below dir, which is its own, and returns its sides.
type launch func(l *lab, dir string) ([]side, error)

// spawn starts a process that dies with this one, and waits until it answers at addr. With addr empty the process says its address in a
// line "ready NAME=ADDRESS" or "ready ADDRESS" on standard output.
func spawn(name, addr, logFile string, env []string, command ...string) (*server, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s := &server{name: name, addr: addr, cmd: exec.Command(command[0], command[1:]...), done: make(chan struct{})}
	s.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(logFile), "TMPDIR=" + filepath.Dir(logFile)}, env...)
	s.cmd.Stderr, s.cmd.Stdout = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var out io.ReadCloser
	if addr == "" {
		s.cmd.Stdout = nil
		if out, err = s.cmd.StdoutPipe(); err != nil {
			return nil, err
		}
	}
	began, started := time.Now(), make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is sent when the thread that started the process ends
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait()
			close(s.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	if out != nil {
		line, _ := bufio.NewReader(out).ReadString('\n')
		_, s.addr, _ = strings.Cut(strings.TrimSpace(line), " ")
		if _, after, ok := strings.Cut(s.addr, "="); ok {
			s.addr, _, _ = strings.Cut(after, " ")
		}
	}
	for time.Since(began) < 20*time.Second && s.addr != "" && !s.ended() {
		if resp, err := http.Get("http://" + s.addr + "/"); err == nil {
			resp.Body.Close()
			s.ready = time.Since(began)
			return s, nil
		}
		time.Sleep(time.Millisecond)
	}
	text, _ := os.ReadFile(logFile)
	return nil, errors.Join(fmt.Errorf("%s does not start: %s", name, text), s.stop())
}

func (s *server) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// stop ends the process and waits for it.
func (s *server) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
		return nil
	case <-time.After(20 * time.Second):
	}
	_ = s.cmd.Process.Kill()
	<-s.done
	return fmt.Errorf("%s had to be killed", s.name)
}

// startCellgate starts a box with one user and two workspaces. Started anew in its folder it finds them there.
func startCellgate(l *lab, dir string) ([]side, error) {
	const password = "bench-password"
	files := map[string]string{"docs": filepath.Join(dir, "written"), "safe": filepath.Join(dir, "synced")}
	state := "users:\n  - {login: bench, password: " + password + ", group: /staff}\ngroups: [{path: /staff, label: Staff}]\ndatasources:\n"
	for slug, durability := range map[string]string{"docs": "written", "safe": "synced"} {
		if err := os.MkdirAll(files[slug], 0o755); err != nil {
			return nil, err
		}
		state += fmt.Sprintf("  - {name: %s, driver: local, options: {path: %s}, durability: %s}\n", slug, files[slug], durability)
	}
	state += "workspaces:\n"
	for slug := range files {
		state += fmt.Sprintf("  - {slug: %s, roots: [\"%s:/\"], grants: [{to: \"user:bench\", rights: [read, write]}, {to: \"group:/staff\", rights: [read]}]}\n", slug, slug)
	}
	stateFile := filepath.Join(dir, "state.yaml")
	if err := os.WriteFile(stateFile, []byte(state), 0o600); err != nil {
		return nil, err
	}
	command, env := []string{l.binary}, []string{"CELLGATE_LOG_ACCESS=false"}
	if profiles := os.Getenv(profileEnv); profiles != "" {
		command, env = []string{os.Args[0]}, append(env, roleEnv+"=profiled", profileEnv+"="+profiles)
	}
	data := filepath.Join(dir, "data")
	known := exists(data)
	command = append(command, "serve", "--http", "127.0.0.1:0", "--sftp", "off", "--s3", "off", "--data", data)
	s, err := spawn(ours, "", filepath.Join(dir, "log"), env, command...)
	if err != nil {
		return nil, err
	}
	if !known {
		if text, err := exec.Command(l.binary, "apply", "-f", stateFile, "--data", data).CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("apply: %w: %s", err, text), s.stop())
		}
	}
	r, _ := http.NewRequest(http.MethodGet, "http://"+s.addr, nil)
	r.SetBasicAuth("bench", password)
	auth := r.Header.Get("Authorization")
	return []side{
		{server: s, name: ours, root: "/dav/docs", auth: auth, files: files["docs"]},
		{server: s, name: synced, root: "/dav/safe", auth: auth, files: files["safe"]},
	}, nil
}

func startFloor(_ *lab, dir string) ([]side, error) {
	files, err := folder(dir, "files")
	if err != nil {
		return nil, err
	}
	s, err := spawn(bare, "", filepath.Join(dir, "log"), []string{roleEnv + "=gofloor"}, os.Args[0], files)
	return []side{{server: s, name: bare, files: files}}, err
}

// tcp_nopush would hold back the tail of a range until the client's delayed acknowledgement: 40 ms each.
const nginxConf = `daemon off; pid %[1]s/pid; error_log stderr error; worker_processes %[4]d; worker_rlimit_nofile 8192; %[5]s
events { worker_connections 4096; }
http {
	access_log off; sendfile on; tcp_nopush off; tcp_nodelay on; keepalive_requests 100000000; keepalive_timeout 600s; client_max_body_size 0;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/t1; fastcgi_temp_path %[1]s/t2; uwsgi_temp_path %[1]s/t3; scgi_temp_path %[1]s/t4;
	server {
		listen %[3]s; root %[2]s;
		location / { dav_methods PUT DELETE MKCOL COPY MOVE; %[6]s create_full_put_path on; }
	}
}
`

func startNginx(l *lab, dir string) ([]side, error) {
	program, err := find("nginx")
	if err != nil {
		return nil, err
	}
	files, err := folder(dir, "files")
	if err != nil {
		return nil, err
	}
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	load, ext := "", ""
	if module := "/usr/lib/nginx/modules/ngx_http_dav_ext_module.so"; exists(module) {
		load, ext = "load_module "+module+";", "dav_ext_methods PROPFIND OPTIONS;"
	} else {
		l.note("nginx cannot list: libnginx-mod-http-dav-ext is not installed")
	}
	if name := worker(); name != "" {
		load = "user " + name + "; " + load
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, files, addr, runtime.NumCPU(), load, ext), 0o644); err != nil {
		return nil, err
	}
	s, err := spawn(nginx, addr, filepath.Join(dir, "log"), nil, program, "-p", dir, "-c", conf)
	return []side{{server: s, name: nginx, files: files}}, err
}

const apacheConf = `ServerRoot %[1]s
PidFile %[1]s/pid
DefaultRuntimeDir %[1]s
Mutex file:%[1]s
ErrorLog %[1]s/error.log
LogLevel error
ServerName localhost
Listen %[3]s
%[4]s
LoadModule mpm_event_module %[5]s/mod_mpm_event.so
LoadModule authz_core_module %[5]s/mod_authz_core.so
LoadModule mime_module %[5]s/mod_mime.so
LoadModule dav_module %[5]s/mod_dav.so
LoadModule dav_fs_module %[5]s/mod_dav_fs.so
TypesConfig /etc/mime.types
StartServers 2
MinSpareThreads 25
MaxSpareThreads 400
ServerLimit 4
ThreadsPerChild 100
MaxRequestWorkers 400
AsyncRequestWorkerFactor 20
MaxConnectionsPerChild 0
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 600
Timeout 600
EnableSendfile On
LimitRequestBody 0
DocumentRoot %[2]s
DavLockDB %[1]s/locks
<Directory %[2]s>
	Require all granted
	Dav On
</Directory>
`

func startApache(_ *lab, dir string) ([]side, error) {
	program, err := find("apache2")
	if err != nil {
		return nil, err
	}
	files, err := folder(dir, "files")
	if err != nil {
		return nil, err
	}
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	who := ""
	if name := worker(); name != "" {
		who = "User " + name + "\nGroup #" + strconv.Itoa(gidOf(name))
		if err := give(dir, name); err != nil {
			return nil, err
		}
	}
	conf := filepath.Join(dir, "apache.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, apacheConf, dir, files, addr, who, "/usr/lib/apache2/modules"), 0o644); err != nil {
		return nil, err
	}
	s, err := spawn(apache, addr, filepath.Join(dir, "log"), nil, program, "-f", conf, "-DFOREGROUND")
	return []side{{server: s, name: apache, files: files}}, err
}

// errMissing is a program that is not installed.
var errMissing = errors.New("not installed")

func find(program string) (string, error) {
	for _, name := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errMissing
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// worker is the user that servers started by root give themselves up to, "" when not root.
func worker() string {
	if os.Getuid() != 0 {
		return ""
	}
	if _, err := user.Lookup("www-data"); err != nil {
		return "nobody"
	}
	return "www-data"
}

func gidOf(name string) int {
	u, err := user.Lookup(name)
	if err != nil {
		return 65534
	}
	gid, _ := strconv.Atoi(u.Gid)
	return gid
}

// give makes name the owner of path.
func give(path, name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(u.Uid)
	return os.Chown(path, uid, gidOf(name))
}

// folder makes a folder of files which the servers may write.
func folder(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o777)
}

// freePort returns an address that nobody listens on just now.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
