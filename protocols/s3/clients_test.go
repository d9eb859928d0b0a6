package s3

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program returns a client that is installed, or skips.
func program(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed", names[0])
	return ""
}

// run runs a program and returns what it prints.
func run(t *testing.T, env []string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") && !strings.HasPrefix(v, "RCLONE_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(append(cmd.Env, "HOME="+t.TempDir(), "AWS_EC2_METADATA_DISABLED=true", "LC_ALL=C.UTF-8"), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// sample is a folder with some files, one of which comes in parts with most clients.
func sample(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, size := range map[string]int{"small": 5, "empty": 0, "sub/b c.txt": 70_000, "sub/ünï+%20.txt": 300, "large": 17<<20 + 3} {
		at := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, many(size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// sameTree compares two folders.
func sameTree(t *testing.T, got, want string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "diff", "-r", got, want).CombinedOutput(); err != nil {
		t.Errorf("%s", out)
	}
}

func (b *box) awsEnv() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + alice.name, "AWS_SECRET_ACCESS_KEY=" + alice.value, "AWS_DEFAULT_REGION=us-east-1"}
}

func TestAwscli(t *testing.T) {
	aws := program(t, "aws")
	b := openBox(t, nil)
	dir, back := sample(t), t.TempDir()
	config := filepath.Join(t.TempDir(), "config") // without it, old ones presign with version 2
	if err := os.WriteFile(config, []byte("[default]\ns3 =\n  signature_version = s3v4\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	do := func(args ...string) string {
		return run(t, append(b.awsEnv(), "AWS_CONFIG_FILE="+config), append([]string{aws, "--endpoint-url", "http://" + b.addr}, args...)...)
	}
	do("s3", "cp", "--recursive", dir, "s3://docs/in/", "--metadata", "color=blue")
	sameTree(t, filepath.Join(b.dir, "docs", "in"), dir)
	do("s3", "sync", "s3://docs/in/", back)
	sameTree(t, back, dir)
	do("s3", "mv", "s3://docs/in/small", "s3://docs/out/small")
	if out := do("s3api", "head-object", "--bucket", "docs", "--key", "out/small"); !strings.Contains(out, `"color": "blue"`) {
		t.Errorf("metadata: %s", out)
	}
	if out := do("s3", "ls", "s3://docs/"); !strings.Contains(out, "PRE in/") || !strings.Contains(out, "PRE out/") {
		t.Errorf("ls: %s", out)
	}
	url := strings.TrimSpace(do("s3", "presign", "s3://docs/out/small"))
	if out := run(t, nil, program(t, "curl"), "-sf", url); out != string(many(5)) {
		t.Errorf("presigned: %q", out)
	}
	do("s3", "mb", "s3://made-here")
	do("s3", "rm", "--recursive", "s3://docs/")
	if got := b.keys("docs"); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

const boto = `
import sys, io, boto3
from botocore.config import Config
for style in ("path",):
    c = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1", config=Config(signature_version="s3v4", s3={"addressing_style": style}))
    big = bytes(range(256)) * (9 << 12)
    for algo in ("CRC32", "CRC32C", "SHA1", "SHA256", "CRC64NVME"):
        try:
            c.put_object(Bucket="docs", Key="k/" + algo, Body=b"hello", ChecksumAlgorithm=algo)
        except Exception as e:
            if "Missing Dependency" in str(e) or "CRC64NVME" == algo or "crt" in str(e).lower():
                continue
            raise
        r = c.get_object(Bucket="docs", Key="k/" + algo, ChecksumMode="ENABLED")
        assert r["Body"].read() == b"hello" and r["Checksum" + algo], r
    c.upload_fileobj(io.BytesIO(big), "docs", "k/big", ExtraArgs={"Metadata": {"a": "b"}})
    r = c.get_object(Bucket="docs", Key="k/big")
    assert r["Body"].read() == big and r["Metadata"] == {"a": "b"}, r
    c.copy({"Bucket": "docs", "Key": "k/big"}, "docs", "k/copy")
    assert c.head_object(Bucket="docs", Key="k/copy")["ContentLength"] == len(big)
    keys = [o["Key"] for p in c.get_paginator("list_objects_v2").paginate(Bucket="docs", PaginationConfig={"PageSize": 2}) for o in p["Contents"]]
    assert keys == sorted(keys) and "k/big" in keys, keys
    post = c.generate_presigned_post("docs", "form/${filename}", Fields={"x-amz-meta-a": "b"}, Conditions=[["content-length-range", 1, 100], {"x-amz-meta-a": "b"}])
    assert post["fields"]["policy"]
    c.delete_objects(Bucket="docs", Delete={"Objects": [{"Key": k} for k in keys]})
    assert c.list_objects_v2(Bucket="docs")["KeyCount"] == 0
print("fine")
`

func TestBoto3(t *testing.T) {
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		t.Run(strings.ReplaceAll(python, "/", "-"), func(t *testing.T) {
			python := program(t, python)
			if exec.Command(python, "-c", "import boto3").Run() != nil {
				t.Skip("boto3 is not installed")
			}
			b := openBox(t, nil)
			if out := run(t, b.awsEnv(), python, "-c", boto, "http://"+b.addr); !strings.Contains(out, "fine") {
				t.Error(out)
			}
		})
	}
}

func TestS3cmd(t *testing.T) {
	s3cmd := program(t, "s3cmd")
	b := openBox(t, nil)
	dir, back := sample(t), t.TempDir()
	do := func(args ...string) string {
		return run(t, nil, append([]string{s3cmd, "--access_key=" + alice.name, "--secret_key=" + alice.value, "--host=" + b.addr, "--host-bucket=" + b.addr, "--no-ssl", "--no-progress",
			"--region=us-east-1", "--multipart-chunk-size-mb=5"}, args...)...)
	}
	do("put", "--recursive", dir+"/", "s3://docs/in/")
	sameTree(t, filepath.Join(b.dir, "docs", "in"), dir)
	do("get", "--recursive", "s3://docs/in/", back)
	sameTree(t, back, dir)
	do("cp", "s3://docs/in/large", "s3://docs/copy")
	do("modify", "--add-header=x-amz-meta-color:blue", "s3://docs/in/small")
	if out := do("info", "s3://docs/in/small"); !strings.Contains(out, "blue") {
		t.Errorf("info: %s", out)
	}
	if out := do("sync", dir+"/", "s3://docs/in/"); strings.Contains(out, "upload:") {
		t.Errorf("a second sync copies: %s", out)
	}
	if out := do("ls", "s3://"); !strings.Contains(out, "s3://docs") {
		t.Errorf("ls: %s", out)
	}
	do("del", "--recursive", "--force", "s3://docs/")
	if got := b.keys("docs"); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

func TestRclone(t *testing.T) {
	rclone := program(t, "rclone")
	b := openBox(t, nil)
	dir, back := sample(t), t.TempDir()
	env := []string{"RCLONE_CONFIG=/dev/null", "RCLONE_CONFIG_X_TYPE=s3", "RCLONE_CONFIG_X_PROVIDER=Other", "RCLONE_CONFIG_X_ENDPOINT=http://" + b.addr, "RCLONE_CONFIG_X_ACCESS_KEY_ID=" + alice.name,
		"RCLONE_CONFIG_X_SECRET_ACCESS_KEY=" + alice.value, "RCLONE_CONFIG_X_REGION=us-east-1", "RCLONE_S3_UPLOAD_CUTOFF=6Mi", "RCLONE_S3_CHUNK_SIZE=5Mi"}
	do := func(args ...string) string { return run(t, env, append([]string{rclone}, args...)...) }
	do("sync", dir, "x:docs/in")
	sameTree(t, filepath.Join(b.dir, "docs", "in"), dir)
	do("check", dir, "x:docs/in")
	do("sync", "x:docs/in", back)
	sameTree(t, back, dir)
	do("moveto", "x:docs/in/large", "x:docs/out/l")
	do("touch", "-C", "-t", "2020-01-02T03:04:05", "x:docs/in/small")
	if out := do("lsl", "x:docs/in/small"); !strings.Contains(out, "2020-01-02") {
		t.Errorf("lsl: %s", out)
	}
	// Files of another door have tags that are no MD5: rclone does not take them for one.
	if err := os.WriteFile(filepath.Join(b.dir, "docs", "other"), []byte("by hand"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := do("cat", "x:docs/other"); out != "by hand" {
		t.Errorf("cat: %q", out)
	}
	if out := do("md5sum", "x:docs/other"); strings.Contains(out, "-0") {
		t.Errorf("md5sum: %s", out)
	}
	do("mkdir", "x:docs/folder")
	do("delete", "x:docs")
	if got := b.keys("docs"); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

func TestS3fs(t *testing.T) {
	s3fs := program(t, "s3fs")
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skip("there is no /dev/fuse")
	} else {
		f.Close()
	}
	b := openBox(t, nil)
	mnt, secrets := t.TempDir(), filepath.Join(t.TempDir(), "secrets")
	if err := os.WriteFile(secrets, []byte(alice.name+":"+alice.value), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(s3fs, "docs", mnt, "-f", "-o", "url=http://"+b.addr, "-o", "use_path_request_style", "-o", "passwd_file="+secrets, "-o", "sigv4", "-o", "endpoint=us-east-1")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() {
		over <- cmd.Wait()
		close(over)
	}()
	t.Cleanup(func() {
		_ = exec.Command("fusermount", "-u", mnt).Run()
		select {
		case <-over:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-over
		}
	})
	if err := mountedWithin(mnt, time.Minute, over); err != nil {
		t.Skipf("s3fs does not mount here: %v %s", err, log.String())
	}
	dir := sample(t)
	run(t, nil, "cp", "-r", dir, filepath.Join(mnt, "in"))
	sameTree(t, filepath.Join(mnt, "in"), dir)
	sameTree(t, filepath.Join(b.dir, "docs", "in"), dir)
	if err := os.Rename(filepath.Join(mnt, "in", "sub"), filepath.Join(mnt, "moved")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(mnt, "in", "small"), []byte("changed"), 0o600); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(b.dir, "docs", "in", "small")); string(got) != "changed" {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Mkdir(filepath.Join(mnt, "empty"), 0o755); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"in", "moved", "empty"} {
		if err := os.RemoveAll(filepath.Join(mnt, name)); err != nil {
			t.Error(err)
		}
	}
	if got := b.keys("docs"); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

// mountedWithin waits until something is mounted at a folder.
func mountedWithin(dir string, patience time.Duration, over <-chan error) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if out, err := os.ReadFile("/proc/self/mounts"); err == nil && strings.Contains(string(out), " "+dir+" ") {
			return nil
		}
		select {
		case err := <-over:
			return fmt.Errorf("it ended: %w", err)
		default:
		}
	}
	return errors.New("it takes too long")
}

// What a client sends slowly is waited for, and who sends nothing is cut off; others do not wait for either.
func TestSlowClients(t *testing.T) {
	b := openBox(t, func(c *Config) { c.Limits.Stall = 300 * time.Millisecond })
	r := b.request(call{method: "PUT", path: "/docs/slow", body: string(many(200_000)), payload: unsignedPayload})
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT /docs/slow HTTP/1.1\r\nHost: %s\r\nContent-Length: 200000\r\n", b.addr)
	r.Header.Write(conn)
	fmt.Fprint(conn, "\r\nsome bytes and then nothing")
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	var answer [4096]byte
	n, _ := conn.Read(answer[:])
	if got := string(answer[:n]); got != "" && !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("a stalled client hears %q", got)
	}
	if a := b.get("slow"); a.status != 404 {
		t.Errorf("what was cut off is there: %v", a)
	}
}

// Clients that wait for "100 Continue" get it, with nothing to send, too: see goOn.
func TestExpect(t *testing.T) {
	b := openBox(t, nil)
	r := b.request(call{method: "PUT", path: "/docs/empty"})
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(conn, "PUT /docs/empty HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\nExpect: 100-continue\r\n", b.addr)
	r.Header.Write(conn)
	fmt.Fprint(conn, "\r\n")
	var got string
	for answer := make([]byte, 4096); !strings.Contains(got, "HTTP/1.1 200 OK\r\n"); {
		n, err := conn.Read(answer)
		if got += string(answer[:n]); err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if !strings.HasPrefix(got, "HTTP/1.1 100 Continue\r\n\r\n") {
		t.Errorf("got %q", got)
	}
}
