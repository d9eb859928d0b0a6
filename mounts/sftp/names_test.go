package sftp_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
)

// TestP06Names: names that Windows fears are plain names here, and what is too long is refused with words.
func TestP06Names(t *testing.T) {
	s, key := openSSH(t)
	b := attach(t, servertest.SFTPConfig(s, key))
	ctx := t.Context()
	names := []string{"CON", "NUL", "a:b", "dot.", "space ", "LONGNA~1", `back\slash`, "-rf", "]]>", `"quoted"`, "*", strings.Repeat("x", 255)}
	for _, name := range names {
		if _, err := mounts.WriteFile(ctx, b, name, []byte(name)); err != nil {
			t.Errorf("Put(%q): %v", name, err)
		}
		if got, err := os.ReadFile(filepath.Join(s.Root, name)); err != nil || string(got) != name {
			t.Errorf("%q on the server: %q, %v", name, got, err)
		}
	}
	if _, err := mounts.WriteFile(ctx, b, strings.Repeat("x", 256), nil); fault.KindOf(err) != fault.Invalid {
		t.Errorf("Put of a name of 256 bytes: %v; want Invalid", err)
	}
	for deep := "d"; ; deep += "/" + strings.Repeat("y", 200) {
		if err := b.Mkdir(ctx, deep); err == nil && len(deep) < 4096 {
			continue
		} else if fault.KindOf(err) != fault.Invalid {
			t.Errorf("Mkdir of a path of %d bytes: %v; want Invalid", len(deep), fault.KindOf(err))
		}
		if _, err := mounts.WriteFile(ctx, b, deep, nil); fault.KindOf(err) != fault.Invalid {
			t.Errorf("Put of a path of %d bytes: %v; want Invalid", len(deep), fault.KindOf(err))
		}
		break
	}
}

// TestForeignNames: what others put there and cannot be named is left out of listings, as are temporary files, which do not keep a folder.
func TestForeignNames(t *testing.T) {
	s, key := openSSH(t)
	b := attach(t, servertest.SFTPConfig(s, key))
	dir := filepath.Join(s.Root, "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"good", "bad\nname", "bad\xff", "esc\x1b[2J", ".cellgate-LEFT"} {
		servertest.Write(t, filepath.Join(dir, name), "x")
	}
	var names []string
	for info, err := range b.List(t.Context(), "d") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	if want := []string{"good"}; !slices.Equal(names, want) {
		t.Errorf("listed %q, want %q", names, want)
	}
	mounttest.Script(t, b, `rm d -> ! folder is not empty`)
	for _, name := range []string{"good", "bad\nname", "bad\xff", "esc\x1b[2J"} {
		os.Remove(filepath.Join(dir, name))
	}
	mounttest.Script(t, b, `rm d -> ok`)
}

// TestPipe: opening a pipe, which would block the server, is refused and costs nobody else anything.
func TestPipe(t *testing.T) {
	t.Parallel()
	s, key := openSSH(t)
	b := attach(t, servertest.SFTPConfig(s, key))
	pipe := filepath.Join(s.Root, "pipe")
	if err := syscall.Mkfifo(pipe, 0o666); err != nil {
		t.Fatal(err)
	}
	defer func() { // lets the processes go that hang in it
		if f, err := os.OpenFile(pipe, os.O_RDWR, 0); err == nil {
			time.Sleep(50 * time.Millisecond)
			f.Close()
		}
	}()
	began := time.Now()
	for range 2 {
		mounttest.Script(t, b, `
			stat pipe  -> other "pipe"
			cat pipe   -> ! permission denied
			put pipe x -> ! permission denied
			put f x    -> ok
			cat f      -> "x"
		`)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestFolderBecomesLink: a folder that is replaced by a link behind our back leads nowhere once it has been believed long enough.
func TestFolderBecomesLink(t *testing.T) {
	t.Parallel()
	s, key := openSSH(t)
	b := attach(t, servertest.SFTPConfig(s, key))
	outside := servertest.Dir(t)
	servertest.Write(t, filepath.Join(outside, "secret"), "secret")
	mounttest.Script(t, b, `
		mkdir d  -> ok
		put d/f x -> ok
	`)
	if err := os.Rename(filepath.Join(s.Root, "d"), filepath.Join(s.Root, "e")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(s.Root, "d")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3100 * time.Millisecond)
	mounttest.Script(t, b, `
		cat d/secret -> ! is not a folder
		put d/new x  -> ! is not a folder
		rm d/secret  -> ! is not a folder
		ls d         -> ! is not a folder
		stat d/secret -> ! is not a folder
	`)
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Errorf("outside there are %v", left)
	}
}

// TestArea: where the Area is of no use, or a link that leads elsewhere, files are staged beside their targets.
func TestArea(t *testing.T) {
	s, key := openSSH(t)
	elsewhere := servertest.Dir(t)
	if err := os.Mkdir(filepath.Join(elsewhere, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, spoil := range []func(area string) error{
		func(area string) error { return os.WriteFile(area, nil, 0o600) },
		func(area string) error { return os.Symlink(elsewhere, area) },
		func(area string) error { return os.Symlink("nowhere", area) },
	} {
		dir := empty(t, s)
		if err := spoil(filepath.Join(dir, mounts.Area)); err != nil {
			t.Fatal(err)
		}
		b := attach(t, servertest.SFTPConfig(s, key, "path", dir))
		mounttest.Script(t, b, `
			mkdir d   -> ok
			put d/f x -> ok
			new d/f y -> ! already exists
			new d/g y -> ok
			put g y   -> ok
			cat d/f   -> "x"
			cp d/f h  -> ok
			cat h     -> "x"
		`)
		for _, at := range []string{filepath.Join(dir, "d"), filepath.Join(elsewhere, "tmp")} {
			left, err := os.ReadDir(at)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range left {
				if e.Name() != "f" && e.Name() != "g" {
					t.Errorf("%s holds %s", at, e.Name())
				}
			}
		}
	}
}

// TestOtherFileSystem: a folder in which another file system is mounted is reached too, and a full one says so.
func TestOtherFileSystem(t *testing.T) {
	servertest.Root(t)
	s, key := openSSH(t)
	mnt := filepath.Join(s.Root, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", mnt, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("this machine lets nobody mount: %v", err)
	}
	defer syscall.Unmount(mnt, syscall.MNT_DETACH)
	b := attach(t, servertest.SFTPConfig(s, key))
	mounttest.Script(t, b, `
		mkdir mnt/d      -> ok
		put mnt/d/f x    -> ok
		put mnt/d/f yy   -> ok
		cat mnt/d/f      -> "yy"
		new mnt/d/f z    -> ! already exists
		new mnt/g z      -> ok
		put h hello      -> ok
		mv h mnt/h       -> ! not supported
		cp h mnt/h       -> ok
		cat mnt/h        -> "hello"
		mv mnt/h mnt/d/h -> ok
		ls mnt/d         -> f h
		rm mnt           -> ! folder is not empty
	`)
	big := strings.Repeat("x", 8<<20)
	if _, err := mounts.WriteFile(t.Context(), b, "mnt/d/f", []byte(big)); fault.KindOf(err) != fault.NoSpace {
		t.Errorf("Put on a full file system: %v; want NoSpace", err)
	}
	mounttest.Script(t, b, `
		cat mnt/d/f -> "yy"
		ls mnt/d    -> f h
	`)
	if left, _ := os.ReadDir(filepath.Join(s.Root, ".cellgate/tmp")); len(left) > 0 {
		t.Errorf("left in the Area: %v", left)
	}
	if left, _ := os.ReadDir(filepath.Join(mnt, "d")); len(left) > 2 {
		t.Errorf("left beside: %v", left)
	}
}

// TestReadOnly: nothing is written, not even the Area, and nothing that writes is promised.
func TestReadOnly(t *testing.T) {
	s, key := openSSH(t)
	servertest.Write(t, filepath.Join(s.Root, "f"), "hello")
	cfg := servertest.SFTPConfig(s, key)
	cfg.ReadOnly = true
	b := attach(t, cfg)
	mounttest.Script(t, b, `
		cat f   -> "hello"
		put f x -> ! permission denied
		rm f    -> ! permission denied
		mkdir d -> ! permission denied
		mv f g  -> ! permission denied
		ls .    -> f
	`)
	if left, _ := os.ReadDir(s.Root); len(left) != 1 {
		t.Errorf("the folder holds %v", left)
	}
}

// TestDurable: what is promised follows from what the server offers and what the admin wants.
func TestDurable(t *testing.T) {
	s, key := openSSH(t)
	cfg := servertest.SFTPConfig(s, key)
	if f := attach(t, cfg).Features(); f.Durable != mounts.Native || f.AtomicReplace != mounts.Native || f.HardLink != mounts.Native || !f.Remote {
		t.Errorf("OpenSSH: %+v", f)
	}
	cfg.Unsynced = true
	b := attach(t, cfg)
	if f := b.Features(); f.Durable != mounts.Refused {
		t.Errorf("unsynced: %+v", f)
	}
	mounttest.Script(t, b, `
		put f x -> ok
		cat f   -> "x"
	`)
	plain := servertest.PlainSFTP(t, servertest.PlainSFTPOptions{})
	if f := attach(t, servertest.SFTPConfig(plain, servertest.SFTPKey{})).Features(); f.Durable != mounts.Refused || f.AtomicReplace != mounts.Emulated ||
		f.HardLink != mounts.Refused || f.Space != mounts.Refused {
		t.Errorf("a plain server: %+v", f)
	}
}
