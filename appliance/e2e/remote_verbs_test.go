package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// What the verbs of WebDAV do is the same over every kind of server, and the admin sees what each guarantees.
func TestRemoteVerbs(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, k *kind) {
		b := prepare(t)
		b.env = []string{"CELLGATE_METRICS_ALLOW=127.0.0.1"}
		b.serve()
		b.apply(k.state())
		a := b.as("alice")
		remoteFiles(t, a, k)
		remoteFolders(t, a)
		remoteNames(t, a, k)
		remoteListing(t, a)
		remoteShown(t, b, k)
		b.sound()
		b.stop()
		b.serve()
		if got := b.as("alice").want("GET", "/docs/v/f", "", 200); got.body != "third" {
			t.Errorf("after a restart: %q", got.body)
		}
		b.sound()
	})
}

// remoteFiles tries what is done to one file.
func remoteFiles(t *testing.T, a *client, k *kind) {
	t.Helper()
	a.want("MKCOL", "/docs/v", "", 201)
	a.want("MKCOL", "/docs/v", "", 405)
	a.want("PUT", "/docs/missing/f", "x", 409)
	a.want("GET", "/docs/v/f", "", 404)
	a.want("PUT", "/docs/v/f", "first", 201)
	a.want("PUT", "/docs/v/f", "first", 412, "If-None-Match: *")
	a.want("PUT", "/docs/v/f", "second one", 204)
	if r := a.want("GET", "/docs/v/f", "", 200); r.body != "second one" {
		t.Errorf("overwritten: %q", r.body)
	}
	a.want("PUT", "/docs/v/empty", "", 201)
	if r := a.want("GET", "/docs/v/empty", "", 200); r.body != "" {
		t.Errorf("an empty file holds %q", r.body)
	}
	big := pattern(5<<20 + 321)
	a.want("PUT", "/docs/v/big", big, 201)
	if r := a.want("GET", "/docs/v/big", "", 200); r.body != big {
		t.Errorf("a large file came back otherwise: %d bytes", len(r.body))
	}
	for _, r := range []struct {
		ask, want string
		status    int
	}{
		{"bytes=0-0", big[:1], 206}, {"bytes=65530-65545", big[65530:65546], 206}, {"bytes=3000000-", big[3000000:], 206}, {"bytes=-7", big[len(big)-7:], 206},
		{"bytes=6000000-", "", 416},
	} {
		if got := a.want("GET", "/docs/v/big", "", r.status, "Range: "+r.ask); r.status == 206 && got.body != r.want {
			t.Errorf("%s: %d bytes, want %d, and they differ", r.ask, len(got.body), len(r.want))
		}
	}
	// A file has an entity tag at the latest once its time can no longer be that of the next change. vsftpd's listings tell minutes.
	if k.name == "vsftpd" {
		past := time.Now().Add(-time.Hour)
		if err := os.Chtimes(filepath.Join(k.server.Root, "docs/v/f"), past, past); err != nil {
			t.Fatal(err)
		}
	}
	tag := ""
	eventually(t, 15*time.Second, "the file has an entity tag", func() bool {
		tag = a.want("HEAD", "/docs/v/f", "", 200).header.Get("Etag")
		return tag != ""
	})
	a.want("GET", "/docs/v/f", "", 304, "If-None-Match: "+tag)
	a.want("PUT", "/docs/v/f", "no", 412, `If-Match: "other"`)
	a.want("DELETE", "/docs/v/f", "", 412, `If-Match: "other"`)
	a.want("PUT", "/docs/v/f", "third", 204, "If-Match: "+tag)
	a.want("PUT", "/docs/v/f", "no", 412, "If-Match: "+tag)
	if r := a.want("GET", "/docs/v/f", "", 200); r.body != "third" {
		t.Errorf("after conditional writes: %q", r.body)
	}
	if now := a.want("HEAD", "/docs/v/f", "", 200).header.Get("Etag"); now == tag || k.name == "vsftpd" && now != "" {
		t.Error("the entity tag stayed the same with another content")
	}

	a.want("MOVE", "/docs/v/big", "", 201, a.to("/docs/v/large"))
	a.want("GET", "/docs/v/big", "", 404)
	a.want("COPY", "/docs/v/large", "", 201, a.to("/docs/v/big"))
	if r := a.want("GET", "/docs/v/big", "", 200); r.body != big {
		t.Errorf("a copy differs: %d bytes", len(r.body))
	}
	a.want("COPY", "/docs/v/f", "", 412, a.to("/docs/v/large"), "Overwrite: F")
	a.want("MOVE", "/docs/v/empty", "", 412, a.to("/docs/v/large"), "Overwrite: F")
	a.want("MOVE", "/docs/v/empty", "", 204, a.to("/docs/v/large"))
	if r := a.want("GET", "/docs/v/large", "", 200); r.body != "" {
		t.Errorf("a file that another was moved over: %d bytes", len(r.body))
	}
	a.want("COPY", "/docs/v/f", "", 204, a.to("/docs/v/large"))
	if r := a.want("GET", "/docs/v/large", "", 200); r.body != "third" {
		t.Errorf("a file that another was copied over: %q", r.body)
	}
	a.want("MOVE", "/docs/v/none", "", 404, a.to("/docs/v/large"))
	a.want("DELETE", "/docs/v/large", "", 204)
	a.want("DELETE", "/docs/v/large", "", 404)
	a.want("GET", "/docs/v/large", "", 404)
}

// remoteFolders tries what is done to folders with all that is in them.
func remoteFolders(t *testing.T, a *client) {
	t.Helper()
	for _, dir := range []string{"/docs/t", "/docs/t/x", "/docs/t/x/y", "/docs/t/none"} {
		a.want("MKCOL", dir, "", 201)
	}
	for _, f := range []string{"/docs/t/a", "/docs/t/x/b", "/docs/t/x/y/c"} {
		a.want("PUT", f, "in "+f, 201)
	}
	whole := []string{"/a", "/none/", "/x/", "/x/b", "/x/y/", "/x/y/c"}
	tree := func(root string, want ...string) {
		t.Helper()
		if got := treeOf(t, a, root); !slices.Equal(got, want) {
			t.Errorf("%s holds %q, want %q", root, got, want)
		}
	}
	tree("/docs/t", whole...)
	a.want("COPY", "/docs/t", "", 201, a.to("/docs/u"))
	tree("/docs/u", whole...)
	a.want("MOVE", "/docs/u", "", 201, a.to("/docs/w"))
	tree("/docs/w", whole...)
	a.want("GET", "/docs/u/a", "", 404)
	if r := a.want("GET", "/docs/w/x/y/c", "", 200); r.body != "in /docs/t/x/y/c" {
		t.Errorf("in a folder that was copied and moved: %q", r.body)
	}
	// Over a folder: what was there goes, and what comes is not mixed with it.
	a.want("MKCOL", "/docs/z", "", 201)
	a.want("PUT", "/docs/z/old", "old", 201)
	a.want("MOVE", "/docs/w", "", 412, a.to("/docs/z"), "Overwrite: F")
	a.want("MOVE", "/docs/w", "", 204, a.to("/docs/z"))
	tree("/docs/z", whole...)
	a.want("COPY", "/docs/t/x", "", 204, a.to("/docs/z"))
	tree("/docs/z", "/b", "/y/", "/y/c")
	for _, method := range []string{"COPY", "MOVE"} {
		if r := a.do(method, "/docs/t", "", a.to("/docs/t/x/in")); r.ok() || r.status >= 500 {
			t.Errorf("%s of a folder into itself: %d", method, r.status)
		}
	}
	tree("/docs/t", whole...)
	a.want("PUT", "/docs/z", "x", 405)
	a.want("DELETE", "/docs/z", "", 204)
	a.want("DELETE", "/docs/t", "", 204)
	a.want("GET", "/docs/t/x/y/c", "", 404)
	tree("/docs", "/v/", "/v/big", "/v/f")
}

// trickyNames are names that some protocol, server or quoting could stumble over.
var trickyNames = []string{
	"two words", " before", "behind ", "dot.", ".hidden", "..a", "-rf", "~", "~$a", "ünïcödé", "日本語", "😀", "u\u0308 composed", "%41%2F%00", "a#b?c=d&e", "a+b",
	"a;type=i", "a,b", `"quoted"`, "it's", `back\slash`, "co:lon", "st*r", "<xml>&amp;", "a|b", "[x]{y}", "$HOME`id`", "!", "@", "^", "=", "CON", "nul.txt", "A", "a",
	"desktop.ini", strings.Repeat("n", 255), strings.Repeat("é", 127), "*.tmp", "a\u00a0b", "\uff0e\uff0e",
}

// refusedNames are those of trickyNames that a kind of server cannot keep.
var refusedNames = map[string][]string{
	"smb":     {"CON", "nul.txt", "a"}, // devices of Windows, and "A"
	"dropbox": {"behind ", "~$a", `back\slash`, "a", "desktop.ini"},
}

// remoteNames makes, lists, reads, moves and deletes files and folders with odd names. What a server cannot keep is refused and leaves nothing.
func remoteNames(t *testing.T, a *client, k *kind) {
	t.Helper()
	a.want("MKCOL", "/docs/n", "", 201)
	var refused, kept []string
	for i, name := range trickyNames {
		at := "/docs/n/" + name
		body := fmt.Sprint("content ", i)
		switch r := a.do("PUT", at, body); r.status {
		case 201:
			kept = append(kept, "/"+name)
		case 204: // "a" is "A" here
			refused = append(refused, name)
			continue
		default:
			if r.status >= 500 {
				t.Errorf("PUT %q: %d %s", name, r.status, r.body)
			}
			refused = append(refused, name)
			if r := a.do("GET", at, ""); r.status != 404 && r.status != 400 {
				t.Errorf("GET %q, which was refused: %d", name, r.status)
			}
			continue
		}
		if r := a.want("GET", at, "", 200); r.body != body {
			t.Errorf("%q holds %q, want %q", name, r.body, body)
		}
		if i%3 == 0 && len(name) < 200 {
			a.want("MOVE", at, "", 201, a.to("/docs/n/moved"))
			a.want("MOVE", "/docs/n/moved", "", 201, a.to(at))
			a.want("COPY", at, "", 201, a.to("/docs/n/moved"))
			a.want("DELETE", "/docs/n/moved", "", 204)
		}
	}
	slices.Sort(kept)
	if got := treeOf(t, a, "/docs/n"); !slices.Equal(got, kept) {
		t.Errorf("the listing has %q, want %q", got, kept)
	}
	if want := refusedNames[k.name]; !slices.Equal(refused, want) {
		t.Errorf("refused %q, want %q", refused, want)
	}
	for _, name := range kept {
		a.want("DELETE", "/docs/n"+name, "", 204)
	}
	for _, name := range []string{"two words", "ünïcödé", "a;type=i", "-rf"} {
		a.want("MKCOL", "/docs/n/"+name, "", 201)
		a.want("PUT", "/docs/n/"+name+"/in", "in", 201)
		a.want("MOVE", "/docs/n/"+name, "", 201, a.to("/docs/n/"+name+" %"))
		if got := treeOf(t, a, "/docs/n"); !slices.Equal(got, []string{"/" + name + " %/", "/" + name + " %/in"}) {
			t.Errorf("a folder called %q, moved: %q", name, got)
		}
		a.want("DELETE", "/docs/n/"+name+" %", "", 204)
	}
	for _, name := range []string{"line\nfeed", "bell\a", "\u2028", "bad\xff"} {
		if r := a.do("PUT", "/docs/n/"+name, "x"); r.status != 400 {
			t.Errorf("PUT %q: %d, want 400", name, r.status)
		}
	}
	a.want("DELETE", "/docs/n", "", 204)
}

// remoteListing lists a folder of 300 files, each once and with its size.
func remoteListing(t *testing.T, a *client) {
	t.Helper()
	a.want("MKCOL", "/docs/many", "", 201)
	var want []string
	for i := range 300 {
		want = append(want, fmt.Sprintf("/f%03d", i))
	}
	each(8, func(n int) {
		for i := n; i < len(want); i += 8 {
			if r := a.do("PUT", "/docs/many"+want[i], want[i]); r.status != 201 {
				t.Errorf("PUT %s: %d", want[i], r.status)
			}
		}
	})
	if got := treeOf(t, a, "/docs/many"); !slices.Equal(got, want) {
		t.Errorf("%d of 300 files are listed: %q", len(got), got)
	}
	a.want("DELETE", "/docs/many", "", 204)
	if _, status, _ := a.list("/docs/many", 1); status != 404 {
		t.Errorf("a folder of 300 files is deleted: %d", status)
	}
}

// remoteShown looks at what the admin gets to see.
func remoteShown(t *testing.T, b *box, k *kind) {
	t.Helper()
	show := b.cellgate("datasource", "show", "far")
	for _, word := range []string{"GUARANTEE", "atomic replace", "conditional write", "rename of folders", "durable when acknowledged", "last tried", "(sealed)"} {
		if !strings.Contains(show, word) {
			t.Errorf("datasource show does not say %q:\n%s", word, show)
		}
	}
	if strings.Contains(show, "FAILED") || !stateIs(show, "up") {
		t.Errorf("datasource show:\n%s", show)
	}
	tried := b.cellgate("datasource", "test", "far")
	for _, word := range []string{"stat", "list", "write 4 KiB", "read 4 KiB", "delete"} {
		if !regexp.MustCompile(`(?m)^` + word + ` +[0-9.]+(µs|ms|s)$`).MatchString(tried) {
			t.Errorf("datasource test does not say how long %q took:\n%s", word, tried)
		}
	}
	if list := b.cellgate("datasource", "list"); !strings.Contains(list, "far") || !strings.Contains(list, k.driver) {
		t.Errorf("datasource list:\n%s", list)
	}
	metrics := b.metrics()
	for _, line := range []string{`cellgate_datasource_up{datasource="far"} 1`, `cellgate_datasource_state{datasource="far",state="up"} 1`,
		`cellgate_datasource_seconds_count{datasource="far"}`, `cellgate_datasource_calls{datasource="far"}`, `cellgate_datasource_failures_total{datasource="far"}`} {
		if !strings.Contains(metrics, line) {
			t.Errorf("/metrics has no %s", line)
		}
	}
	for _, secret := range k.secrets {
		if len(secret) > 7 && strings.Contains(show+tried+metrics+read(t, b.log), secret) {
			t.Error("a credential is shown")
		}
	}
}

// metrics returns what /metrics says. The box has to allow it to this machine.
func (b *box) metrics() string {
	b.t.Helper()
	r, err := b.raw("", "GET /metrics", nil, "")
	if err != nil || r.status != 200 {
		b.t.Fatalf("/metrics: %d %v", r.status, err)
	}
	return r.body
}

// treeOf lists a folder with all that is in it, sorted, below its own path; folders end with a slash.
func treeOf(t *testing.T, a *client, root string) (all []string) {
	t.Helper()
	for todo := []string{root}; len(todo) > 0; todo = todo[1:] {
		nodes, status, err := a.list(todo[0], 1)
		if err != nil || status != 207 {
			t.Errorf("listing %s: %d %v", todo[0], status, err)
			return nil
		}
		for _, n := range nodes {
			name := strings.TrimPrefix(n.path, root)
			switch {
			case n.path == todo[0]:
			case n.dir:
				all, todo = append(all, name+"/"), append(todo, n.path)
			default:
				all = append(all, name)
			}
			if path.Dir(n.path) != todo[0] && n.path != todo[0] {
				t.Errorf("listing %s: %s", todo[0], n.path)
			}
		}
	}
	slices.Sort(all)
	return all
}

// pattern is n bytes of which no part is like another.
func pattern(n int) string {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%07d ", i)
	}
	return b.String()[:n]
}

// stateIs reports whether the output of datasource show gives this state.
func stateIs(show, state string) bool {
	for line := range strings.Lines(show) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "state" {
			return strings.TrimSuffix(f[1], ":") == state
		}
	}
	return false
}
