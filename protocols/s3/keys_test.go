package s3

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"cellgate/gateway/gatewaytest"
)

// What can never be a key is refused with the same error each time, and is not there for whoever reads or deletes.
func TestKeysThatAreNoPaths(t *testing.T) {
	b := openBox(t, nil)
	b.put("a/b", "content")
	for _, key := range []string{"a//b", "/a", "//", "a//", "..", "../x", "a/../b", "a/..", ".", "./a", "a/./b", "a\x00b", "a\nb", "a/\u0085", "a\u2028b", "bad\xff", strings.Repeat("n", 256), "/"} {
		c := call{path: "/docs/" + key, body: ""}
		for _, m := range []struct{ method, body, want string }{
			{"PUT", "x", "400 InvalidObjectName"}, {"PUT", "", "400 InvalidObjectName"}, {"GET", "", "404 NoSuchKey"}, {"HEAD", "", "404 "}, {"DELETE", "", "204 "},
		} {
			c.method, c.body = m.method, m.body
			if a := b.do(c); a.String() != m.want {
				t.Errorf("%s %q: got %v, want %s", m.method, key, a, m.want)
			}
		}
		if a := b.do(call{method: "POST", path: "/docs/" + key, query: "uploads"}); a.String() != "400 InvalidObjectName" {
			t.Errorf("upload of %q: %v", key, a)
		}
		if a := b.do(call{method: "PUT", path: "/docs/" + key, header: map[string]string{"X-Amz-Copy-Source": "/docs/a/b"}}); a.String() != "400 InvalidObjectName" {
			t.Errorf("copy to %q: %v", key, a)
		}
	}
	if a := b.do(call{method: "PUT", path: "/docs/" + strings.Repeat("d/", 512) + "k"}); a.String() != "400 KeyTooLongError" {
		t.Errorf("a long key: %v", a)
	}
	for range 2 {
		for key, want := range map[string]string{"a/b/c": "409 ObjectParentIsFile", "a/b/": "409 ObjectParentIsFile", "a": "409 ExistingObjectIsDirectory"} {
			a := b.do(call{method: "PUT", path: "/docs/" + key, body: map[bool]string{true: "", false: "x"}[strings.HasSuffix(key, "/")]})
			if a.String() != want {
				t.Errorf("PUT %s: got %v, want %s", key, a, want)
			}
			large := b.do(call{method: "PUT", path: "/docs/" + key, body: string(many(smallBody + 1))})
			if strings.HasSuffix(key, "/") {
				want = "400 InvalidObjectName"
			}
			if large.String() != want {
				t.Errorf("PUT of more to %s: got %v, want %s", key, large, want)
			}
		}
	}
	for _, key := range []string{"a", "a/b/c", "a/b/"} {
		if a := b.get(key); a.String() != "404 NoSuchKey" {
			t.Errorf("GET %s: %v", key, a)
		}
		if a := b.do(call{method: "DELETE", path: "/docs/" + key}); a.status != 204 {
			t.Errorf("DELETE %s: %v", key, a)
		}
	}
	if got := b.keys("docs"); !slices.Equal(got, []string{"a/b"}) {
		t.Errorf("keys are %q", got)
	}
}

// Folders that were made on the way vanish with what was in them; those that anybody made on purpose stay.
func TestFolders(t *testing.T) {
	b := openBox(t, nil)
	folder := func(name string) bool {
		_, err := os.Stat(filepath.Join(b.dir, "docs", name))
		return err == nil
	}
	keys := func(want ...string) {
		t.Helper()
		if got := b.keys("docs"); !slices.Equal(got, want) {
			t.Errorf("keys are %q, want %q", got, want)
		}
	}
	remove := func(key string) {
		t.Helper()
		if a := b.do(call{method: "DELETE", path: "/docs/" + key}); a.status != http.StatusNoContent {
			t.Errorf("DELETE %s: %v", key, a)
		}
	}
	b.put("x/y/z/1", "1")
	b.put("x/2", "2")
	remove("x/y/z/1")
	if folder("x/y") || !folder("x") {
		t.Error("the folders on the way to what was deleted are not those that should be left")
	}
	// On purpose by the key of the folder.
	b.put("made/", "")
	b.put("made/by/1", "1")
	keys("made/", "made/by/1", "x/2")
	remove("made/by/1")
	keys("made/", "x/2")
	if a := b.do(call{method: "HEAD", path: "/docs/made/"}); a.status != 200 || a.header.Get("Etag") != `"`+emptyMD5+`"` || a.header.Get("Content-Length") != "0" {
		t.Errorf("HEAD of a folder: %v %v", a, a.header)
	}
	remove("made/")
	keys("x/2")
	// The key of a folder that holds something goes alone, and the folder with the last in it.
	b.put("made/", "")
	b.put("made/1", "1")
	remove("made/")
	keys("made/1", "x/2")
	remove("made/1")
	if folder("made") {
		t.Error("a folder that is only implied is left")
	}
	// On purpose by another door.
	alice := b.As("alice")
	if err := alice.Mkdir(t.Context(), gatewaytest.Path("/docs/dav")); err != nil {
		t.Fatal(err)
	}
	keys("dav/", "x/2")
	b.put("dav/1", "1")
	keys("dav/1", "x/2")
	remove("dav/")
	keys("dav/1", "x/2")
	remove("dav/1")
	keys("dav/", "x/2")
	if a := b.get("x/"); a.String() != "404 NoSuchKey" {
		t.Errorf("the key of an implied folder: %v", a)
	}
	remove("x/2")
	remove("dav/")
	keys()
}

// Many who put into folders that others are emptying never fail, and none is left.
func TestFoldersRace(t *testing.T) {
	b := openBox(t, nil)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for j := range 25 {
				key := fmt.Sprintf("/docs/a/b/%d/c/f%d", j%2, i)
				body := "x"
				if i == 0 {
					body = string(many(smallBody + 1))
				}
				if a := b.do(call{method: "PUT", path: key, body: body}); a.status != 200 {
					t.Errorf("PUT: %v %s", a, a.body)
				}
				if a := b.do(call{method: "DELETE", path: key}); a.status != 204 {
					t.Errorf("DELETE: %v %s", a, a.body)
				}
			}
		})
	}
	wg.Wait()
	b.put("a/last", "x")
	if a := b.do(call{method: "DELETE", path: "/docs/a/last"}); a.status != 204 {
		t.Error(a)
	}
	if got := b.keys("docs"); len(got) != 0 {
		t.Errorf("keys are %q", got)
	}
}

// RELIABILITY A05: however a key is spelt, what is denied stays so.
func TestSpellings(t *testing.T) {
	b := openBox(t, nil)
	b.put("secret/f", "hidden")
	b.put("secrets", "seen")
	b.Grant("user:bob", "docs:/secret", "deny")
	for _, path := range []string{"/docs/secret/f", "/docs/secret//f", "/docs//secret/f", "/docs/./secret/f", "/docs/x/../secret/f", "/docs/secret/./f", "/docs/secret/f/", "/docs/secret%2Ff",
		"/docs/secret;a=b/f", "/docs/secret\\f", "/docs/SECRET/../secret/f", "//docs/secret/f"} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			a := b.do(call{method: method, path: path, key: bob, body: map[bool]string{true: "evil"}[method == "PUT"]})
			if strings.Contains(a.body, "hidden") {
				t.Errorf("%s %s shows what is hidden", method, path)
			}
		}
	}
	for _, query := range []string{"list-type=2", "prefix=secret/", "prefix=secret&delimiter=/", "versions", "prefix=s&delimiter=f", "marker=secret/", "list-type=2&start-after=secret/"} {
		a := b.do(call{method: "GET", path: "/docs", query: query, key: bob})
		if strings.Contains(a.body, "<Key>secret/") || strings.Contains(a.body, "<Prefix>secret/</Prefix></CommonPrefixes>") {
			t.Errorf("%s shows what is hidden: %s", query, a.body)
		}
	}
	if a := b.do(call{method: "PUT", path: "/docs/stolen", key: bob, header: map[string]string{"X-Amz-Copy-Source": "/docs/secret/f"}}); a.status < 400 {
		t.Errorf("a copy of what is hidden: %v", a)
	}
	if a := b.get("secret/f"); a.body != "hidden" {
		t.Errorf("what is hidden was changed: %v", a)
	}
}
