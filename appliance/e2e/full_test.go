package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// volume mounts a small file system of its own on dir.
func volume(t *testing.T, dir, options string) {
	t.Helper()
	asRoot(t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("e2e", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("no tmpfs can be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fillUp takes all that is left of a volume, bytes or names, and returns how to give it back.
func fillUp(t *testing.T, dir string, inodes bool) (free func()) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	if err := os.MkdirAll(ballast, 0o755); err != nil {
		t.Fatal(err)
	}
	if inodes {
		for i := 0; ; i++ {
			f, err := os.Create(filepath.Join(ballast, fmt.Sprint(i)))
			if err != nil {
				break
			}
			f.Close()
		}
	} else {
		f, err := os.Create(filepath.Join(ballast, "bytes"))
		if err != nil {
			t.Fatal(err)
		}
		for block := make([]byte, 1<<20); len(block) > 0; block = block[:len(block)/2] {
			for {
				if _, err := f.Write(block); err != nil {
					break
				}
			}
		}
		f.Close()
	}
	return func() {
		t.Helper()
		if err := os.RemoveAll(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

// D08: a volume that is full, of bytes or of names, the files' or the box's own: uploads get 507, what is there stays and can be read and
// deleted, and all is well again once there is room.
func TestD08Full(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		data   bool // the box's own volume, not that of the files
		inodes bool
	}{
		{"files bytes", false, false},
		{"files inodes", false, true},
		{"data bytes", true, false},
		{"data inodes", true, true},
	} {
		if testing.Short() && c.inodes != c.data {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			b := prepare(t)
			files, data := "size=24m,nr_inodes=400", "size=24m,nr_inodes=400"
			if c.data {
				files = "size=64m,nr_inodes=9000" // what fills is the other one
			}
			volume(t, b.files, files)
			volume(t, b.data, data)
			t.Cleanup(b.kill)
			if err := os.MkdirAll(filepath.Join(b.files, "docs"), 0o755); err != nil {
				t.Fatal(err)
			}
			b.serve()
			b.apply(common)
			alice := b.as("alice")
			old := strings.Repeat("old content\n", 10_000)
			for i := range 30 {
				alice.want("PUT", fmt.Sprintf("/docs/old%d", i), old, 201)
			}
			alice.want("MKCOL", "/docs/dir", "", 201)

			// The volume fills during an upload: its end is refused.
			where := b.files
			if c.data {
				where = b.data
			}
			free := fillUp(t, where, c.inodes)
			if !c.data {
				for _, r := range []struct{ method, path, body string }{
					{"PUT", "/docs/new", old}, {"PUT", "/docs/old1", old + old}, {"MKCOL", "/docs/dir2", ""},
				} {
					if r.method == "MKCOL" && !c.inodes {
						continue // an empty folder fits
					}
					if got := alice.do(r.method, r.path, r.body); got.status != 507 {
						t.Errorf("%s %s on a full volume: %d %s", r.method, r.path, got.status, got.body)
					}
				}
				alice.want("COPY", "/docs/old2", "", 507, alice.to("/docs/copy"))
			} else {
				// The box's own memory may have some room left in files that exist; in the end there is none.
				refused := 0
				for i := range 3000 {
					got, err := alice.try(context.Background(), "PUT", fmt.Sprintf("/docs/more%d", i), strings.NewReader("x"))
					if err != nil {
						t.Fatal(err)
					}
					if got.status == 507 {
						if refused++; refused > 3 {
							break
						}
					} else if !got.ok() {
						t.Fatalf("PUT %d with a full data volume: %d %s", i, got.status, got.body)
					}
				}
				if refused == 0 && !c.inodes {
					t.Error("nothing was refused: this shows nothing")
				}
			}
			alice.want("GET", "/docs/new", "", 404)
			for i := range 30 {
				if got := alice.do("GET", fmt.Sprintf("/docs/old%d", i), ""); got.body != old {
					t.Errorf("old%d: %d, %d bytes", i, got.status, len(got.body))
				}
			}
			if _, code, err := alice.list("/docs", 1); code != 207 || err != nil {
				t.Errorf("listing: %d %v", code, err)
			}
			deleted := 0
			for i := range 10 {
				got := alice.do("DELETE", fmt.Sprintf("/docs/old%d", i), "")
				if got.ok() {
					deleted++
				} else if !c.data || got.status != 507 {
					t.Errorf("DELETE on a full volume: %d %s", got.status, got.body)
				}
			}
			if deleted < 10 {
				t.Logf("%d of 10 deletes came through while the box's own volume was full; each has to be recorded there", deleted)
			}
			free()
			if n := alice.do("PUT", "/docs/new", old); !n.ok() {
				t.Errorf("PUT once there is room: %d %s", n.status, n.body)
			}
			alice.want("PUT", "/docs/old29", "changed", 204)
			alice.want("DELETE", "/docs/dir", "", 204)
			b.sound()

			// Killed on a full volume it starts again, and works at the latest a moment after there is room.
			free = fillUp(t, where, c.inodes)
			b.kill()
			b.serve()
			t.Logf("after a start on a full volume a file is read with %d", b.as("alice").do("GET", "/docs/old28", "").status)
			free()
			eventually(t, 15*time.Second, "a file can be read after a start on a full volume", func() bool {
				return b.as("alice").do("GET", "/docs/old28", "").body == old
			})
			b.as("alice").want("PUT", "/docs/last", "last", 201)
			b.sound()
		})
	}
}
