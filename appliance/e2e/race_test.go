package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
)

// D10: MOVE and COPY of what is missing or into themselves are refused, and touch neither the target nor anything else.
func TestD10MoveAndCopy(t *testing.T) {
	t.Parallel()
	b := start(t, common)
	alice := b.as("alice")
	alice.want("PUT", "/docs/target", "target", 201)
	for _, d := range []string{"/docs/d", "/docs/d/e", "/docs/d/e/f", "/docs/full"} {
		alice.want("MKCOL", d, "", 201)
	}
	alice.want("PUT", "/docs/d/e/f/leaf", "leaf", 201)
	alice.want("PUT", "/docs/full/keep", "keep", 201)
	before := digestsOf(t, b.files)
	for _, method := range []string{"MOVE", "COPY"} {
		for _, c := range []struct {
			from, to string
			want     int
			header   string
		}{
			{"/docs/missing", "/docs/target", 404, ""},
			{"/docs/missing", "/docs/target", 404, "Overwrite: T"},
			{"/docs/missing", "/docs/full", 404, "Overwrite: T"},
			{"/docs/missing", "/docs/none", 404, ""},
			{"/docs/d/missing", "/docs/full/keep", 404, ""},
			{"/docs/target/below", "/docs/full/keep", 409, ""}, // a file holds nothing
			{"/docs/d", "/docs/d/e/f/g", 409, ""},
			{"/docs/d", "/docs/d/new", 409, ""},
			{"/docs/d", "/docs/d/e", 409, "Overwrite: T"},
			{"/docs/d/e/f", "/docs/d", 409, "Overwrite: T"},
			{"/docs/d", "/docs/d", 403, ""},
			{"/docs/target", "/docs/none/below", 409, ""},
			{"/docs/target", "/docs/target/below", 409, ""},
			{"/docs/target", "/docs/full", 412, "Overwrite: F"},
		} {
			header := []string{alice.to(c.to)}
			if c.header != "" {
				header = append(header, c.header)
			}
			if r := alice.do(method, c.from, "", header...); r.status != c.want {
				t.Errorf("%s %s to %s %s: got %d, want %d", method, c.from, c.to, c.header, r.status, c.want)
			}
		}
	}
	sameTree(t, "after all that", digestsOf(t, b.files), before)
	if nodes, _, err := alice.list("/docs", 1); err != nil || len(nodes) != 4 {
		t.Errorf("nodes %v, %v", nodes, err)
	}
	b.sound()
}

// D14: of many who race with the same condition exactly one wins, and the file is the winner's.
func TestD14Races(t *testing.T) {
	t.Parallel()
	b := start(t, strings.Replace(common, "path: FILES}", "path: FILES}, durability: written", 1))
	alice, bob := b.as("alice"), b.as("bob")
	rounds, racers := 100, 50
	if testing.Short() {
		rounds = 10
	}
	for round := range rounds {
		path := fmt.Sprintf("/docs/f%d", round)
		condition := "If-None-Match: *"
		if round%2 == 1 {
			condition = "If-Match: " + alice.want("PUT", path, "before", 201).header.Get("Etag")
		}
		var wins atomic.Int32
		var winner atomic.Value
		each(racers, func(i int) {
			c := alice
			if i%2 == 1 {
				c = bob
			}
			mine := fmt.Sprintf("%d of round %d", i, round)
			r, err := c.try(context.Background(), "PUT", path, strings.NewReader(mine), condition)
			switch {
			case err != nil:
				t.Errorf("round %d: %v", round, err)
			case r.ok():
				wins.Add(1)
				winner.Store(mine)
			case r.status != 412 && r.status != 409:
				t.Errorf("round %d: %d %s", round, r.status, r.body)
			}
		})
		if n := wins.Load(); n != 1 {
			t.Errorf("round %d with %s: %d winners", round, condition, n)
		}
		if got := alice.do("GET", path, "").body; got != winner.Load() {
			t.Errorf("round %d: the file is %q, the winner wrote %q", round, got, winner.Load())
		}
	}
	t.Logf("%d rounds of %d", rounds, racers)
	b.sound()
}
