package mounttest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// testPurge: Purge takes a whole tree and nothing beside it, by the backend itself and by hand.
func testPurge(t *testing.T, b mounts.Backend) {
	ctx := t.Context()
	Script(t, b, `
		mkdir keep   -> ok
		put keep/f 1 -> ok
		put d2 1     -> ok
	`)
	for way, m := range map[string]mounts.Backend{"itself": b, "by hand": plain{b}} {
		t.Run(way, func(t *testing.T) {
			deep := "d" + strings.Repeat("/e", 80)
			if err := mounts.MkdirAll(ctx, b, deep); err != nil {
				t.Fatal(err)
			}
			many := 40
			if way == "by hand" {
				many = 1010 // more than are listed at once
			}
			for i := range many {
				if _, err := mounts.WriteFile(ctx, b, fmt.Sprintf("d/e/file-%d", i), nil); err != nil {
					t.Fatal(err)
				}
			}
			Script(t, b, `
				put d/f 1                  -> ok
				mkdir d/empty              -> ok
				mkdir d/e/.cellgate        -> ok
				put "d/e/.cellgate/a b" 1  -> ok
			`)
			if _, err := mounts.WriteFile(ctx, b, deep+"/f", []byte("x")); err != nil {
				t.Fatal(err)
			}
			if s, ok := mounts.As[mounts.Symlinker](b); ok && b.Features().Symlink != mounts.Refused {
				for name, target := range map[string]string{"d/dir": "../keep", "d/e/file": "../../keep/f", "link": "keep"} {
					if err := s.Symlink(ctx, target, name); err != nil {
						t.Fatal(err)
					}
				}
				if err := mounts.Purge(ctx, m, "link"); err != nil {
					t.Errorf("Purge of a link: %v", err)
				}
				Script(t, b, `stat link -> ! does not exist`)
			}
			ended, cancel := context.WithCancel(ctx)
			cancel()
			if err := mounts.Purge(ended, m, "d"); fault.KindOf(err) != fault.Canceled {
				t.Errorf("Purge with an ended context: %v; want Canceled", err)
			}
			Script(t, b, `cat d/f -> "1"`)
			for _, name := range []string{"d/f", "d", "d", "none/none"} { // what is missing is fine
				if err := mounts.Purge(ctx, m, name); err != nil {
					t.Errorf("Purge(%s): %v", name, err)
				}
				if _, err := b.Stat(ctx, name); fault.KindOf(err) != fault.NotExist {
					t.Errorf("Stat(%s) after Purge: %v", name, err)
				}
			}
			if err := mounts.Purge(ctx, m, "."); err == nil || fault.KindOf(err) != fault.Invalid {
				t.Errorf("Purge of the root: %v; want Invalid", err)
			}
			Script(t, b, `
				ls .       -> d2 keep/
				cat keep/f -> "1"
			`)
		})
	}
	if c, ok := mounts.As[mounts.Purger](b); ok {
		for _, name := range []string{"none", "none/none"} {
			if err := c.Purge(ctx, name); err == nil || fault.KindOf(err) != fault.NotExist {
				t.Errorf("Purge(%s): %v; want NotExist", name, err)
			}
		}
	}
}

// plain hides the capabilities of a backend.
type plain struct{ mounts.Backend }

// testAreas: every name has one of the Areas, and without nested file systems there is one for all.
func testAreas(t *testing.T, b mounts.Backend) {
	areas := []string{mounts.Area}
	if p, ok := mounts.As[mounts.Partitioned](b); ok {
		areas = p.Areas()
	}
	if areas[0] != mounts.Area {
		t.Errorf("Areas() = %q, want that of the root first", areas)
	}
	for _, name := range []string{".", "f", "d/f", "none/none/none", mounts.Area, mounts.Area + "/tmp/f"} {
		if area := mounts.AreaOf(b, name); area != mounts.Area || !slices.Contains(areas, area) {
			t.Errorf("AreaOf(%s) = %q, want %q, which is in %q", name, area, mounts.Area, areas)
		}
	}
}
