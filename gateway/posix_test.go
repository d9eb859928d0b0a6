package gateway_test

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mem"
)

// posix is the session of a user as of a protocol that knows links and modes.
func posix(h *gatewaytest.House, login string) *gateway.Session {
	return h.As(login).With(gateway.Client{Protocol: "fuse", OwnLocks: true, Posix: true, Sums: true})
}

// wants fails unless err is of a kind; -1 is none.
func wants(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind {
		t.Errorf("%s: %v; want %v", what, err, kind)
	}
}

// TestLinks: symbolic and hard links are made with rights, shown as what they are to those who ask, and followed for everybody else.
func TestLinks(t *testing.T) {
	disk, _ := onDisk(t)
	for name, b := range map[string]mounts.Backend{"mem": mem.New(mem.Config{}), "local": disk} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": b}})
			h.Tell(t, "alice: put /docs/f text -> ok\nalice: mkdir /docs/d -> ok\nalice: put /docs/d/g inner -> ok")
			ctx, s, p := t.Context(), posix(h, "alice"), gatewaytest.Path
			for _, tt := range []struct{ target, at string }{{"f", "/docs/l"}, {"nowhere", "/docs/dangling"}, {"/etc/passwd", "/docs/out"}, {"d", "/docs/dl"}} {
				if err := s.Symlink(ctx, tt.target, p(tt.at)); err != nil {
					t.Fatal(err)
				}
				if i, err := s.Stat(ctx, p(tt.at)); err != nil || i.Target != tt.target || i.Dir || i.Size != int64(len(tt.target)) {
					t.Errorf("%s: %+v, %v", tt.at, i, err)
				}
			}
			var names []string
			for i, err := range s.List(ctx, p("/docs")) {
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, i.Name+"→"+i.Target)
			}
			slices.Sort(names)
			if got := strings.Join(names, " "); got != "dangling→nowhere dl→d d→ f→ l→f out→/etc/passwd" && got != "d→ dangling→nowhere dl→d f→ l→f out→/etc/passwd" {
				t.Errorf("listed %s", got)
			}
			h.Tell(t, `
				alice: cat /docs/l -> text
				alice: cat /docs/dl/g -> inner
				alice: ls /docs -> d/ dl/ f l
				alice: stat /docs/out -> ! permission denied
				alice: cat /docs/out -> ! permission denied
				alice: rm /docs/l -> ok
				alice: cat /docs/f -> text
			`)
			wants(t, "a taken name", s.Symlink(ctx, "f", p("/docs/f")), fault.Exist)
			wants(t, "no parent", s.Symlink(ctx, "f", p("/docs/no/l")), fault.NotExist)
			wants(t, "no target", s.Symlink(ctx, "", p("/docs/e")), fault.Invalid)
			wants(t, "no right", posix(h, "bob").Symlink(ctx, "f", p("/docs/b")), fault.Denied)

			if err := s.Link(ctx, p("/docs/f"), p("/docs/hard")); err != nil {
				t.Fatal(err)
			}
			if i, err := s.Stat(ctx, p("/docs/hard")); err != nil || i.Links != 2 || i.Size != 4 {
				t.Errorf("hard link: %+v, %v", i, err)
			}
			wants(t, "a taken name", s.Link(ctx, p("/docs/f"), p("/docs/hard")), fault.Exist)
			wants(t, "a folder", s.Link(ctx, p("/docs/d"), p("/docs/d2")), fault.IsDir)
			wants(t, "another datasource", s.Link(ctx, p("/docs/f"), p("/homes/f")), fault.Unsupported)
			h.Grant("user:bob", "pair:/one", "read", "write")
			wants(t, "only a reader", posix(h, "bob").Link(ctx, p("/docs/f"), p("/pair/one/f")), fault.Denied)
			h.Tell(t, "alice: rm /docs/f -> ok\nalice: cat /docs/hard -> text")
		})
	}
}

// TestSetAttr: times and permission bits are kept, where the backend has no bits in the store, and go along with a move.
func TestSetAttr(t *testing.T) {
	far := gatewaytest.Far(mem.New(mem.Config{}), mounts.Native)
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"nas": far}})
	h.Tell(t, "alice: put /docs/f 1 -> ok\nalice: put /homes/f 1 -> ok\nalice: mkdir /homes/d -> ok")
	ctx, s, p := t.Context(), posix(h, "alice"), gatewaytest.Path
	when, mode := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), fs.FileMode(0o640)
	for _, name := range []string{"/docs/f", "/homes/f", "/homes/d"} {
		if err := s.SetAttr(ctx, p(name), gateway.Attr{Mode: &mode}); err != nil {
			t.Fatal(err)
		}
		if i, err := s.Stat(ctx, p(name)); err != nil || i.Mode != mode {
			t.Errorf("%s: mode %v, %v", name, i.Mode, err)
		}
	}
	if err := s.SetAttr(ctx, p("/docs/f"), gateway.Attr{ModTime: when}); err != nil {
		t.Fatal(err)
	}
	if i, err := s.Stat(ctx, p("/docs/f")); err != nil || !i.ModTime.Equal(when) || i.Mode != mode {
		t.Errorf("%+v, %v", i, err)
	}
	h.Tell(t, "alice: mv /homes/f /homes/d/g -> ok")
	for i, err := range s.List(ctx, p("/homes/d")) {
		if err != nil || i.Name != "g" || i.Mode != mode {
			t.Errorf("listed %+v, %v", i, err)
		}
	}
	wants(t, "a reader", posix(h, "bob").SetAttr(ctx, p("/docs/f"), gateway.Attr{Mode: &mode}), fault.Denied)
}

// TestSums: checksums that a protocol needs are computed, kept with the content, shown with it, and gone once it changes by whatever way.
func TestSums(t *testing.T) {
	for name, b := range map[string]mounts.Backend{"near": mem.New(mem.Config{}), "far": gatewaytest.Far(mem.New(mem.Config{}), mounts.Native)} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": b}})
			ctx, s, p := t.Context(), posix(h, "alice"), gatewaytest.Path("/docs/f")
			put := func(content string) {
				t.Helper()
				prop := gateway.PropChange{Prop: gateway.Prop{Space: "x", Name: "meta", Value: []byte(content)}}
				u, err := s.Create(ctx, p, gateway.CreateOptions{Size: -1, Compute: []string{"MD5", "CRC64NVME"}, Note: "PARTS:3", Props: []gateway.PropChange{prop}})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := u.Write([]byte(content)); err != nil {
					t.Fatal(err)
				}
				if i, _, err := u.Commit(ctx); err != nil || !strings.Contains(i.Sums, "PARTS:3") {
					t.Fatal(i, err)
				}
			}
			sums := func() string {
				t.Helper()
				i, err := s.Stat(ctx, p)
				if err != nil {
					t.Fatal(err)
				}
				f, err := s.Open(ctx, p, gateway.ReadOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if f.Info().Sums != i.Sums {
					t.Errorf("open says %q, stat %q", f.Info().Sums, i.Sums)
				}
				f.Close()
				for l, err := range s.List(ctx, gatewaytest.Path("/docs")) {
					if err != nil || l.Sums != i.Sums {
						t.Errorf("listing says %q, stat %q, %v", l.Sums, i.Sums, err)
					}
				}
				return i.Sums
			}
			put("123456789")
			md := md5.Sum([]byte("123456789"))
			if got, want := sums(), "MD5:"+hex.EncodeToString(md[:])+" CRC64NVME:ae8b14860a799888 PARTS:3"; got != want {
				t.Errorf("%q, want %q", got, want)
			}
			if props, err := s.Props(ctx, p); err != nil || len(props) != 1 || string(props[0].Value) != "123456789" {
				t.Errorf("%+v, %v", props, err)
			}
			put("other")
			if props, err := s.Props(ctx, p); err != nil || len(props) != 1 || string(props[0].Value) != "other" {
				t.Errorf("%+v, %v", props, err)
			}
			h.Tell(t, "alice: put /docs/f more -> ok")
			if got := sums(); got != "" {
				t.Errorf("after another put: %q", got)
			}
			put("again")
			if name == "far" {
				return // nothing but its size and time would tell
			}
			if _, err := mounts.WriteFile(ctx, b, "docs/f", []byte("AGAIN")); err != nil {
				t.Fatal(err)
			}
			if got := sums(); got != "" {
				t.Errorf("after a change outside: %q", got)
			}
			h.Tell(t, "alice: cp /docs/f /docs/copy -> ok")
			if i, err := s.Stat(ctx, gatewaytest.Path("/docs/copy")); err != nil || i.Sums != "" {
				t.Errorf("a copy of what was changed outside: %q, %v", i.Sums, err)
			}
		})
	}
}

// TestInPlace: a handle in place changes the file itself, at once and for all, keeps its identity, and is recorded by Sync and Close.
func TestInPlace(t *testing.T) {
	disk, _ := onDisk(t)
	for name, b := range map[string]mounts.Backend{"mem": mem.New(mem.Config{}), "local": disk, "far": gatewaytest.Far(mem.New(mem.Config{}), mounts.Native)} {
		t.Run(name, func(t *testing.T) {
			h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": b}})
			h.Tell(t, "alice: put /docs/old 0123456789 -> ok")
			ctx, s, p := t.Context(), posix(h, "alice"), gatewaytest.Path
			before, err := s.Stat(ctx, p("/docs/old"))
			if err != nil {
				t.Fatal(err)
			}
			f, err := s.OpenFile(ctx, p("/docs/old"), gateway.OpenOptions{Flag: os.O_RDWR, InPlace: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("AB"), 4); err != nil {
				t.Fatal(err)
			}
			seen := "0123AB6789"
			if name == "far" {
				seen = "0123456789"
			}
			h.Tell(t, "bob: cat /docs/old -> "+seen)
			if err := errors.Join(f.Sync(ctx), f.Truncate(6)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 6)
			if n, err := f.ReadAt(buf, 0); n != 6 || err != nil || string(buf) != "0123AB" {
				t.Errorf("%d, %v, %q", n, err, buf)
			}
			if err := f.Close(ctx); err != nil {
				t.Fatal(err)
			}
			h.Tell(t, "bob: cat /docs/old -> 0123AB")
			after, err := s.Stat(ctx, p("/docs/old"))
			if err != nil || name != "far" && after.ID != before.ID || after.ETag == before.ETag && after.ETag != "" {
				t.Errorf("before %+v\nafter %+v, %v", before, after, err)
			}

			f, err = s.OpenFile(ctx, p("/docs/new"), gateway.OpenOptions{Flag: os.O_RDWR | os.O_CREATE | os.O_EXCL, InPlace: true, Perm: 0o600})
			if err != nil {
				t.Fatal(err)
			}
			if name != "far" {
				h.Tell(t, "bob: stat /docs/new -> file 0")
				_, err = s.OpenFile(ctx, p("/docs/new"), gateway.OpenOptions{Flag: os.O_RDWR | os.O_CREATE | os.O_EXCL, InPlace: true})
				wants(t, "a taken name", err, fault.Exist)
			}
			if _, err := f.WriteAt([]byte("tail"), 4); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(ctx); err != nil {
				t.Fatal(err)
			}
			if i, err := s.Stat(ctx, p("/docs/new")); err != nil || i.Size != 8 || name != "far" && i.Mode != 0o600 {
				t.Errorf("%+v, %v", i, err)
			}
			f, err = s.OpenFile(ctx, p("/docs/new"), gateway.OpenOptions{Flag: os.O_WRONLY | os.O_TRUNC, InPlace: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(ctx); err != nil {
				t.Fatal(err)
			}
			h.Tell(t, "bob: stat /docs/new -> file 0")

			_, err = posix(h, "bob").OpenFile(ctx, p("/docs/old"), gateway.OpenOptions{Flag: os.O_RDWR | os.O_TRUNC, InPlace: true})
			wants(t, "a reader", err, fault.Denied)
			h.Tell(t, "bob: cat /docs/old -> 0123AB\nalice: lock /docs/old L -> ok")
			_, err = posix(h, "bob").OpenFile(ctx, p("/docs/none"), gateway.OpenOptions{Flag: os.O_RDWR | os.O_CREATE, InPlace: true})
			wants(t, "a reader's new file", err, fault.Denied)
			if err := h.Gateway.Fsck(ctx, false, func(f gateway.Finding) { t.Errorf("fsck: %+v", f) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestInPlaceReplaced: whoever writes to a file that has lost its name writes to nothing, and brings nothing back.
func TestInPlaceReplaced(t *testing.T) {
	disk, _ := onDisk(t)
	h := gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}})
	h.Tell(t, "alice: put /docs/a old -> ok\nalice: put /docs/b old -> ok")
	ctx, s := t.Context(), posix(h, "alice")
	open := map[string]*gateway.Handle{}
	for _, name := range []string{"/docs/a", "/docs/b"} {
		f, err := s.OpenFile(ctx, gatewaytest.Path(name), gateway.OpenOptions{Flag: os.O_RDWR, InPlace: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		open[name] = f
	}
	h.Tell(t, "alice: rm /docs/a -> ok\nalice: put /docs/b new! -> ok")
	for _, name := range slices.Sorted(maps.Keys(open)) {
		if _, err := open[name].WriteAt([]byte("lost"), 10); err != nil {
			t.Fatal(err)
		}
		if err := open[name].Close(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.Tell(t, "alice: stat /docs/a -> ! does not exist\nalice: cat /docs/b -> new!")
}

// TestInPlaceRevoked: a right that is taken away is gone with the next write, also of an open file; a quota binds.
func TestInPlaceRevoked(t *testing.T) {
	h := gatewaytest.New(t, gatewaytest.Config{})
	h.Grant("user:bob", "docs:/", "read", "write")
	h.Tell(t, "alice: put /docs/a old -> ok")
	ctx := t.Context()
	f, err := posix(h, "bob").OpenFile(ctx, gatewaytest.Path("/docs/a"), gateway.OpenOptions{Flag: os.O_RDWR, InPlace: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	h.Revoke("user:bob", "docs:/")
	_, err = f.WriteAt([]byte("2"), 1)
	if kind := fault.KindOf(err); kind != fault.Denied && kind != fault.NotExist {
		t.Errorf("write after the right was revoked: %v", err)
	}
	if err := f.Close(context.WithoutCancel(ctx)); err != nil {
		t.Error(err)
	}
	h.Tell(t, "alice: cat /docs/a -> 1ld")

	// Who may write and not read opens for writing only.
	h.Tell(t, "alice: put /drop/f secret -> ok")
	for flag, kind := range map[int]fault.Kind{os.O_RDWR: fault.Denied, os.O_RDWR | os.O_CREATE: fault.Denied, os.O_RDWR | os.O_TRUNC: fault.Denied} {
		f, err := posix(h, "bob").OpenFile(ctx, gatewaytest.Path("/drop/f"), gateway.OpenOptions{Flag: flag, InPlace: true})
		if got := fault.KindOf(err); err == nil || got != kind && got != fault.NotExist {
			t.Errorf("opened with %#x: %v, %v", flag, f, err)
		}
	}
	h.Tell(t, "alice: cat /drop/f -> secret")
}
