package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rcloneConfig is a configuration with the box as remote "dav".
func (b *box) rcloneConfig(t *testing.T, user, vendor string) string {
	t.Helper()
	hidden := strings.TrimSpace(command{}.run(t, program(t, "rclone"), "obscure", password(user)))
	return write(t, filepath.Join(t.TempDir(), "rclone.conf"),
		fmt.Sprintf("[dav]\ntype = webdav\nurl = %s\nvendor = %s\nuser = %s\npass = %s\n", b.url("", ""), vendor, user, hidden))
}

// oddNames round-trip through every client that is given them.
var oddNames = []string{
	"plain", "with space", "percent%20", "100%", "hash#tag", "what?", "semi;colon=1", "amp&ersand", "plus+plus", "quote'single", `double"quote`,
	"comma,at@", "[brackets]", "{braces}", "caret^tilde~", "back`tick", "dollar$", "exclaim!", "star*", "(parens)", "less<more>", "pipe|",
	"ümläut", "日本語", "emoji😀", "é", "-dash", "..two", "...", ".hidden", "~home", "trailing.", "a=b", "colon:", `back\slash`, " lead", "trail ",
	strings.Repeat("n", 200),
}

func TestRclone(t *testing.T) {
	t.Parallel()
	rclone := program(t, "rclone")
	vendors := []string{"other", "nextcloud", "owncloud"}
	if testing.Short() {
		vendors = vendors[1:2]
	}
	for _, vendor := range vendors {
		t.Run(vendor, func(t *testing.T) {
			b := start(t, common)
			conf := b.rcloneConfig(t, "alice", vendor)
			run := func(args ...string) string {
				t.Helper()
				return command{}.run(t, rclone, append([]string{"--config", conf, "--retries", "1", "--low-level-retries", "1"}, args...)...)
			}
			src := filepath.Join(t.TempDir(), "src")
			stamp := time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)
			for i, name := range oddNames {
				for _, dir := range []string{"flat", "nested/" + name} {
					f := write(t, filepath.Join(src, dir, name), strings.Repeat(name, i%7*100))
					if err := os.Chtimes(f, stamp, stamp); err != nil {
						t.Fatal(err)
					}
				}
			}
			write(t, filepath.Join(src, "big"), strings.Repeat("big ", 2<<20))

			run("copy", src, "dav:docs/tree")
			sameTree(t, "on disk", digestsOf(t, b.disk("tree")), digestsOf(t, src))
			run("check", "--download", src, "dav:docs/tree")
			back := filepath.Join(t.TempDir(), "back")
			run("copy", "dav:docs/tree", back)
			sameTree(t, "copied back", digestsOf(t, back), digestsOf(t, src))

			// Times hold for the vendors that can say them, and hashes with them.
			if vendor != "other" {
				info, err := os.Stat(b.disk("tree/flat/plain"))
				if err != nil || !info.ModTime().Equal(stamp) {
					t.Errorf("the time on disk is %v, want %v (%v)", info.ModTime(), stamp, err)
				}
				if out := run("lsl", "dav:docs/tree/flat/plain"); !strings.Contains(out, stamp.Local().Format("2006-01-02 15:04:05")) {
					t.Errorf("lsl: %s", out)
				}
				if out := run("sync", "-v", "--modify-window", "1s", src, "dav:docs/tree"); strings.Contains(out, "Copied") {
					t.Errorf("a second sync copies again:\n%s", tail(out, 1000))
				}
				run("check", src, "dav:docs/tree")
			}

			// Sync carries changes and deletions over.
			write(t, filepath.Join(src, "flat/with space"), "changed by sync, and longer than before")
			if err := os.RemoveAll(filepath.Join(src, "nested")); err != nil {
				t.Fatal(err)
			}
			run("sync", src, "dav:docs/tree")
			sameTree(t, "after sync", digestsOf(t, b.disk("tree")), digestsOf(t, src))

			run("moveto", "dav:docs/tree", "dav:docs/moved")
			sameTree(t, "after move", digestsOf(t, b.disk("moved")), digestsOf(t, src))
			run("copyto", "dav:docs/moved/big", "dav:docs/moved/big2")
			if read(t, b.disk("moved/big2")) != read(t, filepath.Join(src, "big")) {
				t.Error("a copy on the server has other bytes")
			}
			if out := run("size", "dav:docs/moved"); !strings.Contains(out, "Total objects: ") {
				t.Errorf("size: %s", out)
			}
			run("about", "dav:docs")
			run("purge", "dav:docs/moved")
			if left := digestsOf(t, b.disk("")); len(left) != 0 {
				t.Errorf("after purge %d files are left", len(left))
			}

			// What the client says of its body is compared with it.
			alice := b.as("alice")
			const empty = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
			alice.want("PUT", "/docs/sum", "", 201, "OC-Checksum: SHA1:"+empty)
			alice.want("PUT", "/docs/sum", "x", 400, "OC-Checksum: SHA1:"+empty)
			if got := alice.do("GET", "/docs/sum", "").body; got != "" {
				t.Errorf("an upload with a wrong checksum was published: %q", got)
			}
			b.sound()
		})
	}
}
