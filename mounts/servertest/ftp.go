package servertest

import (
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

// FTPOptions say which FTP server and how it is set up.
type FTPOptions struct {
	Kind    string // "vsftpd", "proftpd" or "pure-ftpd"
	TLS     string // "" for none, "explicit" (and demanded), or "implicit", which proftpd and vsftpd know
	Cert    Cert   // with TLS
	Port    int    // 0: a free one
	Root    string // "": a new folder
	Clients int    // at most so many connections, 0: many
	Lines   string // more of the server's configuration; more arguments for pure-ftpd
}

// The one user the FTP servers know, with the crypt(3) form of the password.
const (
	ftpUser     = "ann"
	ftpPassword = "sesame open"
	ftpCrypt    = "$6$cellgatetest$LL7zBeaf27rdFYstbBG./dAwyzz3qWIWfzZW8pbcCXeUji/8feIv71SE8PcHGPY0X04rZcY6EzLjSxvJJIRsy0"
	nobody      = 65534
)

// FTP starts an FTP server with one user, whose folder is Root. Tests without the server, or not run as root, are skipped.
func FTP(t testing.TB, opt FTPOptions) *Server {
	t.Helper()
	Root(t)
	dir := Dir(t)
	if opt.Root == "" {
		opt.Root = filepath.Join(dir, "root")
		if err := os.Mkdir(opt.Root, 0o755); err != nil {
			t.Fatal(err)
		}
		uid, gid := nobody, nobody
		if opt.Kind == "vsftpd" {
			uid, gid = vsftpdGuest(t)
		}
		if err := os.Chown(opt.Root, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if opt.Port == 0 {
		opt.Port = Port(t)
	}
	var cmd *exec.Cmd
	switch opt.Kind {
	case "vsftpd":
		cmd = vsftpd(t, dir, opt)
	case "proftpd":
		cmd = proftpd(t, dir, opt)
	case "pure-ftpd":
		cmd = pureFTPd(t, dir, opt)
	default:
		t.Fatalf("unknown FTP server %q", opt.Kind)
	}
	s := Start(t, opt.Port, cmd)
	s.Root, s.User, s.Password = opt.Root, ftpUser, ftpPassword
	return s
}

// FTPConfig is the datasource for a server that FTP started.
func FTPConfig(s *Server, opt FTPOptions) mounts.Config {
	options := map[string]string{"host": s.Host, "port": strconv.Itoa(s.Port), "tls": "off"}
	if opt.TLS != "" {
		options["tls"], options["ca"] = opt.TLS, opt.Cert.CA
	}
	return mounts.Config{
		Name: "ftp", Options: options,
		Credentials: map[string]secret.String{"username": secret.New(s.User), "password": secret.New(s.Password)},
	}
}

// vsftpd knows users by PAM only; pam_userdb has them from a file of Berkeley DB, which Perl can write, and needs no user of the system.
func vsftpd(t testing.TB, dir string, opt FTPOptions) *exec.Cmd {
	t.Helper()
	program := Need(t, "vsftpd")
	users := filepath.Join(dir, "users")
	perl := exec.Command("perl", "-MDB_File", "-e",
		`tie my %h, "DB_File", $ARGV[0], O_CREAT|O_RDWR, 0600, $DB_HASH or die $!; $h{$ARGV[1]} = $ARGV[2]; untie %h`,
		users+".db", ftpUser, ftpPassword)
	if out, err := perl.CombinedOutput(); err != nil {
		t.Skipf("vsftpd's users cannot be made without Perl's DB_File: %v %s", err, out)
	}
	service := "cellgate-" + filepath.Base(dir)
	pam := filepath.Join("/etc/pam.d", service)
	Write(t, pam, "auth required pam_userdb.so db=%s\naccount required pam_permit.so\n", users)
	t.Cleanup(func() { os.Remove(pam) })
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	lines := []string{
		"listen=YES", "listen_address=127.0.0.1", "listen_port=" + strconv.Itoa(opt.Port), "background=NO", "anonymous_enable=NO", "local_enable=YES",
		"guest_enable=YES", "guest_username=ftp", "virtual_use_local_privs=YES", "local_root=" + opt.Root, "chroot_local_user=YES",
		"allow_writeable_chroot=YES", "write_enable=YES", "local_umask=022", "pam_service_name=" + service, "secure_chroot_dir=" + empty,
		"seccomp_sandbox=NO", "xferlog_enable=NO", "delay_failed_login=0", "max_login_fails=1", "isolate_network=NO",
	}
	if opt.Clients > 0 {
		lines = append(lines, "max_clients="+strconv.Itoa(opt.Clients))
	}
	if opt.TLS != "" {
		lines = append(lines, "ssl_enable=YES", "force_local_logins_ssl=YES", "force_local_data_ssl=YES", "require_ssl_reuse=YES",
			"rsa_cert_file="+opt.Cert.BothFile, "ssl_ciphers=HIGH")
		if opt.TLS == "implicit" {
			lines = append(lines, "implicit_ssl=YES")
		}
	}
	conf := Write(t, filepath.Join(dir, "vsftpd.conf"), "%s\n", strings.Join(lines, "\n")+"\n"+opt.Lines)
	return exec.Command(program, conf)
}

// vsftpdGuest returns the user that vsftpd works as: one with a folder of its own, which its package makes.
func vsftpdGuest(t testing.TB) (uid, gid int) {
	t.Helper()
	guest, err := user.Lookup("ftp")
	if err != nil {
		t.Skipf("vsftpd's package has made no user ftp: %v", err)
	}
	if uid, err = strconv.Atoi(guest.Uid); err == nil {
		gid, err = strconv.Atoi(guest.Gid)
	}
	if err != nil {
		t.Fatal(err)
	}
	return uid, gid
}

func proftpd(t testing.TB, dir string, opt FTPOptions) *exec.Cmd {
	t.Helper()
	program := Need(t, "proftpd")
	modules := filepath.Join(filepath.Dir(filepath.Dir(program)), "lib/proftpd")
	users := Write(t, filepath.Join(dir, "passwd"), "%s:%s:%d:%d::%s:/bin/sh\n", ftpUser, ftpCrypt, nobody, nobody, opt.Root)
	lines := []string{
		opt.Lines, // of two alike the first counts
		"ServerType standalone", "ServerName test", "Port " + strconv.Itoa(opt.Port), "User nobody", "Group nogroup", "DefaultAddress 127.0.0.1",
		"UseReverseDNS off", "UseIPv6 off", "WtmpLog off", "DelayEngine off", "TransferLog none", "ModulePath " + modules,
		"PidFile " + filepath.Join(dir, "pid"), "ScoreboardFile " + filepath.Join(dir, "score"), "SystemLog " + filepath.Join(dir, "log"),
		"AuthOrder mod_auth_file.c", "AuthUserFile " + users, "RequireValidShell off", "AllowOverwrite on", "AllowStoreRestart on", "DefaultRoot ~",
		"Umask 022", "AllowOverride off", "TimeoutLinger 1", "MaxLoginAttempts 1",
	}
	for _, m := range []string{"mod_digest", "mod_copy", "mod_site_misc"} {
		if _, err := os.Stat(filepath.Join(modules, m+".so")); err == nil {
			lines = append(lines, "LoadModule "+m+".c")
		}
	}
	if opt.Clients > 0 {
		lines = append(lines, "MaxClients "+strconv.Itoa(opt.Clients))
	}
	if opt.TLS != "" {
		if _, err := os.Stat(filepath.Join(modules, "mod_tls.so")); err != nil {
			t.Skip("proftpd has no mod_tls: make tools unpacks it from proftpd-mod-crypto")
		}
		lines = append(lines, "LoadModule mod_tls.c", "TLSEngine on", "TLSRequired on", "TLSLog "+filepath.Join(dir, "tlslog"),
			"TLSProtocol TLSv1.2 TLSv1.3", "TLSECCertificateFile "+opt.Cert.CertFile, "TLSECCertificateKeyFile "+opt.Cert.KeyFile)
		if opt.TLS == "implicit" {
			lines = append(lines, "TLSOptions UseImplicitSSL")
		}
	}
	conf := Write(t, filepath.Join(dir, "proftpd.conf"), "%s\n", strings.Join(lines, "\n"))
	return exec.Command(program, "-n", "-q", "-c", conf)
}

func pureFTPd(t testing.TB, dir string, opt FTPOptions) *exec.Cmd {
	t.Helper()
	program, pw := Need(t, "pure-ftpd"), ""
	if pw = filepath.Join(filepath.Dir(filepath.Dir(program)), "bin/pure-pw"); !exists(pw) {
		pw = Need(t, "pure-pw")
	}
	text := Write(t, filepath.Join(dir, "users"), "%s:%s:%d:%d::%s/./::::::::::::\n", ftpUser, ftpCrypt, nobody, nobody, opt.Root)
	db := filepath.Join(dir, "users.pdb")
	if out, err := exec.Command(pw, "mkdb", db, "-f", text).CombinedOutput(); err != nil {
		t.Fatalf("pure-pw: %v %s", err, out)
	}
	clients := opt.Clients
	if clients == 0 {
		clients = 100
	}
	args := []string{
		"-S", "127.0.0.1," + strconv.Itoa(opt.Port), "-l", "puredb:" + db, "-E", "-H", "-A", "-D", "-u", "1000", "-g", filepath.Join(dir, "pid"),
		"-L", "2000000:100", "-c", strconv.Itoa(clients), "-C", strconv.Itoa(clients), "-U", "133:022",
	}
	switch opt.TLS {
	case "explicit":
		args = append(args, "-Y", "3", "-2", opt.Cert.BothFile)
	case "implicit":
		t.Fatal("pure-ftpd knows no implicit TLS")
	}
	return exec.Command(program, append(args, strings.Fields(opt.Lines)...)...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
