package fuse_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/mounts"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/protocols/fuse"
	"cellgate/store"
)

// soon fails unless ok comes true.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// TestTwoUsers: each mount shows what its user may see, and the core's rights hold whatever the bits say.
func TestTwoUsers(t *testing.T) {
	h := newHouse(t, gateway.Limits{})
	a, _ := h.mount(t, "alice", nil)
	b, _ := h.mount(t, "bob", nil)
	tells(t, a, "docs drop homes pair")
	tells(t, filepath.Join(a, "pair"), "one two")
	write(t, a+"/docs/f", "alice")
	holds(t, b+"/docs/f", "alice")
	is(t, "a reader's write", os.WriteFile(b+"/docs/f", nil, 0o644), syscall.EACCES)
	is(t, "a reader's new file", os.WriteFile(b+"/docs/g", nil, 0o644), syscall.EACCES)
	is(t, "a reader's removal", os.Remove(b+"/docs/f"), syscall.EACCES)
	is(t, "a reader's chmod", os.Chmod(b+"/docs/f", 0o600), syscall.EACCES)
	is(t, "a folder in the root", os.Mkdir(a+"/new", 0o755), syscall.EACCES)
	write(t, a+"/homes/secret", "mine")
	_, err := os.Stat(b + "/homes/secret")
	is(t, "another's home", err, syscall.ENOENT)
	_, err = os.Stat(b + "/drop")
	is(t, "a drop box, which one may not look at", err, syscall.ENOENT)
	for i := range 5 { // both see each other's changes at the next open
		want := fmt.Sprintf("round %d", i)
		write(t, a+"/pair/one/f", want)
		soon(t, "bob sees "+want, func() bool { got, err := os.ReadFile(b + "/pair/one/f"); return err == nil && string(got) == want })
	}
}

// TestOtherDoors: what happens through other doors is seen, whatever the kernel remembers, and what is written here is seen there.
func TestOtherDoors(t *testing.T) {
	for name, at := range places {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, gateway.Limits{})
			dir, _ := h.mount(t, "alice", func(c *fuse.Config) {
				c.EntryTimeout, c.AttrTimeout, c.NegativeTimeout = time.Hour, time.Hour, time.Hour
			})
			s, ctx, path := h.As("alice"), t.Context(), gatewaytest.Path
			file := filepath.Join(dir, at, "f")
			_, err := os.Stat(file)
			is(t, "nothing yet", err, syscall.ENOENT)
			for _, text := range []string{"one", "three", "seven"} {
				must(t, gatewaytest.Write(ctx, s, path("/"+at+"/f"), []byte(text), gateway.Cond{}))
				soon(t, text, func() bool { got, err := os.ReadFile(file); return err == nil && string(got) == text })
				if i, err := os.Stat(file); err != nil || i.Size() != int64(len(text)) {
					t.Errorf("%v, %v", i, err)
				}
			}
			must(t, s.Mkdir(ctx, path("/"+at+"/d")))
			soon(t, "a new folder", func() bool { i, err := os.Stat(filepath.Join(dir, at, "d")); return err == nil && i.IsDir() })
			_, err = s.Rename(ctx, path("/"+at+"/f"), path("/"+at+"/d/g"), gateway.MoveOptions{})
			must(t, err)
			soon(t, "a move", func() bool {
				_, err := os.Stat(file)
				got, rerr := os.ReadFile(filepath.Join(dir, at, "d/g"))
				return errors.Is(err, syscall.ENOENT) && rerr == nil && string(got) == "seven"
			})
			must(t, s.Remove(ctx, path("/"+at+"/d"), gateway.RemoveOptions{Recursive: true}))
			soon(t, "a removal", func() bool { _, err := os.Stat(filepath.Join(dir, at, "d")); return errors.Is(err, syscall.ENOENT) })

			write(t, file, "from here")
			if got, err := gatewaytest.Read(ctx, s, path("/"+at+"/f")); err != nil || string(got) != "from here" {
				t.Errorf("%q, %v", got, err)
			}
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			f.WriteString(", synced")
			must(t, f.Sync())
			if got, err := gatewaytest.Read(ctx, s, path("/"+at+"/f")); err != nil || string(got) != "from here, synced" {
				t.Errorf("%q, %v", got, err)
			}
			must(t, f.Close())
			if err := h.Gateway.Fsck(ctx, false, func(f gateway.Finding) { t.Errorf("fsck: %+v", f) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCoreLocks: another user's lock keeps writers out, and a write lock of a process here is one on the core's table.
func TestCoreLocks(t *testing.T) {
	h := newHouse(t, gateway.Limits{})
	a, _ := h.mount(t, "alice", nil)
	b, _ := h.mount(t, "bob", nil)
	write(t, a+"/pair/one/f", "text")
	bob := h.As("bob")
	l, _, err := bob.Lock(t.Context(), gatewaytest.Path("/pair/one/f"), gateway.LockRequest{})
	must(t, err)
	is(t, "another's lock", os.WriteFile(a+"/pair/one/f", nil, 0o644), syscall.EBUSY)
	holds(t, a+"/pair/one/f", "text")
	must(t, bob.Unlock(t.Context(), gatewaytest.Path("/pair/one/f"), l.Token))
	f, err := os.OpenFile(a+"/pair/one/f", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	g, err := os.OpenFile(b+"/pair/one/f", os.O_RDWR, 0)
	must(t, err)
	defer g.Close()
	must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
	is(t, "flock on another user's mount", syscall.Flock(int(g.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EAGAIN)
	h.Tell(t, "bob: put /pair/one/f other -> ! locked")
	done := make(chan error, 1)
	go func() { done <- syscall.Flock(int(g.Fd()), syscall.LOCK_EX) }()
	must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_UN))
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("the lock was not given on")
	}
	must(t, syscall.Flock(int(g.Fd()), syscall.LOCK_UN))
	soon(t, "the core's lock is given back", func() bool {
		locks, err := h.As("alice").Locks(t.Context(), gatewaytest.Path("/pair/one/f"))
		return err == nil && len(locks) == 0
	})
}

// lockHelper FILE TYPE START LEN: holds an fcntl lock, says so, and waits for its input to end.
func lockHelper(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if args[1] == "r" {
		lk.Type = unix.F_RDLCK
	}
	if _, err := fmt.Sscan(args[2]+" "+args[3], &lk.Start, &lk.Len); err != nil {
		return err
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lk); err != nil {
		return err
	}
	fmt.Println("locked")
	var b [1]byte
	os.Stdin.Read(b[:])
	return nil
}

// mmapHelper FILE: writes through a shared mapping.
func mmapHelper(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if m[4096] != 'x' {
		return fmt.Errorf("mapped %q", m[4096])
	}
	copy(m[4090:], "across pages")
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	if err := unix.Munmap(m); err != nil {
		return err
	}
	return f.Close()
}

// statHelper FILE: asks for what may never come.
func statHelper(args []string) error { _, err := os.Stat(args[0]); return err }

// TestProcessLocks: fcntl locks of processes exclude each other by range, and end with the process.
func TestProcessLocks(t *testing.T) {
	everywhere(t, func(t *testing.T, _ *house, dir string, _ bool) {
		name := filepath.Join(dir, "f")
		write(t, name, "0123456789")
		hold := func(kind, start, length string) (end func()) {
			t.Helper()
			cmd := helper(t, "lock", name, kind, start, length)
			in, err := cmd.StdinPipe()
			must(t, err)
			out, err := cmd.StdoutPipe()
			must(t, err)
			cmd.Stderr = os.Stderr
			must(t, cmd.Start())
			buf := make([]byte, 7)
			if _, err := out.Read(buf); err != nil || string(buf[:6]) != "locked" {
				t.Fatalf("%q, %v", buf, err)
			}
			return func() { in.Close(); cmd.Wait() }
		}
		refused := func(kind, start, length string) {
			t.Helper()
			if out, err := helper(t, "lock", name, kind, start, length).CombinedOutput(); err == nil || !strings.Contains(string(out), "temporarily unavailable") {
				t.Errorf("%s %s %s: %v, %s", kind, start, length, err, out)
			}
		}
		end := hold("w", "2", "3")
		refused("w", "4", "1")
		refused("r", "0", "0")
		help(t, "lock", name, "w", "5", "5")
		end()
		r1 := hold("r", "0", "5")
		r2 := hold("r", "3", "5")
		refused("w", "4", "1")
		r1()
		refused("w", "4", "1")
		r2()
		help(t, "lock", name, "w", "0", "0")

		f, err := os.OpenFile(name, os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		g, err := os.OpenFile(name, os.O_RDWR, 0)
		must(t, err)
		must(t, syscall.Flock(int(g.Fd()), syscall.LOCK_SH))
		is(t, "flock", syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EAGAIN)
		must(t, g.Close())
		must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	})
}

func TestSharedMapping(t *testing.T) {
	everywhere(t, func(t *testing.T, h *house, dir string, _ bool) {
		name := filepath.Join(dir, "f")
		content := bytes.Repeat([]byte("x"), 8192)
		must(t, os.WriteFile(name, content, 0o644))
		help(t, "mmap", name)
		copy(content[4090:], "across pages")
		holds(t, name, string(content))
		at := "/docs/f"
		if strings.HasSuffix(dir, "homes") {
			at = "/homes/f"
		}
		if got, err := gatewaytest.Read(t.Context(), h.As("alice"), gatewaytest.Path(at)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("on the core: %d bytes, %v", len(got), err)
		}
	})
}

// TestFolders: many entries, and places in a listing that stay where they are.
func TestFolders(t *testing.T) {
	everywhere(t, func(t *testing.T, h *house, dir string, local bool) {
		count := 10_000
		if !local {
			count = 1000
		}
		if local {
			base := filepath.Join(h.dir, "docs/many")
			must(t, os.Mkdir(base, 0o755))
			for i := range count {
				must(t, os.WriteFile(filepath.Join(base, fmt.Sprintf("file-%05d", i)), nil, 0o644))
			}
		} else {
			must(t, os.Mkdir(filepath.Join(dir, "many"), 0o755))
			for i := range count {
				write(t, filepath.Join(dir, "many", fmt.Sprintf("file-%05d", i)), "")
			}
		}
		seen := map[string]bool{}
		entries, err := os.ReadDir(filepath.Join(dir, "many"))
		must(t, err)
		for _, e := range entries {
			seen[e.Name()] = true
		}
		if len(entries) != count || len(seen) != count {
			t.Errorf("%d entries, %d names; want %d", len(entries), len(seen), count)
		}
		d, err := os.Open(filepath.Join(dir, "many"))
		must(t, err)
		defer d.Close()
		type entry struct {
			name string
			next int64
		}
		var all []entry
		buf := make([]byte, 4096)
		for {
			n, err := unix.Getdents(int(d.Fd()), buf)
			must(t, err)
			if n == 0 {
				break
			}
			for b := buf[:n]; len(b) > 0; {
				reclen := int(b[16]) | int(b[17])<<8
				name, _, _ := bytes.Cut(b[19:reclen], []byte{0})
				next := int64(b[8]) | int64(b[9])<<8 | int64(b[10])<<16 | int64(b[11])<<24
				all = append(all, entry{string(name), next})
				b = b[reclen:]
			}
		}
		if len(all) != count+2 {
			t.Fatalf("%d entries with the dots", len(all))
		}
		for range 20 {
			i := rand.IntN(len(all) - 1)
			_, err := unix.Seek(int(d.Fd()), all[i].next, 0)
			must(t, err)
			n, err := unix.Getdents(int(d.Fd()), buf)
			must(t, err)
			reclen := int(buf[16]) | int(buf[17])<<8
			name, _, _ := bytes.Cut(buf[19:reclen], []byte{0})
			if n == 0 || string(name) != all[i+1].name {
				t.Errorf("after seekdir behind %s: %q; want %s", all[i].name, name, all[i+1].name)
			}
		}
		must(t, os.RemoveAll(filepath.Join(dir, "many")))
		tells(t, dir, "")
	})
}

// TestQuota: df shows the quota, writing over it fails with EDQUOT at write or close, and readers and writers of such files go along.
func TestQuota(t *testing.T) {
	h := newHouse(t, gateway.Limits{})
	must(t, h.DB.Update(t.Context(), func(tx *store.Tx) error {
		_, err := h.Gateway.PutWorkspace(tx, gateway.Workspace{Slug: "docs", Roots: []string{"disk:/docs"}, Quota: 1 << 20})
		return err
	}))
	must(t, h.Gateway.Reload(t.Context()))
	dir, _ := h.mount(t, "alice", nil)
	var st syscall.Statfs_t
	must(t, syscall.Statfs(dir+"/docs", &st))
	if free := st.Bavail * uint64(st.Bsize); free > 1<<20 || free == 0 {
		t.Errorf("df shows %d free", free)
	}
	write(t, dir+"/docs/f", "text")
	r, err := os.Open(dir + "/docs/f")
	must(t, err)
	defer r.Close()
	w, err := os.OpenFile(dir+"/docs/f", os.O_RDWR, 0)
	must(t, err)
	_, err = w.WriteAt([]byte("TE"), 0)
	must(t, err)
	if got := content(t, r); got != "TExt" {
		t.Errorf("the reader sees %q", got)
	}
	_, err = w.WriteAt(make([]byte, 2<<20), 0)
	is(t, "over the quota", errors.Join(err, w.Close()), syscall.EDQUOT)
	is(t, "a new file over the quota", os.WriteFile(dir+"/docs/g", make([]byte, 2<<20), 0o644), syscall.EDQUOT)
}

// TestPassthrough: the kernel reads and writes local files by itself, and no write asks for security.capability.
func TestPassthrough(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("passing through needs root")
	}
	h := newHouse(t, gateway.Limits{})
	dir, _ := h.mount(t, "alice", nil)
	f, err := os.Create(dir + "/docs/f")
	must(t, err)
	before := h.Gateway.Stats().Bytes.In
	_, err = f.Write(make([]byte, 1<<20))
	must(t, err)
	must(t, f.Close())
	if after := h.Gateway.Stats().Bytes.In; after != before {
		t.Errorf("%d bytes came to the core", after-before)
	}
	if i, err := h.As("alice").Stat(t.Context(), gatewaytest.Path("/docs/f")); err != nil || i.Size != 1<<20 {
		t.Errorf("%+v, %v", i, err)
	}
	slow, _ := h.mount(t, "alice", func(c *fuse.Config) { c.NoPassthrough = true })
	r, err := os.Open(slow + "/docs/f")
	must(t, err)
	defer r.Close()
	must(t, h.As("alice").Mkdir(t.Context(), gatewaytest.Path("/docs/other")))
	h.Revoke("user:alice", "docs:/")
	buf := make([]byte, 10)
	soon(t, "a revoked right ends an open file", func() bool {
		unix.Fadvise(int(r.Fd()), 0, 0, unix.FADV_DONTNEED)
		_, err := r.ReadAt(buf, 0)
		return err != nil
	})
}

// TestReadOnly: nothing is changed on a mount to read.
func TestReadOnly(t *testing.T) {
	h := newHouse(t, gateway.Limits{})
	h.Tell(t, "alice: put /docs/f text -> ok")
	dir, _ := h.mount(t, "alice", func(c *fuse.Config) { c.ReadOnly = true })
	holds(t, dir+"/docs/f", "text")
	for what, err := range map[string]error{
		"write": os.WriteFile(dir+"/docs/f", nil, 0o644), "mkdir": os.Mkdir(dir+"/docs/d", 0o755), "remove": os.Remove(dir + "/docs/f"),
		"rename": os.Rename(dir+"/docs/f", dir+"/docs/g"), "chmod": os.Chmod(dir+"/docs/f", 0o600),
	} {
		is(t, what, err, syscall.EROFS)
	}
}

// stuck is a backend that stops answering when it is told to.
type stuck struct {
	mounts.Backend
	stall chan struct{} // closed: answers come again
	on    chan struct{} // closed: answers stop
}

func (s stuck) Stat(ctx context.Context, name string) (mounts.Info, error) {
	select {
	case <-s.on:
		<-s.stall // whatever ctx says
	default:
	}
	return s.Backend.Stat(ctx, name)
}

// TestStall: a process that waits for a backend which does not answer can be killed, others go on, and the mount can be taken away.
func TestStall(t *testing.T) {
	need(t)
	s := stuck{gatewaytest.Far(mem.New(mem.Config{}), mounts.Native), make(chan struct{}), make(chan struct{})}
	dirs := t.TempDir()
	disk, err := local.Driver().Open(t.Context(), mounts.Config{Name: "disk", Options: map[string]string{"path": dirs}, Unsynced: true})
	must(t, err)
	h := &house{gatewaytest.New(t, gatewaytest.Config{Bare: true, Disks: map[string]mounts.Backend{"nas": s, "disk": disk}}), dirs}
	dir, srv := h.mount(t, "alice", func(c *fuse.Config) {
		c.Grace, c.UnmountTimeout = 100*time.Millisecond, 300*time.Millisecond
	})
	write(t, dir+"/homes/f", "text")
	close(s.on)
	t.Cleanup(func() { close(s.stall) })
	cmd := helper(t, "stat", dir+"/homes/g")
	must(t, cmd.Start())
	time.Sleep(100 * time.Millisecond)
	write(t, dir+"/docs/f", "the others go on")
	holds(t, dir+"/docs/f", "the others go on")
	must(t, cmd.Process.Kill())
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	select {
	case err := <-gone:
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the process cannot be killed")
	}
	waits := helper(t, "stat", dir+"/homes/h")
	must(t, waits.Start())
	defer waits.Wait()
	time.Sleep(100 * time.Millisecond)
	over := make(chan error, 1)
	go func() { over <- srv.Unmount() }()
	select {
	case err := <-over:
		must(t, err)
	case <-time.After(30 * time.Second):
		t.Fatal("the mount cannot be taken away")
	}
}

// TestUnmount: what was written is published when the mount is taken away under those who use it, by umount as well, and Wait returns.
func TestUnmount(t *testing.T) {
	h := newHouse(t, gateway.Limits{})
	dir, srv := h.mount(t, "alice", func(c *fuse.Config) { c.UnmountTimeout = 300 * time.Millisecond })
	for _, at := range places {
		f, err := os.Create(filepath.Join(dir, at, "f"))
		must(t, err)
		f.WriteString("open to the end")
		defer f.Close()
	}
	must(t, srv.Unmount())
	srv.Wait()
	for _, at := range places {
		if got, err := gatewaytest.Read(t.Context(), h.As("alice"), gatewaytest.Path("/"+at+"/f")); err != nil || string(got) != "open to the end" {
			t.Errorf("%s: %q, %v", at, got, err)
		}
	}
	must(t, srv.Unmount())
	srv = h.mountOn(t, dir, "alice", nil)
	write(t, dir+"/docs/g", "again")
	over := make(chan struct{})
	go func() { srv.Wait(); close(over) }()
	if err := syscall.Unmount(dir, 0); err != nil {
		must(t, exec.Command("fusermount3", "-u", dir).Run())
	}
	select {
	case <-over:
	case <-time.After(20 * time.Second):
		t.Fatal("Wait does not notice")
	}
}

// TestModes: bits that were taken away are obeyed, as on any disk.
func TestModes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	h := newHouse(t, gateway.Limits{})
	base := t.TempDir()
	for d := base; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	dir := filepath.Join(base, "m")
	must(t, os.Mkdir(dir, 0o755))
	h.mountOn(t, dir, "alice", func(c *fuse.Config) { c.UID, c.GID = 1234, 1234 })
	as := func(uid uint32, words ...string) error {
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return cmd.Run()
	}
	must(t, as(1234, "sh", "-c", "echo '#!/bin/sh' > "+dir+"/docs/s && chmod 700 "+dir+"/docs/s && "+dir+"/docs/s"))
	if as(1234, "sh", "-c", "chmod 600 "+dir+"/docs/s; "+dir+"/docs/s") == nil {
		t.Error("it ran without x")
	}
	if as(1234, "sh", "-c", "chmod 0 "+dir+"/docs/s; cat "+dir+"/docs/s") == nil {
		t.Error("it was read with mode 0")
	}
	if as(1235, "ls", dir) == nil {
		t.Error("somebody else looked in")
	}
	if _, err := os.ReadDir(dir); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("root looked in: %v", err)
	}
}
