package mounts_test

import (
	"testing"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/flaky"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
)

// plain hides the capabilities of a backend.
type plain struct{ mounts.Backend }

// TestPurgeByHand: failures end it, and a folder that never gets empty does not keep it running.
func TestPurgeByHand(t *testing.T) {
	b := mem.New(mem.Config{})
	mounttest.Script(t, b, `
		mkdir d      -> ok
		mkdir d/e    -> ok
		put d/e/f 1  -> ok
	`)
	for _, test := range []struct {
		name string
		rule flaky.Rule
		want fault.Kind
	}{
		{"listing", flaky.Rule{Op: "List", Path: "d/e", Fault: fault.Unavailable}, fault.Unavailable},
		{"removing", flaky.Rule{Op: "Remove", Path: "d/e/f", Fault: fault.Denied}, fault.Denied},
		{"empty listing", flaky.Rule{Op: "List", Path: "d/e", Short: true}, fault.NotEmpty},
		{"ghosts", flaky.Rule{Op: "Remove", Path: "d/e/f", Fault: fault.NotExist}, fault.NotEmpty},
	} {
		f := flaky.New(b, test.rule)
		if err := mounts.Purge(t.Context(), plain{f}, "d"); err == nil || fault.KindOf(err) != test.want {
			t.Errorf("%s: %v; want %v", test.name, err, test.want)
		}
	}
	mounttest.Script(t, b, `cat d/e/f -> "1"`)
	f := flaky.New(b, flaky.Rule{Op: "Purge", Fault: fault.Unsupported})
	if err := mounts.Purge(t.Context(), f, "d"); err != nil || f.Calls("Purge") != 1 || f.Calls("Remove") != 5 {
		t.Errorf("Purge where the backend cannot: %v after %d and %d calls; want 1 and 5", err, f.Calls("Purge"), f.Calls("Remove"))
	}
	mounttest.Script(t, b, `ls . ->`)
}

// parted is a backend with a file system mounted on "a".
type parted struct{ mounts.Backend }

func (parted) Area(name string) string {
	if dir, _ := mounts.Split(name); mounts.Below(dir, "a") {
		return "a/" + mounts.Area
	}
	return mounts.Area
}

func (parted) Areas() []string { return []string{mounts.Area, "a/" + mounts.Area} }

func TestAreaOf(t *testing.T) {
	b := parted{mem.New(mem.Config{})}
	for _, test := range []struct {
		b          mounts.Backend
		name, want string
	}{
		{b, "a/f", "a/.cellgate"}, {b, "a", ".cellgate"}, {mounts.Contain(b, nil), "a/f", "a/.cellgate"},
		{flaky.New(b, flaky.Rule{Stall: true}), "a/f", "a/.cellgate"}, {b.Backend, "a/f", ".cellgate"},
	} {
		if got := mounts.AreaOf(test.b, test.name); got != test.want {
			t.Errorf("AreaOf(%T, %s) = %q, want %q", test.b, test.name, got, test.want)
		}
	}
}

func TestInArea(t *testing.T) {
	for name, want := range map[string]bool{
		".": false, ".cellgate": true, ".cellgate/tmp/x": true, "a/.cellgate": true, "a/b/.cellgate/x": true, "a.cellgate": false, "a.cellgate/x": false,
		".cellgates": false, ".cellgates/.cellgate": true, "a/.cellgates/x": false, ".cellgate.cellgate": false, "x.cellgate/.cellgate/y": true, "": false,
	} {
		if got := mounts.InArea(name); got != want {
			t.Errorf("InArea(%q) = %v, want %v", name, got, want)
		}
	}
}
