package fuse_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/gateway"
)

// fsxHelper FILE SEED COUNT runs fsx.
func fsxHelper(args []string) error {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	return fsx(args[0], rand.New(rand.NewPCG(seed, 1)), count)
}

const fsxMost = 256 << 10

// fsx is the algorithm of fsx: random reads, writes, truncates, mappings and closes, against a model in memory.
func fsx(name string, r *rand.Rand, count int) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	var model []byte
	grow := func(size int) {
		for len(model) < size {
			model = append(model, make([]byte, size-len(model))...)
		}
	}
	check := func(what string, got []byte, off int) error {
		if want := model[off : off+len(got)]; !bytes.Equal(got, want) {
			for i := range got {
				if got[i] != want[i] {
					return fmt.Errorf("%s: byte %d is %#x, want %#x (size %d)", what, off+i, got[i], want[i], len(model))
				}
			}
		}
		return nil
	}
	for i := range count {
		off, n := r.IntN(fsxMost), 1+r.IntN(64<<10)
		n = min(n, fsxMost-off)
		var err error
		what := ""
		switch op := r.IntN(100); {
		case op < 30:
			what = "write"
			data := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, n)[:n]
			_, err = f.WriteAt(data, int64(off))
			grow(off + n)
			copy(model[off:], data)
		case op < 60:
			what = "read"
			if off >= len(model) {
				continue
			}
			buf := make([]byte, min(n, len(model)-off))
			if _, err = f.ReadAt(buf, int64(off)); err == nil {
				err = check(what, buf, off)
			}
		case op < 70:
			what = "truncate"
			if err = f.Truncate(int64(off)); off < len(model) {
				model = model[:off:off]
			}
			grow(off)
		case op < 75:
			what = "truncate by name"
			if err = os.Truncate(name, int64(off)); off < len(model) {
				model = model[:off:off]
			}
			grow(off)
		case op < 85:
			what = "map"
			if len(model) == 0 {
				continue
			}
			m, merr := unix.Mmap(int(f.Fd()), 0, len(model), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err = merr; err == nil {
				if err = check("map", m, 0); err == nil && off < len(m) {
					n = min(n, len(m)-off)
					for k := range n {
						m[off+k], model[off+k] = byte(i^k), byte(i^k)
					}
					err = unix.Msync(m, unix.MS_SYNC)
				}
				err = errors.Join(err, unix.Munmap(m))
			}
		case op < 90:
			what = "sync"
			err = f.Sync()
		case op < 93:
			what = "allocate"
			err = unix.Fallocate(int(f.Fd()), 0, int64(off), int64(n))
			grow(off + n)
		default:
			what = "close and open"
			if err = f.Close(); err == nil {
				f, err = os.OpenFile(name, os.O_RDWR, 0)
			}
		}
		if err == nil {
			var i os.FileInfo
			if i, err = f.Stat(); err == nil && i.Size() != int64(len(model)) {
				err = fmt.Errorf("size %d, want %d", i.Size(), len(model))
			}
		}
		if err != nil {
			return fmt.Errorf("operation %d, %s at %d, %d bytes: %w", i, what, off, n, err)
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	got, err := os.ReadFile(name)
	if err == nil && len(got) != len(model) {
		err = fmt.Errorf("%d bytes in the end, want %d", len(got), len(model))
	}
	if err != nil {
		return err
	}
	return check("the end", got, 0)
}

// TestFsx runs fsx's algorithm, each time with a seed that is told when it fails.
func TestFsx(t *testing.T) {
	everywhere(t, func(t *testing.T, h *house, dir string, _ bool) {
		count := "1000"
		if testing.Short() {
			count = "200"
		}
		for range 2 {
			help(t, "fsx", filepath.Join(dir, "f"), fmt.Sprint(rand.Uint64()), count)
		}
		slow, _ := h.mount(t, "alice", nil)
		help(t, "fsx", filepath.Join(slow, "docs/g"), fmt.Sprint(rand.Uint64()), count)
	})
	t.Run("bytes through us", func(t *testing.T) {
		h := newHouse(t, gateway.Limits{StagedBytes: 1 << 40})
		dir, _ := h.mount(t, "alice", nil)
		help(t, "fsx", filepath.Join(dir, "docs/f"), fmt.Sprint(rand.Uint64()), "1000")
	})
}

// sample is a tree of some files to carry about.
func sample(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for i := range 60 {
		sub := filepath.Join(dir, fmt.Sprint("d", i%5), fmt.Sprint("e", i%3))
		must(t, os.MkdirAll(sub, 0o755))
		must(t, os.WriteFile(filepath.Join(sub, fmt.Sprint("f", i)), bytes.Repeat([]byte{byte(i)}, i*i*37), 0o644))
	}
	return dir
}

// TestTarAndRsync: trees go in and out unchanged.
func TestTarAndRsync(t *testing.T) {
	client(t, "rsync", "rsync")
	src := sample(t)
	everywhere(t, func(t *testing.T, h *house, dir string, local bool) {
		run(t, src, "tar", "cf", filepath.Join(dir, "t.tar"), ".")
		must(t, os.Mkdir(filepath.Join(dir, "x"), 0o755))
		run(t, filepath.Join(dir, "x"), "tar", "xf", "../t.tar")
		for _, sub := range []string{"x", "y"} {
			if sub == "y" {
				run(t, dir, "rsync", "-a", "--inplace", src+"/", "y/")
			}
			if out := run(t, dir, "rsync", "-rcn", "--itemize-changes", "--delete", src+"/", sub+"/"); strings.TrimSpace(out) != "" {
				t.Errorf("%s differs:\n%s", sub, out)
			}
			run(t, dir, "diff", "-r", src, sub)
		}
		if local {
			if out := run(t, dir, "rsync", "-an", "--itemize-changes", src+"/", "y/"); strings.TrimSpace(out) != "" {
				t.Errorf("times or modes differ:\n%s", out)
			}
		}
	})
}

// TestGit: a repository lives on the mount.
func TestGit(t *testing.T) {
	client(t, "git", "git")
	src := sample(t)
	run(t, src, "git", "init", "-q")
	run(t, src, "git", "add", ".")
	run(t, src, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
	everywhere(t, func(t *testing.T, _ *house, dir string, _ bool) {
		run(t, dir, "git", "clone", "-q", "--no-local", src, "repo")
		repo := filepath.Join(dir, "repo")
		run(t, repo, "git", "fsck", "--full", "--strict")
		must(t, os.WriteFile(filepath.Join(repo, "new"), []byte("text"), 0o644))
		run(t, repo, "git", "add", ".")
		run(t, repo, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "two")
		run(t, repo, "git", "gc", "-q")
		run(t, repo, "git", "fsck", "--full", "--strict")
		if out := run(t, repo, "git", "status", "--porcelain"); out != "" {
			t.Errorf("status: %s", out)
		}
	})
}

// TestSqlite: databases in both kinds of journal survive their writer's death.
func TestSqlite(t *testing.T) {
	client(t, "sqlite3", "sqlite3")
	everywhere(t, func(t *testing.T, _ *house, dir string, local bool) {
		for _, mode := range []string{"delete", "wal"} {
			if mode == "wal" && !local {
				continue // the shared memory file is mapped while others read the database: only files that are what they are at once do
			}
			db := filepath.Join(dir, mode+".db")
			run(t, dir, "sqlite3", db, "pragma journal_mode="+mode+"; create table t(x integer primary key, y text);")
			cmd := helper(t, "sqlite", db)
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			buf := make([]byte, 1)
			for range 20 { // so many rows are acknowledged
				if _, err := out.Read(buf); err != nil {
					t.Fatal(err)
				}
			}
			must(t, cmd.Process.Kill())
			_ = cmd.Wait()
			deadline := time.Now().Add(20 * time.Second)
			for {
				got := run(t, dir, "sqlite3", db, ".timeout 5000", "pragma integrity_check; select count(*) >= 20 from t;")
				if strings.Join(strings.Fields(got), " ") == "ok 1" {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: %s", mode, got)
				}
			}
			run(t, dir, "sqlite3", db, ".timeout 5000", "insert into t(y) values('after');")
		}
	})
}

// sqliteHelper DB adds rows, one transaction each, and says a byte for each.
func sqliteHelper(args []string) error {
	for {
		if out, err := sqlite(args[0], "insert into t(y) values(hex(randomblob(400)));"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if _, err := os.Stdout.Write([]byte{'.'}); err != nil {
			return err
		}
	}
}

func sqlite(db, sql string) ([]byte, error) {
	return exec.Command("sqlite3", "-cmd", ".timeout 10000", db, sql).CombinedOutput()
}
