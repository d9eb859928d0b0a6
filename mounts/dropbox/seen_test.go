package dropbox_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/dropbox"
	"cellgate/mounts/dropbox/dropboxtest"
	"cellgate/mounts/mounttest"
)

// watching watches b; the returned function fails unless the next changes are those.
func watching(t *testing.T, s *dropboxtest.Server, b mounts.Backend) (expect func(names ...string)) {
	t.Helper()
	seen, ended := make(chan string, 1000), make(chan struct{})
	before := s.Count("files/list_folder/longpoll")
	go func() {
		defer close(ended)
		for c, err := range b.(mounts.Watcher).Watch(t.Context()) {
			if err != nil {
				c.Name = err.Error()
			}
			seen <- c.Name
		}
	}()
	t.Cleanup(func() { <-ended }) // its context ends before
	for until := time.Now().Add(20 * time.Second); s.Count("files/list_folder/longpoll") == before; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it does not watch")
		}
	}
	return func(names ...string) {
		t.Helper()
		for _, name := range names {
			select {
			case got := <-seen:
				if got != name {
					t.Fatalf("seen %q, want %q", got, name)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%q was not seen", name)
			}
		}
	}
}

// TestWatchOwn: a watch tells of others only, also where they change what we made.
func TestWatchOwn(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	s.Mkdir("/Root")
	b := open(t, config(s, "path", "root"))
	expect := watching(t, s, b)
	marks := 0
	mark := func() {
		t.Helper()
		marks++
		s.Put(fmt.Sprintf("/Root/mark%d", marks), "")
		expect(fmt.Sprintf("mark%d", marks))
	}
	for _, line := range []string{
		"mkdir d -> ok", "put d/f 1 -> ok", "put d/f 2 -> ok", "cp d/f d/g -> ok", "mv d/g d/h -> ok", "mv d/h d/f -> ok", "mv d/f d/F -> ok", "rm d/F -> ok", "rm d -> ok",
	} {
		mounttest.Script(t, b, line)
		mark()
	}
	// What others do to what we made.
	mounttest.Script(t, b, "put f 1 -> ok\nput g 1 -> ok\nmkdir d -> ok")
	s.Put("/Root/f", "theirs")
	expect("f")
	s.Put("/Root/f", "1")
	expect("f")
	s.Remove("/Root/g")
	expect("g")
	s.Put("/Root/d/x", "1")
	expect("d/x")
	s.Remove("/Root/d/x")
	expect("d/x")
	s.Remove("/Root/d")
	expect("d")
	mounttest.Script(t, b, "rm f -> ok")
	s.Put("/Root/f", "1")
	expect("f")
	s.Remove("/Root/f")
	expect("f")
	mark()
}

// TestWatchOwnReturns: what we made or removed, and others changed and changed back before the watch looked, is told when we saw it in between.
func TestWatchOwnReturns(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	mounttest.Script(t, b, "put f 1 -> ok\nput g 1 -> ok\nput d 1 -> ok\nrm f -> ok\nrm g -> ok")
	expect := watching(t, s, b)
	stall := dropboxtest.Fault{Route: "files/list_folder/continue", Times: 2, Status: 503} // so that several changes come at once
	s.Inject(stall)
	s.Put("/f", "theirs")
	mounttest.Script(t, b, `stat f -> file "f" 6`)
	s.Remove("/f")
	expect("f")
}

// TestRemoveByRev: a file costs one request, whatever took its place is seen, and no folder goes that holds something.
func TestRemoveByRev(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	b := open(t, config(s))
	put := func() { t.Helper(); mounttest.Script(t, b, "put f 1 -> ok") }
	remove := func(most int) error {
		t.Helper()
		s.Reset()
		err := b.Remove(t.Context(), "f")
		if n := s.Total(); n > most {
			t.Errorf("Remove took %d requests, want %d at most: %v", n, most, s.Counts())
		}
		return err
	}
	for what, know := range map[string]func(){
		"put": put,
		"listed": func() {
			s.Put("/f", "1")
			if _, err := names(t.Context(), b, "."); err != nil {
				t.Error(err)
			}
		},
		"seen":   func() { s.Put("/f", "1"); mounttest.Script(t, b, `stat f -> file "f" 1`) },
		"read":   func() { s.Put("/f", "1"); mounttest.Script(t, b, `cat f -> "1"`) },
		"moved":  func() { mounttest.Script(t, b, "put g 1 -> ok\nmv g f -> ok") },
		"copied": func() { mounttest.Script(t, b, "put g 1 -> ok\ncp g f -> ok") },
	} {
		know()
		if err := remove(1); err != nil {
			t.Errorf("what was %s: %v", what, err)
		}
		mounttest.Script(t, b, "stat f -> ! does not exist")
	}
	put()
	s.Put("/f", "theirs")
	if err := remove(3); err != nil {
		t.Error(err)
	}
	put()
	s.Remove("/f")
	wantKind(t, "what others removed", remove(1), fault.NotExist)
	put()
	s.Remove("/f")
	s.Put("/f/inside", "1")
	wantKind(t, "a folder in its place", remove(3), fault.NotEmpty)
	if _, ok := s.Read("/f/inside"); !ok {
		t.Fatal("what lay in the folder is gone")
	}
	s.Remove("/f/inside")
	if err := remove(2); err != nil {
		t.Error(err)
	}
	mounttest.Script(t, b, "mkdir f -> ok")
	s.Remove("/f")
	s.Put("/f", "1")
	if err := remove(3); err != nil {
		t.Errorf("a file in a folder's place: %v", err)
	}
	put()
	s.Inject(dropboxtest.Fault{Route: "files/delete_v2", Times: -1, Status: 409, Tags: "path_write/no_write_permission"})
	wantKind(t, "a file that may not be removed", remove(2), fault.Denied)
	s.Heal()
	mounttest.Script(t, b, `cat f -> "1"`)
}

// TestOpenError: what is wrong with the whole account is said without a path.
func TestOpenError(t *testing.T) {
	s := dropboxtest.Start(t, dropboxtest.Config{})
	s.Revoke()
	cfg := config(s)
	for _, path := range []string{"", "/f"} {
		cfg.Options["path"] = path
		_, err := dropbox.Driver().Open(t.Context(), cfg)
		wantKind(t, "Open", err, fault.Unauthenticated)
		if err != nil && (strings.Contains(err.Error(), " .") || strings.Count(err.Error(), "mounts/dropbox.Open") != 1) {
			t.Errorf("the message is %q", err)
		}
	}
}
