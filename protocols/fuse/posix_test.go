package fuse_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helpers are what runs in processes of its own.
var helpers = map[string]func(args []string) error{
	"lock": lockHelper, "mmap": mmapHelper, "stat": statHelper, "fsx": fsxHelper, "sqlite": sqliteHelper,
}

// steps is one after the other, with words for what fails.
type steps struct {
	t   *testing.T
	dir string
}

func (s steps) path(name string) string { return filepath.Join(s.dir, name) }

func (s steps) open(name string, flag int, mode os.FileMode) *os.File {
	s.t.Helper()
	f, err := os.OpenFile(s.path(name), flag, mode)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { f.Close() })
	return f
}

func (s steps) stat(name string) syscall.Stat_t {
	s.t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(s.path(name), &st); err != nil {
		s.t.Errorf("lstat %s: %v", name, err)
	}
	return st
}

func fstat(t *testing.T, f *os.File) (st syscall.Stat_t) {
	t.Helper()
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		t.Error(err)
	}
	return st
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestPosix is a table of what POSIX promises of files and folders, on a local datasource and on one across a network.
func TestPosix(t *testing.T) {
	table := []struct {
		name string
		near bool // on a local datasource only
		run  func(s steps)
	}{
		{"read what was written", false, func(s steps) {
			write(s.t, s.path("f"), "hello")
			holds(s.t, s.path("f"), "hello")
			if st := s.stat("f"); st.Size != 5 || st.Mode != syscall.S_IFREG|0o644 || st.Nlink != 1 || int(st.Uid) != os.Getuid() {
				s.t.Errorf("%+v", st)
			}
		}},
		{"random writes", false, func(s steps) {
			f := s.open("f", os.O_RDWR|os.O_CREATE, 0o644)
			for i := 9; i >= 0; i-- {
				if _, err := f.WriteAt([]byte{byte('0' + i)}, int64(i)); err != nil {
					s.t.Fatal(err)
				}
			}
			if got := content(s.t, f); got != "0123456789" {
				s.t.Errorf("while open: %q", got)
			}
			if st := s.stat("f"); st.Size != 10 {
				s.t.Errorf("size %d while open", st.Size)
			}
			must(s.t, f.Close())
			holds(s.t, s.path("f"), "0123456789")
			f = s.open("f", os.O_RDWR, 0)
			f.WriteAt([]byte("XX"), 4)
			must(s.t, f.Close())
			holds(s.t, s.path("f"), "0123XX6789")
		}},
		{"holes read as zeros", false, func(s steps) {
			f := s.open("f", os.O_RDWR|os.O_CREATE, 0o644)
			f.WriteAt([]byte("end"), 5)
			must(s.t, f.Close())
			holds(s.t, s.path("f"), "\x00\x00\x00\x00\x00end")
		}},
		{"truncate", false, func(s steps) {
			write(s.t, s.path("f"), "0123456789")
			must(s.t, os.Truncate(s.path("f"), 4))
			holds(s.t, s.path("f"), "0123")
			must(s.t, os.Truncate(s.path("f"), 6))
			holds(s.t, s.path("f"), "0123\x00\x00")
			f := s.open("f", os.O_WRONLY|os.O_TRUNC, 0)
			if st := s.stat("f"); st.Size != 0 {
				s.t.Errorf("size %d after O_TRUNC", st.Size)
			}
			f.WriteString("abcdef")
			must(s.t, f.Truncate(2))
			must(s.t, f.Close())
			holds(s.t, s.path("f"), "ab")
			must(s.t, os.Truncate(s.path("f"), 0))
			holds(s.t, s.path("f"), "")
		}},
		{"append", false, func(s steps) {
			write(s.t, s.path("f"), "a")
			f := s.open("f", os.O_WRONLY|os.O_APPEND, 0)
			g := s.open("f", os.O_WRONLY|os.O_APPEND, 0)
			for i := range 3 {
				fmt.Fprint(f, i)
				fmt.Fprint(g, i)
			}
			must(s.t, f.Close())
			must(s.t, g.Close())
			holds(s.t, s.path("f"), "a001122")
		}},
		{"O_EXCL", false, func(s steps) {
			f := s.open("f", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			_, err := os.OpenFile(s.path("f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			is(s.t, "a second one while the first is open", err, syscall.EEXIST)
			must(s.t, f.Close())
			_, err = os.OpenFile(s.path("f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			is(s.t, "a second one", err, syscall.EEXIST)
			is(s.t, "a folder", os.Mkdir(s.path("f"), 0o755), syscall.EEXIST)
		}},
		{"a new file is there while it is open", false, func(s steps) {
			f := s.open("f", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
			f.WriteString("text")
			if st := s.stat("f"); st.Size != 4 || st.Mode&0o777 != 0o640 || st.Ino != fstat(s.t, f).Ino {
				s.t.Errorf("%+v", st)
			}
			tells(s.t, s.dir, "f")
			holds(s.t, s.path("f"), "text")
			is(s.t, "its folder's removal", os.Mkdir(s.path("f/x"), 0o755), syscall.ENOTDIR)
		}},
		{"unlink while open", false, func(s steps) {
			write(s.t, s.path("f"), "old")
			for _, flag := range []int{os.O_RDONLY, os.O_RDWR, os.O_WRONLY} {
				write(s.t, s.path("f"), "old")
				f := s.open("f", flag, 0)
				must(s.t, os.Remove(s.path("f")))
				_, err := os.Lstat(s.path("f"))
				is(s.t, "its name", err, syscall.ENOENT)
				tells(s.t, s.dir, "")
				if flag != os.O_WRONLY {
					if got := content(s.t, f); got != "old" {
						s.t.Errorf("flag %d: %q", flag, got)
					}
				}
				if flag != os.O_RDONLY {
					if _, err := f.WriteAt([]byte("new!"), 0); err != nil {
						s.t.Error(err)
					}
				}
				if flag == os.O_RDWR {
					if got := content(s.t, f); got != "new!" {
						s.t.Errorf("flag %d: %q after writing", flag, got)
					}
				}
				if st := fstat(s.t, f); st.Nlink != 0 {
					s.t.Errorf("flag %d: %d names", flag, st.Nlink)
				}
				write(s.t, s.path("g"), "another")
				must(s.t, f.Close())
				tells(s.t, s.dir, "g")
				must(s.t, os.Remove(s.path("g")))
			}
		}},
		{"unlink of a new file while open", false, func(s steps) {
			f := s.open("f", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
			f.WriteString("text")
			must(s.t, os.Remove(s.path("f")))
			if got := content(s.t, f); got != "text" {
				s.t.Errorf("%q", got)
			}
			write(s.t, s.path("f"), "second")
			must(s.t, f.Close())
			holds(s.t, s.path("f"), "second")
		}},
		{"rename over an open file", false, func(s steps) {
			write(s.t, s.path("a"), "aaa")
			write(s.t, s.path("b"), "bbb")
			a, b := s.open("a", os.O_RDWR, 0), s.open("b", os.O_RDWR, 0)
			must(s.t, os.Rename(s.path("a"), s.path("b")))
			tells(s.t, s.dir, "b")
			if x, y := content(s.t, a), content(s.t, b); x != "aaa" || y != "bbb" {
				s.t.Errorf("%q and %q", x, y)
			}
			a.WriteAt([]byte("AAAA"), 0)
			b.WriteAt([]byte("BBBB"), 0)
			if fstat(s.t, b).Nlink != 0 || fstat(s.t, a).Nlink != 1 {
				s.t.Errorf("%d and %d names", fstat(s.t, a).Nlink, fstat(s.t, b).Nlink)
			}
			must(s.t, b.Close())
			must(s.t, a.Close())
			holds(s.t, s.path("b"), "AAAA")
			tells(s.t, s.dir, "b")
		}},
		{"rename of a file that is being written", false, func(s steps) {
			must(s.t, os.Mkdir(s.path("d"), 0o755))
			f := s.open("d/f", os.O_RDWR|os.O_CREATE, 0o644)
			f.WriteString("one")
			must(s.t, os.Rename(s.path("d/f"), s.path("d/g")))
			f.WriteString("two")
			must(s.t, os.Rename(s.path("d"), s.path("e")))
			f.WriteString("three")
			if st := s.stat("e/g"); st.Size != 11 || st.Ino != fstat(s.t, f).Ino {
				s.t.Errorf("%+v", st)
			}
			must(s.t, f.Close())
			holds(s.t, s.path("e/g"), "onetwothree")
			tells(s.t, s.dir, "e")
			tells(s.t, s.path("e"), "g")
		}},
		{"rename", false, func(s steps) {
			write(s.t, s.path("f"), "f")
			write(s.t, s.path("g"), "g")
			ino := s.stat("f").Ino
			err := unix.Renameat2(unix.AT_FDCWD, s.path("f"), unix.AT_FDCWD, s.path("g"), unix.RENAME_NOREPLACE)
			is(s.t, "NOREPLACE", err, syscall.EEXIST)
			err = unix.Renameat2(unix.AT_FDCWD, s.path("f"), unix.AT_FDCWD, s.path("g"), unix.RENAME_EXCHANGE)
			is(s.t, "EXCHANGE", err, syscall.EINVAL)
			must(s.t, unix.Renameat2(unix.AT_FDCWD, s.path("f"), unix.AT_FDCWD, s.path("h"), unix.RENAME_NOREPLACE))
			if s.stat("h").Ino != ino {
				s.t.Error("another inode number")
			}
			must(s.t, os.Rename(s.path("h"), s.path("g")))
			holds(s.t, s.path("g"), "f")
			if s.stat("g").Ino != ino {
				s.t.Error("another inode number")
			}
			for _, d := range []string{"d", "d/sub", "empty", "full", "full/x"} {
				must(s.t, os.Mkdir(s.path(d), 0o755))
			}
			is(s.t, "a folder over a full one", syscall.Rename(s.path("d"), s.path("full")), syscall.ENOTEMPTY)
			is(s.t, "a folder over a file", syscall.Rename(s.path("d"), s.path("g")), syscall.ENOTDIR)
			is(s.t, "a file over a folder", syscall.Rename(s.path("g"), s.path("empty")), syscall.EISDIR)
			is(s.t, "a folder into itself", os.Rename(s.path("d"), s.path("d/sub/d")), syscall.EINVAL)
			must(s.t, syscall.Rename(s.path("d"), s.path("empty")))
			tells(s.t, s.path("empty"), "sub")
			tells(s.t, s.dir, "empty full g")
		}},
		{"overwriting keeps the inode", false, func(s steps) {
			write(s.t, s.path("f"), "one")
			ino := s.stat("f").Ino
			write(s.t, s.path("f"), "three")
			if s.stat("f").Ino != ino {
				s.t.Error("another inode number")
			}
			holds(s.t, s.path("f"), "three")
		}},
		{"folders", false, func(s steps) {
			must(s.t, os.Mkdir(s.path("d"), 0o751))
			if st := s.stat("d"); st.Mode != syscall.S_IFDIR|0o751 {
				s.t.Errorf("mode %o", st.Mode)
			}
			write(s.t, s.path("d/f"), "")
			is(s.t, "rmdir", os.Remove(s.path("d")), syscall.ENOTEMPTY)
			is(s.t, "unlink of a folder", syscall.Unlink(s.path("d")), syscall.EISDIR)
			is(s.t, "rmdir of a file", syscall.Rmdir(s.path("d/f")), syscall.ENOTDIR)
			is(s.t, "mkdir", os.Mkdir(s.path("d"), 0o755), syscall.EEXIST)
			is(s.t, "mkdir in nothing", os.Mkdir(s.path("no/d"), 0o755), syscall.ENOENT)
			must(s.t, os.RemoveAll(s.path("d")))
			tells(s.t, s.dir, "")
		}},
		{"mode and times", false, func(s steps) {
			write(s.t, s.path("f"), "x")
			must(s.t, os.Chmod(s.path("f"), 0o751))
			if st := s.stat("f"); st.Mode&0o7777 != 0o751 {
				s.t.Errorf("mode %o", st.Mode)
			}
			must(s.t, os.Chmod(s.path("f"), 0))
			if st := s.stat("f"); st.Mode&0o7777 != 0 {
				s.t.Errorf("mode %o", st.Mode)
			}
			must(s.t, os.Chmod(s.path("f"), 0o644))
			before := s.stat("f")
			is(s.t, "chown", os.Chown(s.path("f"), 12345, -1), syscall.EPERM)
			must(s.t, os.Chown(s.path("f"), os.Getuid(), os.Getgid()))
			if st := s.stat("f"); st.Size != before.Size {
				s.t.Errorf("%+v", st)
			}
		}},
		{"nanosecond times", true, func(s steps) {
			write(s.t, s.path("f"), "x")
			when := time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)
			must(s.t, os.Chtimes(s.path("f"), when, when))
			if i, err := os.Stat(s.path("f")); err != nil || !i.ModTime().Equal(when) {
				s.t.Errorf("%v, %v", i.ModTime(), err)
			}
			f := s.open("f", os.O_WRONLY, 0)
			f.WriteString("y")
			micro := when.Truncate(time.Microsecond)
			tv := []unix.Timeval{unix.NsecToTimeval(micro.UnixNano()), unix.NsecToTimeval(micro.UnixNano())}
			must(s.t, unix.Futimes(int(f.Fd()), tv))
			must(s.t, f.Close())
			if i, err := os.Stat(s.path("f")); err != nil || !i.ModTime().Equal(micro) {
				s.t.Errorf("after close: %v, %v", i.ModTime(), err)
			}
			must(s.t, os.Mkdir(s.path("d"), 0o755))
			must(s.t, os.Chtimes(s.path("d"), when, when))
			if i, err := os.Stat(s.path("d")); err != nil || !i.ModTime().Equal(when) {
				s.t.Errorf("folder: %v, %v", i.ModTime(), err)
			}
		}},
		{"symbolic links", true, func(s steps) {
			write(s.t, s.path("f"), "x")
			must(s.t, os.Symlink("f", s.path("l")))
			holds(s.t, s.path("l"), "x")
			if got, err := os.Readlink(s.path("l")); err != nil || got != "f" {
				s.t.Errorf("%q, %v", got, err)
			}
			if st := s.stat("l"); st.Mode != syscall.S_IFLNK|0o777 || st.Size != 1 {
				s.t.Errorf("%+v", st)
			}
			must(s.t, os.Symlink("nowhere", s.path("dangling")))
			must(s.t, os.Rename(s.path("l"), s.path("m")))
			must(s.t, os.Remove(s.path("m")))
			holds(s.t, s.path("f"), "x")
			is(s.t, "a taken name", os.Symlink("f", s.path("f")), syscall.EEXIST)
		}},
		{"hard links", true, func(s steps) {
			write(s.t, s.path("f"), "x")
			must(s.t, os.Mkdir(s.path("d"), 0o755))
			must(s.t, os.Link(s.path("f"), s.path("d/g")))
			if a, b := s.stat("f"), s.stat("d/g"); a.Ino != b.Ino || a.Nlink != 2 || b.Nlink != 2 {
				s.t.Errorf("%+v\n%+v", a, b)
			}
			f := s.open("d/g", os.O_WRONLY, 0)
			f.WriteString("yy")
			must(s.t, f.Close())
			holds(s.t, s.path("f"), "yy")
			must(s.t, os.Remove(s.path("f")))
			if st := s.stat("d/g"); st.Nlink != 1 {
				s.t.Errorf("%d names left", st.Nlink)
			}
			holds(s.t, s.path("d/g"), "yy")
			is(s.t, "a taken name", os.Link(s.path("d/g"), s.path("d")), syscall.EEXIST)
			is(s.t, "another datasource", os.Link(s.path("d/g"), filepath.Join(s.dir, "../../homes/g")), syscall.EXDEV)
			is(s.t, "a move to another datasource", syscall.Rename(s.path("d/g"), filepath.Join(s.dir, "../../homes/g")), syscall.EXDEV)
		}},
		{"special files", false, func(s steps) {
			is(s.t, "a pipe", syscall.Mkfifo(s.path("p"), 0o644), syscall.EPERM)
			must(s.t, syscall.Mknod(s.path("f"), syscall.S_IFREG|0o600, 0))
			if st := s.stat("f"); st.Mode != syscall.S_IFREG|0o600 {
				s.t.Errorf("mode %o", st.Mode)
			}
		}},
		{"names", false, func(s steps) {
			long := make([]byte, 255)
			for i := range long {
				long[i] = 'n'
			}
			for _, name := range []string{`back\slash`, "sp ace", "ünï", "%41?#&;", "-dash", ".dot", "~", "a:b", string(long)} {
				write(s.t, s.path(name), name)
				holds(s.t, s.path(name), name)
				must(s.t, os.Remove(s.path(name)))
			}
			_, err := os.Create(s.path(string(long) + "n"))
			is(s.t, "256 bytes", err, syscall.ENAMETOOLONG)
			_, err = os.Create(s.path("line\nfeed"))
			is(s.t, "a control character", err, syscall.EINVAL)
			_, err = os.Create(s.path("\xff"))
			is(s.t, "no UTF-8", err, syscall.EINVAL)
			_, err = os.Lstat(s.path("line\nfeed"))
			is(s.t, "looking for a control character", err, syscall.ENOENT)
		}},
		{"fallocate and holes", false, func(s steps) {
			f := s.open("f", os.O_RDWR|os.O_CREATE, 0o644)
			must(s.t, unix.Fallocate(int(f.Fd()), 0, 0, 10000))
			if st := fstat(s.t, f); st.Size != 10000 {
				s.t.Errorf("size %d", st.Size)
			}
			f.WriteAt([]byte("x"), 9000)
			if at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); err != nil || at > 10000 {
				s.t.Errorf("hole at %d, %v", at, err)
			}
			if at, err := unix.Seek(int(f.Fd()), 9000, unix.SEEK_DATA); err != nil || at != 9000 {
				s.t.Errorf("data at %d, %v", at, err)
			}
			_, err := unix.Seek(int(f.Fd()), 20000, unix.SEEK_DATA)
			is(s.t, "data behind the end", err, syscall.ENXIO)
			must(s.t, f.Close())
			if st := s.stat("f"); st.Size != 10000 {
				s.t.Errorf("size %d after close", st.Size)
			}
		}},
		{"copy_file_range", false, func(s steps) {
			write(s.t, s.path("f"), "0123456789")
			f, g := s.open("f", os.O_RDONLY, 0), s.open("g", os.O_RDWR|os.O_CREATE, 0o644)
			off := int64(2)
			if n, err := unix.CopyFileRange(int(f.Fd()), &off, int(g.Fd()), nil, 5, 0); n != 5 || err != nil {
				s.t.Errorf("%d, %v", n, err)
			}
			must(s.t, g.Close())
			holds(s.t, s.path("g"), "23456")
		}},
		{"extended attributes", false, func(s steps) {
			write(s.t, s.path("f"), "x")
			for _, name := range []string{"user.a", "user.mime_type", "user.ünï x"} {
				must(s.t, unix.Setxattr(s.path("f"), name, []byte("v\x00"+name), 0))
			}
			buf := make([]byte, 100)
			if n, err := unix.Getxattr(s.path("f"), "user.ünï x", buf); err != nil || string(buf[:n]) != "v\x00user.ünï x" {
				s.t.Errorf("%q, %v", buf[:max(n, 0)], err)
			}
			if n, err := unix.Getxattr(s.path("f"), "user.a", nil); n != 8 || err != nil {
				s.t.Errorf("%d, %v", n, err)
			}
			_, err := unix.Getxattr(s.path("f"), "user.a", buf[:3])
			is(s.t, "a short buffer", err, syscall.ERANGE)
			_, err = unix.Getxattr(s.path("f"), "user.b", buf)
			is(s.t, "none", err, syscall.ENODATA)
			is(s.t, "XATTR_CREATE", unix.Setxattr(s.path("f"), "user.a", nil, unix.XATTR_CREATE), syscall.EEXIST)
			is(s.t, "XATTR_REPLACE", unix.Setxattr(s.path("f"), "user.b", nil, unix.XATTR_REPLACE), syscall.ENODATA)
			is(s.t, "trusted", unix.Setxattr(s.path("f"), "trusted.a", nil, 0), syscall.EOPNOTSUPP)
			is(s.t, "too large", unix.Setxattr(s.path("f"), "user.a", make([]byte, 50<<10), 0), syscall.E2BIG)
			must(s.t, os.Rename(s.path("f"), s.path("g")))
			if n, err := unix.Listxattr(s.path("g"), buf); err != nil || n != len("user.a\x00user.mime_type\x00user.ünï x\x00") {
				s.t.Errorf("%q, %v", buf[:max(n, 0)], err)
			}
			must(s.t, unix.Removexattr(s.path("g"), "user.a"))
			is(s.t, "removing twice", unix.Removexattr(s.path("g"), "user.a"), syscall.ENODATA)
			f := s.open("new", os.O_RDWR|os.O_CREATE, 0o644)
			must(s.t, unix.Fsetxattr(int(f.Fd()), "user.a", []byte("1"), 0))
			if n, err := unix.Fgetxattr(int(f.Fd()), "user.a", buf); n != 1 || err != nil {
				s.t.Errorf("of a new file: %d, %v", n, err)
			}
		}},
		{"statfs", false, func(s steps) {
			var st syscall.Statfs_t
			must(s.t, syscall.Statfs(s.dir, &st))
			if st.Blocks == 0 || st.Bavail == 0 || st.Namelen != 255 {
				s.t.Errorf("%+v", st)
			}
		}},
		{"a sparse file of 5 GiB", true, func(s steps) {
			f := s.open("f", os.O_RDWR|os.O_CREATE, 0o644)
			f.WriteAt([]byte("end"), 5<<30)
			must(s.t, f.Close())
			if st := s.stat("f"); st.Size != 5<<30+3 {
				s.t.Errorf("size %d", st.Size)
			}
			f = s.open("f", os.O_RDONLY, 0)
			buf := make([]byte, 3)
			if _, err := f.ReadAt(buf, 5<<30); err != nil || string(buf) != "end" {
				s.t.Errorf("%q, %v", buf, err)
			}
		}},
		{"fsync", false, func(s steps) {
			f := s.open("f", os.O_RDWR|os.O_CREATE, 0o644)
			f.WriteString("one")
			must(s.t, f.Sync())
			f.WriteString("two")
			must(s.t, unix.Fdatasync(int(f.Fd())))
			if got := content(s.t, f); got != "onetwo" {
				s.t.Errorf("%q", got)
			}
			d := s.open(".", os.O_RDONLY, 0)
			must(s.t, d.Sync())
		}},
		{"a removed working folder", false, func(s steps) {
			must(s.t, os.Mkdir(s.path("d"), 0o755))
			d := s.open("d", os.O_RDONLY, 0)
			must(s.t, os.Remove(s.path("d")))
			if st := fstat(s.t, d); st.Nlink != 0 {
				s.t.Errorf("%d names", st.Nlink)
			}
			if names, err := d.Readdirnames(-1); len(names) != 0 {
				s.t.Errorf("%q, %v", names, err)
			}
		}},
	}
	everywhere(t, func(t *testing.T, _ *house, dir string, local bool) {
		for i, tt := range table {
			if tt.near && !local {
				continue
			}
			t.Run(tt.name, func(t *testing.T) {
				own := filepath.Join(dir, fmt.Sprint(i))
				must(t, os.Mkdir(own, 0o755))
				tt.run(steps{t, own})
			})
		}
	})
}
