package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mem"
)

// fuse counts the calls on backends that change something and lets one of them go wrong: at call number at, blow is run instead of it, or
// after it.
type fuse struct {
	mu    sync.Mutex
	calls int
	at    int // 0 never
	after bool
	blow  func() error
	armed bool
}

func (f *fuse) arm(at int, after bool, blow func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.at, f.after, f.blow, f.armed = 0, at, after, blow, true
}

func (f *fuse) disarm() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = false
	return f.calls
}

func (f *fuse) wire(b mounts.Backend) mounts.Backend {
	return mounts.Around(b, mounts.Hooks{
		Call: func(_ context.Context, op, name string, do func() error) error {
			switch op {
			case "Stat", "Open", "List", "Close", "Space":
				return do()
			}
			return f.call(do)
		},
		File: func(_ context.Context, _ string, file mounts.RandomFile) mounts.RandomFile { return fusedFile{file, f} },
	})
}

func (f *fuse) call(do func() error) error {
	f.mu.Lock()
	hit := false
	if f.armed {
		f.calls++
		hit = f.calls == f.at
	}
	after, blow := f.after, f.blow
	f.mu.Unlock()
	if !hit {
		return do()
	}
	if after {
		_ = do()
	}
	return blow()
}

type fusedFile struct {
	mounts.RandomFile
	f *fuse
}

func (f fusedFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.f.call(func() error { n, err = f.RandomFile.WriteAt(p, off); return err })
	return n, err
}

func (f fusedFile) Sync() error { return f.f.call(f.RandomFile.Sync) }

// deeds are operations with what may be seen before and after them. Nothing else may ever be seen, whatever fails in between.
type deed struct {
	name          string
	setup         string
	do            func(ctx context.Context, s *gateway.Session) error
	before, after string
	deny          [3]string // what bob may not see: the place before, and what that hides before and after
}

var deeds = []deed{
	{"create", ``, put("/docs/a", "new"), ``, `/docs/a=new`, [3]string{}},
	{"replace", `alice: put /docs/a old -> ok`, put("/docs/a", "new"), `/docs/a=old`, `/docs/a=new`, [3]string{"docs:/a", "/docs/a", "/docs/a"}},
	{"mkdir", ``, func(ctx context.Context, s *gateway.Session) error { return s.Mkdir(ctx, gatewaytest.Path("/docs/d")) }, ``, `/docs/d/`, [3]string{}},
	{"remove", `alice: put /docs/a old -> ok`, remove("/docs/a"), `/docs/a=old`, ``, [3]string{"docs:/a", "/docs/a", "/docs/a"}},
	{"remove tree", tree, remove("/docs/d"), treeNow, ``, [3]string{"docs:/d/e", "/docs/d/e", "/docs/d/e"}},
	{"move", tree, transfer("mv", "/docs/d", "/docs/m"), treeNow, strings.ReplaceAll(treeNow, "/d/", "/m/"),
		[3]string{"docs:/d/e", "/docs/d/e", "/docs/m/e"}},
	{"move over file", "alice: put /docs/a old -> ok\nalice: put /docs/b new -> ok", transfer("mv", "/docs/b", "/docs/a"), `/docs/a=old /docs/b=new`, `/docs/a=new`,
		[3]string{"docs:/b", "/docs/b", "/docs/a"}},
	{"move over folder", tree + "\nalice: mkdir /docs/o -> ok\nalice: put /docs/o/x x -> ok", transfer("mv", "/docs/d", "/docs/o"),
		treeNow + ` /docs/o/ /docs/o/x=x`, strings.ReplaceAll(treeNow, "/d/", "/o/"), [3]string{"docs:/d/e", "/docs/d/e", "/docs/o/e"}},
	{"move over something denied", tree + "\nalice: put /docs/s secret -> ok", transfer("mv", "/docs/d/a", "/docs/s"),
		treeNow + ` /docs/s=secret`, strings.ReplaceAll(treeNow, "/docs/d/a=A", "/docs/s=A"), [3]string{"docs:/s", "/docs/s", "/docs/s"}},
	{"copy", tree, transfer("cp", "/docs/d", "/docs/e"), treeNow, treeNow + " " + strings.ReplaceAll(treeNow, "/d/", "/e/"),
		[3]string{"docs:/d/e", "/docs/d/e", "/docs/d/e"}},
	{"copy over folder", tree + "\nalice: mkdir /docs/o -> ok\nalice: put /docs/o/x x -> ok", transfer("cp", "/docs/d", "/docs/o"),
		treeNow + ` /docs/o/ /docs/o/x=x`, treeNow + " " + strings.ReplaceAll(treeNow, "/d/", "/o/"), [3]string{}},
	{"move to another datasource", "alice: mkdir /pair/one/d -> ok\nalice: put /pair/one/d/a A -> ok", transfer("mv", "/pair/one/d", "/pair/two/d"),
		`/pair/one/d/ /pair/one/d/a=A`, `/pair/two/d/ /pair/two/d/a=A`, [3]string{"pair:/one/d", "/pair/one/d", "/pair/two/d"}},
}

const (
	tree    = "alice: mkdir /docs/d -> ok\nalice: put /docs/d/a A -> ok\nalice: mkdir /docs/d/e -> ok\nalice: put /docs/d/e/b B -> ok\nalice: prop /docs/d/e/b colour red -> ok"
	treeNow = `/docs/d/ /docs/d/a=A /docs/d/e/ /docs/d/e/b=B,red`
)

func put(path, content string) func(context.Context, *gateway.Session) error {
	return func(ctx context.Context, s *gateway.Session) error {
		return gatewaytest.Write(ctx, s, gatewaytest.Path(path), []byte(content), gateway.Cond{})
	}
}

func remove(path string) func(context.Context, *gateway.Session) error {
	return func(ctx context.Context, s *gateway.Session) error {
		return s.Remove(ctx, gatewaytest.Path(path), gateway.RemoveOptions{Recursive: true})
	}
}

func transfer(verb, from, to string) func(context.Context, *gateway.Session) error {
	return func(ctx context.Context, s *gateway.Session) error {
		f := s.Rename
		if verb == "cp" {
			f = s.Copy
		}
		_, err := f(ctx, gatewaytest.Path(from), gatewaytest.Path(to), gateway.MoveOptions{Overwrite: true})
		return err
	}
}

// seen is everything a user can see, in order.
func seen(t *testing.T, s *gateway.Session) string {
	t.Helper()
	var words []string
	var look func(p gateway.Path)
	look = func(p gateway.Path) {
		for i, err := range s.List(t.Context(), p) {
			if fault.KindOf(err) == fault.NotExist && err != nil {
				return // a drop box
			}
			if err != nil {
				t.Fatal(err)
			}
			if i.Dir {
				if i.Path.Depth() > 2 || i.Path.Depth() == 2 && p.String() != "/pair" {
					words = append(words, i.Path.String()+"/")
				}
				look(i.Path)
				continue
			}
			content, err := gatewaytest.Read(t.Context(), s, i.Path)
			if err != nil {
				t.Fatal(err)
			}
			word := i.Path.String() + "=" + string(content)
			props, err := s.Props(t.Context(), i.Path)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range props {
				word += "," + string(p.Value)
			}
			words = append(words, word)
		}
	}
	look(gateway.Path{})
	slices.Sort(words)
	return strings.Join(words, " ")
}

// judge compares what alice and bob see with what may be: the state before the operation, when that may be, or the one after it.
func (d deed) judge(t *testing.T, h *gatewaytest.House, what string, before bool) {
	t.Helper()
	alice, bob := seen(t, h.As("alice")), seen(t, h.As("bob"))
	if alice == sorted(d.after) && bob == sorted(hide(d.after, d.deny[2])) {
		return
	}
	if before && alice == sorted(d.before) && bob == sorted(hide(d.before, d.deny[1])) {
		return
	}
	t.Errorf("%s: alice sees %q, bob %q", what, alice, bob)
}

// hide leaves out what lies at a path and below it.
func hide(state, path string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(state), func(word string) bool { return path != "" && strings.HasPrefix(word, path) }), " ")
}

// begin sets the scene.
func (d deed) begin(t *testing.T, h *gatewaytest.House) {
	t.Helper()
	h.Tell(t, d.setup)
	if d.deny[0] != "" {
		h.Grant("user:bob", d.deny[0], "deny")
	}
}

func sorted(s string) string {
	words := strings.Fields(s)
	slices.Sort(words)
	return strings.Join(words, " ")
}

// kinds are the sorts of backend that the core treats differently.
var kinds = []struct {
	name  string
	steps bool // to move or delete a folder is many
	wrap  func(mounts.Backend) mounts.Backend
}{
	{"near", false, func(b mounts.Backend) mounts.Backend { return b }},
	{"far", false, func(b mounts.Backend) mounts.Backend { return gatewaytest.Far(b, mounts.Native) }},
	{"far, rename emulated", true, func(b mounts.Backend) mounts.Backend { return gatewaytest.Far(b, mounts.Emulated) }},
}

// wired is a house whose disks have a fuse.
func wired(t *testing.T, wrap func(mounts.Backend) mounts.Backend) (*gatewaytest.House, *fuse) {
	f := new(fuse)
	disks := map[string]mounts.Backend{"disk": wrap(f.wire(mem.New(mem.Config{}))), "nas": wrap(f.wire(mem.New(mem.Config{})))}
	return gatewaytest.New(t, gatewaytest.Config{Disks: disks, Bare: true}), f
}

// sound demands that store and storage agree and that nothing is left in the gateway's area.
func sound(t *testing.T, h *gatewaytest.House) {
	t.Helper()
	if err := h.Gateway.Fsck(t.Context(), false, func(f gateway.Finding) { t.Errorf("fsck: %+v", f) }); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) { // for what goes on in the background
		var journal int
		if err := h.DB.QueryRow(t.Context(), `SELECT count(*) FROM journal`).Scan(&journal); err != nil {
			t.Fatal(err)
		}
		left := staged(t, h)
		if journal == 0 && len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d entries in the journal, left behind: %q", journal, left)
		}
	}
}

// idle waits until the journal has nothing to do.
func idle(t *testing.T, h *gatewaytest.House) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var journal int
		if err := h.DB.QueryRow(t.Context(), `SELECT count(*) FROM journal`).Scan(&journal); err != nil {
			t.Fatal(err)
		}
		if journal == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d entries stay in the journal", journal)
		}
	}
}

// staged returns what is in the gateway's areas.
func staged(t *testing.T, h *gatewaytest.House) (left []string) {
	t.Helper()
	for _, name := range []string{"disk", "nas"} {
		for _, dir := range []string{".cellgate/tmp", ".cellgate/old"} {
			for i, err := range h.Disk(name).List(t.Context(), dir) {
				if err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				left = append(left, name+": "+dir+"/"+i.Name)
			}
		}
	}
	return left
}

// TestD04CrashAtEveryStep ends the process, as it were, before and after every change on a backend. After the restart the operation is
// wholly done or not at all, and an acknowledged one is done.
func TestD04CrashAtEveryStep(t *testing.T) {
	for _, kind := range kinds {
		for _, d := range deeds {
			t.Run(d.name+" "+kind.name, func(t *testing.T) {
				t.Parallel()
				for at, steps := 1, 1; at <= steps; at++ {
					for _, after := range []bool{false, true} {
						h, f := wired(t, kind.wrap)
						d.begin(t, h)
						f.arm(at, after, func() error { runtime.Goexit(); return nil })
						acknowledged := false
						done := make(chan struct{})
						go func() {
							defer close(done)
							acknowledged = d.do(context.Background(), h.As("alice")) == nil
						}()
						<-done
						steps = max(steps, f.disarm()+1) // one more: where it does not go wrong
						h.Reopen()
						d.judge(t, h, fmt.Sprintf("crash at step %d (after %t), acknowledged %t", at, after, acknowledged), !acknowledged)
						sound(t, h)
					}
				}
			})
		}
	}
}

// TestD07FailureAtEveryStep lets every change on a backend fail once. A failed operation changed nothing, a successful one everything, and
// the next is as if nothing had been.
func TestD07FailureAtEveryStep(t *testing.T) {
	failures := []fault.Kind{fault.Unavailable, fault.NoSpace}
	for i := range len(failures) * len(kinds) {
		kind, sort := failures[i%len(failures)], kinds[i/len(failures)]
		for _, d := range deeds {
			t.Run(fmt.Sprint(d.name, " ", sort.name, " ", kind), func(t *testing.T) {
				t.Parallel()
				for at, steps := 2, 3; at <= steps; at++ {
					// Every step fails twice: not done, and done without an answer, as a rename whose folder could not be synced.
					h, f := wired(t, sort.wrap)
					d.begin(t, h)
					after := at%2 == 1
					f.arm(at/2, after, func() error { return fault.New("test", "", kind, nil) })
					err := d.do(t.Context(), h.As("alice"))
					steps = max(steps, 2*f.disarm()+3)
					if err != nil && fault.KindOf(err) != kind {
						t.Errorf("step %d: %v", at/2, err)
					}
					what := fmt.Sprintf("failure at step %d (after %t, %v)", at/2, after, err)
					if err != nil && sort.steps {
						// What is many steps may be half done; it is gone on with soon.
						idle(t, h)
					}
					d.judge(t, h, what, err != nil)
					undone := seen(t, h.As("alice")) == sorted(d.before)
					if err != nil && !after && !undone && !sort.steps {
						t.Errorf("%s: it was done all the same", what)
					}
					if err := d.do(t.Context(), h.As("alice")); err != nil && undone {
						t.Errorf("failure at step %d, then again: %v", at/2, err)
					}
					h.Reopen()
					d.judge(t, h, what+", then again", false)
					sound(t, h)
				}
			})
		}
	}
}
