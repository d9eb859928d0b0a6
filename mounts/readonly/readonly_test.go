package readonly_test

import (
	"context"
	"io"
	"os"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/readonly"
)

func filled(t *testing.T) mounts.Backend {
	low := mem.New(mem.Config{})
	mounttest.Script(t, low, `
		mkdir d   -> ok
		put f 1   -> ok
		put d/g 2 -> ok
	`)
	x, _ := mounts.As[mounts.Xattrer](low)
	if err := x.SetXattr(t.Context(), "f", "a", []byte("v")); err != nil {
		t.Fatal(err)
	}
	return low
}

func TestScript(t *testing.T) {
	low := filled(t)
	b := readonly.New(low)
	mounttest.Script(t, b, `
		ls .        -> d/ f
		ls d        -> g
		ls f        -> ! is not a folder
		stat f      -> file "f" 1
		stat none   -> ! does not exist
		cat d/g     -> "2"
		cat d       -> ! is a folder
		put f 2     -> ! permission denied
		put new 2   -> ! permission denied
		put d 2     -> ! permission denied
		put a//b 2  -> ! invalid
		new new 2   -> ! permission denied
		mkdir e     -> ! permission denied
		mkdir ../e  -> ! invalid
		rm f        -> ! permission denied
		rm none     -> ! permission denied
		mv f g      -> ! permission denied
		mv f ../g   -> ! invalid
		mv f f      -> ! permission denied
		cp f g      -> ! permission denied
	`)
	if err := mounts.Purge(t.Context(), b, "d"); fault.KindOf(err) != fault.Denied {
		t.Errorf("Purge: %v, want Denied", err)
	}
	mounttest.Script(t, low, `
		ls .    -> d/ f
		ls d    -> g
		cat f   -> "1"
		cat d/g -> "2"
	`)
}

// TestCapabilities: what only writes is gone, and nothing is reached through what is left.
func TestCapabilities(t *testing.T) {
	mounttest.Keeps(t, func(b mounts.Backend) mounts.Backend { return readonly.New(b) },
		"Copier", "Linker", "TimeSetter", "ModeSetter", "Truncater", "Symlinker", "Conditional", "PartPutter", "Purger", "Resumer")
	b := readonly.New(filled(t))
	for _, c := range []any{as[mounts.RandomAccess](b), as[mounts.Xattrer](b), as[mounts.Watcher](b), as[mounts.Spacer](b), as[mounts.Hasher](b)} {
		if c == nil {
			t.Error("a capability is missing")
		}
		if _, ok := c.(mounts.Copier); ok {
			t.Errorf("%T can copy", c)
		}
	}
	f := b.Features()
	if f.AtomicReplace != 0 || f.ConditionalWrite != 0 || f.Rename != 0 || f.ModTime != 0 || f.HardLink != 0 || f.Symlink != 0 {
		t.Errorf("%+v", f)
	}
	if f.Hash == 0 || f.RandomAccess == 0 || f.Xattr == 0 || f.Watch == 0 || f.Space == 0 || !f.CaseSensitive {
		t.Errorf("%+v", f)
	}
}

func as[T any](b mounts.Backend) any {
	c, ok := mounts.As[T](b)
	if !ok {
		return nil
	}
	return c
}

func TestFiles(t *testing.T) {
	low := filled(t)
	b := readonly.New(low)
	c, _ := mounts.As[mounts.RandomAccess](b)
	for _, flag := range []int{os.O_WRONLY, os.O_RDWR, os.O_CREATE, os.O_TRUNC, os.O_RDWR | os.O_CREATE | os.O_EXCL, os.O_APPEND} {
		for _, name := range []string{"f", "new"} {
			if _, err := c.OpenFile(t.Context(), name, flag, 0o600); fault.KindOf(err) != fault.Denied {
				t.Errorf("OpenFile(%s, %#x): %v, want Denied", name, flag, err)
			}
		}
	}
	f, err := c.OpenFile(t.Context(), "f", os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2)
	if n, err := f.ReadAt(buf, 0); n != 1 || err != io.EOF || buf[0] != '1' {
		t.Errorf("ReadAt: %d, %v", n, err)
	}
	if _, err := f.WriteAt(buf, 0); fault.KindOf(err) != fault.Denied {
		t.Errorf("WriteAt: %v, want Denied", err)
	}
	if err := f.Truncate(0); fault.KindOf(err) != fault.Denied {
		t.Errorf("Truncate: %v, want Denied", err)
	}
	if info, err := f.Stat(); err != nil || info.Size != 1 {
		t.Errorf("Stat: %v, %v", info, err)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	x, _ := mounts.As[mounts.Xattrer](b)
	if v, err := x.Xattr(t.Context(), "f", "a"); err != nil || string(v) != "v" {
		t.Errorf("Xattr: %q, %v", v, err)
	}
	if err := x.SetXattr(t.Context(), "f", "a", nil); fault.KindOf(err) != fault.Denied {
		t.Errorf("SetXattr: %v, want Denied", err)
	}
	if err := x.RemoveXattr(t.Context(), "f", "a"); fault.KindOf(err) != fault.Denied {
		t.Errorf("RemoveXattr: %v, want Denied", err)
	}
	mounttest.Script(t, low, `cat f -> "1"`)
}

// TestDescriptor: sendfile still sees the file, which was opened for reading.
func TestDescriptor(t *testing.T) {
	low, err := local.Driver().Open(t.Context(), mounts.Config{Options: map[string]string{"path": t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	mounttest.Script(t, low, "put f hello -> ok")
	b := readonly.New(low)
	defer b.Close()
	c, _ := mounts.As[mounts.RandomAccess](b)
	f, err := c.OpenFile(t.Context(), "f", os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, ok := f.(mounts.Descriptor)
	if !ok {
		t.Fatal("no Descriptor")
	}
	if _, err := d.OSFile().Write([]byte("x")); err == nil {
		t.Error("the descriptor can write")
	}
}

// TestOrder: ended contexts and a closed backend are told before the refusal.
func TestOrder(t *testing.T) {
	b := readonly.New(filled(t))
	ended, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	if err := b.Remove(ended, "f"); fault.KindOf(err) != fault.Timeout {
		t.Errorf("Remove with an ended context: %v, want Timeout", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	mounttest.Script(t, b, `
		put f x -> ! unavailable
		stat f  -> ! unavailable
		rm f    -> ! unavailable
	`)
}
