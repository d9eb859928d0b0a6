package servertest

import (
	"crypto/md5"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"cellgate/internal/secret"
	"cellgate/mounts"
)

// WebDAVOptions vary a WebDAV server.
type WebDAVOptions struct {
	Auth string // "", "basic" or "digest" (Apache only)
	Cert *Cert  // TLS, nil: none
	Port int    // 0: a free one
	Root string // a folder made by WebDAVRoot, "": a fresh one
}

// DavUser and DavPassword sign in where WebDAVOptions say that one must. The name needs quoting.
const (
	DavUser     = `ann "o" \ é`
	DavPassword = `correct "horse" é`
)

// WebDAVRoot makes a folder that the servers may write in.
func WebDAVRoot(t testing.TB) string {
	t.Helper()
	root := filepath.Join(Dir(t), "root")
	if err := os.Mkdir(root, 0o777); err != nil {
		t.Fatal(err)
	}
	own(t, root)
	return root
}

// own gives a folder to the user that web servers become, when this is root.
func own(t testing.TB, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	u, err := user.Lookup("www-data")
	if err != nil {
		t.Skip("there is no user www-data")
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
}

func (o *WebDAVOptions) fill(t testing.TB) {
	t.Helper()
	if o.Port == 0 {
		o.Port = Port(t)
	}
	if o.Root == "" {
		o.Root = WebDAVRoot(t)
	}
}

// started notes what the caller needs to know of a server.
func (o *WebDAVOptions) started(s *Server) *Server {
	s.Root = o.Root
	if o.Auth != "" {
		s.User, s.Password = DavUser, DavPassword
	}
	return s
}

// WebDAVConfig is what the driver webdav needs for s.
func WebDAVConfig(s *Server, o WebDAVOptions) mounts.Config {
	cfg := mounts.Config{Name: "dav", Options: map[string]string{"url": "http://" + s.Addr + "/dav/"}, Credentials: map[string]secret.String{}}
	if o.Cert != nil {
		cfg.Options["url"] = "https://" + s.Addr + "/dav/"
		cfg.Options["ca"] = o.Cert.CA
	}
	if s.User != "" {
		cfg.Credentials["username"], cfg.Credentials["password"] = secret.New(s.User), secret.New(s.Password)
	}
	return cfg
}

// Apache starts Apache's mod_dav at /dav/.
func Apache(t testing.TB, o WebDAVOptions) *Server {
	t.Helper()
	program := Need(t, "apache2")
	o.fill(t)
	dir := Dir(t)
	locks := filepath.Join(dir, "locks")
	if err := os.Mkdir(locks, 0o777); err != nil {
		t.Fatal(err)
	}
	own(t, locks)
	modules := "mpm_event authn_core authn_file auth_basic auth_digest authz_core authz_user alias dir dav dav_fs ssl"
	conf := "ServerRoot " + dir + "\nPidFile " + dir + "/pid\nServerName localhost\nUser www-data\nGroup www-data\nErrorLog " + dir + "/error.log\n" +
		"Listen 127.0.0.1:" + strconv.Itoa(o.Port) + "\n"
	for _, m := range strings.Fields(modules) {
		conf += "LoadModule " + m + "_module /usr/lib/apache2/modules/mod_" + m + ".so\n"
	}
	conf += `
StartServers 1
ServerLimit 2
ThreadsPerChild 64
MaxRequestWorkers 128
MaxKeepAliveRequests 0
Mutex file:` + dir + `
DocumentRoot ` + dir + `
DAVLockDB ` + locks + `/db
AllowEncodedSlashes NoDecode
Alias /dav ` + o.Root + `
Redirect 302 /elsewhere http://localhost:` + strconv.Itoa(o.Port) + `/dav
<Directory ` + o.Root + `>
	Dav On
	Options None
	AllowOverride None
	DirectoryIndex disabled
`
	md := md5.Sum([]byte(DavUser + ":storage:" + DavPassword))
	sha := sha1.Sum([]byte(DavPassword))
	switch o.Auth {
	case "basic":
		file := Write(t, filepath.Join(dir, "users"), "%s:{SHA}%s\n", DavUser, base64.StdEncoding.EncodeToString(sha[:]))
		public(t, file)
		conf += "AuthType Basic\nAuthName storage\nAuthUserFile " + file + "\nRequire valid-user\n"
	case "digest":
		file := Write(t, filepath.Join(dir, "users"), "%s:storage:%s\n", DavUser, hex.EncodeToString(md[:]))
		public(t, file)
		conf += "AuthType Digest\nAuthName storage\nAuthUserFile " + file + "\nRequire valid-user\n"
	default:
		conf += "Require all granted\n"
	}
	conf += "</Directory>\n"
	if o.Cert != nil {
		conf += "SSLEngine on\nSSLCertificateFile " + o.Cert.CertFile + "\nSSLCertificateKeyFile " + o.Cert.KeyFile + "\nSSLSessionCache none\n"
	}
	cmd := exec.Command(program, "-f", Write(t, filepath.Join(dir, "conf"), "%s", conf), "-DFOREGROUND")
	return o.started(Start(t, o.Port, cmd))
}

// Nginx starts nginx with dav-ext at /dav/.
func Nginx(t testing.TB, o WebDAVOptions) *Server {
	t.Helper()
	program := Need(t, "nginx")
	const module = "/usr/lib/nginx/modules/ngx_http_dav_ext_module.so"
	if _, err := os.Stat(module); err != nil {
		t.Skip("libnginx-mod-http-dav-ext is not installed: make packages")
	}
	o.fill(t)
	dir := Dir(t)
	listen, tls := "127.0.0.1:"+strconv.Itoa(o.Port), ""
	if o.Cert != nil {
		listen += " ssl"
		tls = "ssl_certificate " + o.Cert.CertFile + "; ssl_certificate_key " + o.Cert.KeyFile + ";"
	}
	temps := ""
	for _, kind := range strings.Fields("client_body proxy fastcgi uwsgi scgi") {
		temps += kind + "_temp_path " + dir + "/" + kind + "; "
	}
	conf := `load_module ` + module + `;
daemon off; worker_processes 2; user www-data; pid ` + dir + `/pid; error_log stderr crit;
events { worker_connections 512; }
http {
	access_log off; ` + temps + ` client_max_body_size 0; keepalive_requests 100000;
	server {
		listen ` + listen + `; ` + tls + `
		location /dav/ {
			alias ` + o.Root + `/;
			dav_methods PUT DELETE MKCOL COPY MOVE; dav_ext_methods PROPFIND OPTIONS; dav_access user:rw group:r;
		}
	}
}
`
	cmd := exec.Command(program, "-e", "stderr", "-p", dir, "-c", Write(t, filepath.Join(dir, "conf"), "%s", conf))
	return o.started(Start(t, o.Port, cmd))
}

// RcloneWebDAV starts rclone's WebDAV server at /dav/.
func RcloneWebDAV(t testing.TB, o WebDAVOptions) *Server {
	t.Helper()
	program := Need(t, "rclone")
	o.fill(t)
	args := []string{
		"serve", "webdav", o.Root, "--config", filepath.Join(Dir(t), "none"), "--addr", "127.0.0.1:" + strconv.Itoa(o.Port), "--baseurl", "/dav",
		"--log-level", "ERROR",
	}
	if o.Auth != "" {
		args = append(args, "--user", DavUser, "--pass", DavPassword)
	}
	if o.Cert != nil {
		args = append(args, "--cert", o.Cert.CertFile, "--key", o.Cert.KeyFile)
	}
	return o.started(Start(t, o.Port, exec.Command(program, args...)))
}

// public lets every user read a file.
func public(t testing.TB, file string) {
	t.Helper()
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
}
