package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// cadaver plays commands in a session of cadaver and returns what it printed.
func (b *box) cadaver(t *testing.T, user, dir string, lines ...string) string {
	t.Helper()
	host, _, _ := strings.Cut(b.http, ":")
	home := t.TempDir()
	write(t, filepath.Join(home, ".netrc"), "machine "+host+"\nlogin "+user+"\npassword "+password(user)+"\n")
	script := "open " + b.url("", "/docs/") + "\n" + strings.Join(lines, "\n") + "\nquit\n"
	return command{dir: dir, env: []string{"HOME=" + home, "EDITOR=true"}, stdin: script}.run(t, program(t, "cadaver"))
}

// has wants all of the texts in this order.
func has(t *testing.T, out string, texts ...string) {
	t.Helper()
	rest := out
	for _, text := range texts {
		_, after, ok := strings.Cut(rest, text)
		if !ok {
			t.Errorf("lacks %q after what came before, in\n%s", text, out)
			return
		}
		rest = after
	}
}

func TestCadaver(t *testing.T) {
	t.Parallel()
	program(t, "cadaver")
	b := start(t, common)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "one.txt"), "one\n")
	write(t, filepath.Join(dir, "zwei ü&.txt"), "two\n")
	out := b.cadaver(t, "alice", dir,
		"mkcol shelf",
		"cd shelf",
		"put one.txt",
		`put "zwei ü&.txt"`,
		"ls",
		"copy one.txt copy.txt",
		"move copy.txt moved.txt",
		"cat moved.txt",
		"get moved.txt back.txt",
		"propset moved.txt colour red",
		"propget moved.txt colour",
		"propnames moved.txt",
		"propdel moved.txt colour",
		"lock moved.txt",
		"discover moved.txt",
		"showlocks",
		"put one.txt moved.txt",
		"unlock moved.txt",
		"delete moved.txt",
		"ls",
		"cd ..",
		"copy shelf shelf2",
		"rmcol shelf",
		"ls")
	has(t, out, "Creating `shelf': succeeded", "Uploading one.txt", "succeeded", "succeeded", "one.txt", "zwei ü&.txt",
		"Copying", "succeeded", "Moving", "succeeded", "one\n", "Downloading", "succeeded", "Setting property on `moved.txt': succeeded", "red",
		"Locking", "succeeded", "Scope: exclusive", "Uploading", "succeeded", "Unlocking", "succeeded", "Deleting `moved.txt': succeeded",
		"Copying", "succeeded", "Deleting collection `shelf': succeeded", "shelf2")
	if strings.Contains(out, "failed") {
		t.Errorf("something failed:\n%s", out)
	}
	if got := read(t, filepath.Join(dir, "back.txt")); got != "one\n" {
		t.Errorf("got %q", got)
	}
	if got := read(t, b.disk("shelf2/zwei ü&.txt")); got != "two\n" {
		t.Errorf("on disk: %q", got)
	}
	b.sound()
}

// Two users lock each other out, each with a client of their own; a restart in between changes nothing.
func TestTwoUsersLock(t *testing.T) {
	t.Parallel()
	program(t, "cadaver")
	program(t, "curl")
	b := start(t, common)
	dir := t.TempDir()
	mine := write(t, filepath.Join(dir, "mine"), "mine\n")
	code := func(user, want string, args ...string) {
		t.Helper()
		if got := b.curl(t, user, append(status, args...)...); got != want {
			t.Errorf("%s: curl %s: got %s, want %s", user, strings.Join(args, " "), got, want)
		}
	}
	at := b.url("", "/docs/plan")
	code("bob", "201", "-T", mine, at)
	// cadaver gives its locks up when it quits; killed by the end of its input it does not.
	home := t.TempDir()
	write(t, filepath.Join(home, ".netrc"), "machine 127.0.0.1\nlogin alice\npassword "+password("alice")+"\n")
	out := command{dir: dir, env: []string{"HOME=" + home}, stdin: "lock plan\n! kill -9 $PPID\n"}
	said, _ := out.try(t, program(t, "cadaver"), b.url("", "/docs/"))
	code("bob", "423", "-T", mine, at)
	code("bob", "423", "-X", "DELETE", at)
	code("bob", "423", "-X", "MOVE", "-H", "Destination: "+at+"2", at)
	code("bob", "423", "-X", "DELETE", b.url("", "/docs/plan"))
	code("alice", "423", "-T", mine, at) // without the token the owner is as locked out as everybody
	code("bob", "200", at)
	has(t, b.cadaver(t, "bob", dir, "lock plan", "put mine plan"), "Locking", "failed", "Uploading", "failed")
	b.kill()
	b.serve()
	code("bob", "423", "-T", mine, at)
	has(t, b.cadaver(t, "bob", dir, "discover plan"), "plan")

	// Bob knows the token and still cannot use it.
	r := b.as("alice").do("PROPFIND", "/docs/plan", `<propfind xmlns="DAV:"><prop><lockdiscovery/></prop></propfind>`, "Depth: 0")
	_, rest, _ := strings.Cut(r.body, "<D:locktoken><D:href>")
	token, _, ok := strings.Cut(rest, "<")
	if !ok {
		t.Fatalf("alice does not see her lock (cadaver said %s): %s", said, r.body)
	}
	if r := b.as("bob").do("PROPFIND", "/docs/plan", `<propfind xmlns="DAV:"><prop><lockdiscovery/></prop></propfind>`, "Depth: 0"); strings.Contains(r.body, token) {
		t.Error("bob sees alice's token")
	}
	code("bob", "403", "-X", "UNLOCK", "-H", "Lock-Token: <"+token+">", at)
	if got := b.as("bob").do("PUT", "/docs/plan", "x", "If: (<"+token+">)").status; got != 423 && got != 412 {
		t.Errorf("bob writes with alice's token: %d", got)
	}
	code("alice", "204", "-T", mine, "-H", "If: (<"+token+">)", at)
	code("alice", "204", "-X", "UNLOCK", "-H", "Lock-Token: <"+token+">", at)
	code("bob", "204", "-T", mine, at)
	b.sound()
}
