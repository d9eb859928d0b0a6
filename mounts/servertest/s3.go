package servertest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"cellgate/internal/secret"
	"cellgate/mounts"
)

// S3Bucket is the bucket that the server of S3 has.
const S3Bucket = "test-bucket"

// S3Options say how S3 is to be.
type S3Options struct {
	Cert       *Cert  // TLS
	Port       int    // 0: any
	Root       string // of a server before this one, "" for a fresh folder
	Domain     string // buckets are host names below it, too
	NoReuse    bool   // every request takes a connection of its own, as versitygw does unless told otherwise
	Versioning bool
}

// S3 starts versitygw over a folder of this machine, with one bucket in it. A folder is a directory there and an object a file, so that it
// refuses what S3 proper allows: an object "a" beside "a/b", and names longer than 255 bytes.
func S3(t testing.TB, opt S3Options) *Server {
	t.Helper()
	program := Need(t, "versitygw")
	if opt.Root == "" {
		opt.Root = Dir(t)
		for _, dir := range []string{"data/" + S3Bucket, "iam", "versions"} {
			if err := os.MkdirAll(filepath.Join(opt.Root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if opt.Port == 0 {
		opt.Port = Port(t)
	}
	const access, key = "testaccess", "testsecret0123456789"
	args := []string{"--port", "127.0.0.1:" + strconv.Itoa(opt.Port), "--access", access, "--secret", key, "--quiet", "--iam-dir", filepath.Join(opt.Root, "iam")}
	if !opt.NoReuse {
		args = append(args, "--keep-alive")
	}
	if opt.Cert != nil {
		args = append(args, "--cert", opt.Cert.CertFile, "--key", opt.Cert.KeyFile)
	}
	if opt.Domain != "" {
		args = append(args, "--virtual-domain", opt.Domain)
	}
	args = append(args, "posix")
	if opt.Versioning {
		args = append(args, "--versioning-dir", filepath.Join(opt.Root, "versions"))
	}
	s := Start(t, opt.Port, exec.Command(program, append(args, filepath.Join(opt.Root, "data"))...))
	s.Root, s.User, s.Password = filepath.Join(opt.Root, "data", S3Bucket), access, key
	return s
}

// S3Config returns how the driver "s3" is opened on the server of S3.
func S3Config(s *Server, opt S3Options) mounts.Config {
	cfg := mounts.Config{
		Name:        "s3",
		Options:     map[string]string{"endpoint": "http://" + s.Addr, "bucket": S3Bucket},
		Credentials: map[string]secret.String{"accessKey": secret.New(s.User), "secretKey": secret.New(s.Password)},
	}
	if opt.Cert != nil {
		cfg.Options["endpoint"] = "https://" + s.Addr
		cfg.Options["ca"] = opt.Cert.CA
	}
	return cfg
}
