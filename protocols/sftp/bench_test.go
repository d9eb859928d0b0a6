package sftp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cellgate/mounts/servertest"
)

// rival is a server that OpenSSH's client is let loose on.
type rival struct {
	name string
	args []string
	dir  string               // of the tree, remotely
	cpu  func() time.Duration // that the server has used
}

// BenchmarkOpenSSH compares with OpenSSH's own server: the same client, one after the other in each round, files in memory.
//
//	go test -run - -bench OpenSSH -benchtime 3x ./protocols/sftp
func BenchmarkOpenSSH(b *testing.B) {
	if _, err := exec.LookPath("sftp"); err != nil {
		b.Skip("sftp is not installed")
	}
	size := 256 << 20
	src, err := os.MkdirTemp("/dev/shm", "sftp")
	if err != nil {
		b.Skip("no /dev/shm")
	}
	b.Cleanup(func() { os.RemoveAll(src) })
	big := filepath.Join(src, "big")
	f, err := os.Create(big)
	if err != nil {
		b.Fatal(err)
	}
	for some := random(1 << 20); err == nil && size > 0; size -= len(some) {
		_, err = f.Write(some)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		b.Fatal(err)
	}
	small := filepath.Join(src, "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		b.Fatal(err)
	}
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(small, fmt.Sprintf("file%04d", i)), random(4096), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	rivals := []rival{ours(b), theirs(b)}
	for _, cipher := range []string{"", "aes128-gcm@openssh.com"} {
		tests := []struct{ name, commands string }{
			{"put", "put " + big + " big"},
			{"get", "get big /dev/null"},
			{"smallput", "put -r " + small + " small"},
			{"smallget", "get -r small " + filepath.Join(src, "back")},
			{"list", "ls -l small"},
		}
		for _, test := range tests {
			b.Run(strings.TrimSuffix(test.name+"/"+cipher, "/"), func(b *testing.B) {
				var wall, cpu [2]time.Duration
				for b.Loop() {
					for i, r := range rivals {
						os.RemoveAll(filepath.Join(src, "back"))
						used, begun := r.cpu(), time.Now()
						args := append([]string{"-q", "-b", "-"}, r.args...)
						if cipher != "" {
							args = append([]string{"-c", cipher}, args...)
						}
						c := exec.CommandContext(context.Background(), "sftp", args...)
						c.Stdin = strings.NewReader("cd " + r.dir + "\n" + test.commands + "\n")
						if out, err := c.CombinedOutput(); err != nil {
							b.Fatalf("%s: %v\n%s", r.name, err, out)
						}
						wall[i] += time.Since(begun)
						cpu[i] += r.cpu() - used
					}
				}
				n := float64(b.N)
				b.ReportMetric(wall[0].Seconds()/n, "s/ours")
				b.ReportMetric(wall[1].Seconds()/n, "s/openssh")
				b.ReportMetric(wall[1].Seconds()/wall[0].Seconds(), "speed")
				b.ReportMetric(cpu[0].Seconds()/n, "cpu-s/ours")
				b.ReportMetric(cpu[0].Seconds()/max(cpu[1].Seconds(), 0.001), "cpu-ratio")
			})
		}
	}
}

func ours(b *testing.B) rival {
	x := start(b, onDisk(b), Config{})
	return rival{"ours", append(x.options(), "-P", x.port, "alice@127.0.0.1"), "/docs", func() time.Duration {
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}}
}

func theirs(b *testing.B) rival {
	key := servertest.NewSFTPKey(b, "")
	dir, err := os.MkdirTemp("/dev/shm", "sftp")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	s := servertest.SFTP(b, servertest.SFTPOptions{UserKeys: []servertest.SFTPKey{key}, Root: dir})
	name := filepath.Join(b.TempDir(), "id")
	if err := os.WriteFile(name, []byte(key.Private), 0o600); err != nil {
		b.Fatal(err)
	}
	pid := s.Cmd.Process.Pid
	return rival{"openssh", []string{
		"-F", "/dev/null", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "IdentitiesOnly=yes", "-i", name, "-P", strconv.Itoa(s.Port), s.User + "@127.0.0.1",
	}, dir, func() time.Duration {
		time.Sleep(100 * time.Millisecond) // until the session is reaped
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		var ticks int
		for _, i := range []int{11, 12, 13, 14} { // its own and those of its children, reaped
			n, _ := strconv.Atoi(f[i])
			ticks += n
		}
		return time.Duration(ticks) * 10 * time.Millisecond
	}}
}
