package sftp

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestOwn: a name is known from the end of its last publication for a while, and not while any other change of it may be under way.
func TestOwn(t *testing.T) {
	large := &attrs{flags: hasSize | hasTimes, size: 2 * fanOut, mtime: 7, atime: 9}
	for _, c := range []struct {
		name string
		do   func(o *own)
		want bool
	}{
		{"published", func(o *own) { o.change("f")(large) }, true},
		{"another", func(o *own) { o.change("g")(large) }, false},
		{"small", func(o *own) { o.change("f")(&attrs{flags: hasSize, size: 10}) }, false},
		{"failed", func(o *own) { o.change("f")(nil) }, false},
		{"after a failure", func(o *own) { o.change("f")(nil); o.change("f")(large) }, false},
		{"long after a failure", func(o *own) { o.change("f")(nil); time.Sleep(ownAge + 1); o.change("f")(large) }, true},
		{"old", func(o *own) { o.change("f")(large); time.Sleep(ownAge + 1) }, false},
		{"being replaced", func(o *own) { o.change("f")(large); o.change("f") }, false},
		{"inside another", func(o *own) { end := o.change("f"); o.change("f")(large); _ = end }, false},
		{"after two", func(o *own) { end := o.change("f"); o.change("f")(large); end(large) }, true},
		{"being moved", func(o *own) { o.change("f")(large); o.move() }, false},
		{"during a move", func(o *own) { o.move(); o.change("f")(large) }, false},
		{"after a move", func(o *own) { o.move()(nil); o.change("f")(large) }, true},
		{"after a move that failed", func(o *own) { o.move()(errShort); o.change("f")(large) }, false},
		{"moved", func(o *own) { o.change("f")(large); o.move()(nil) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var o own
				c.do(&o)
				got := o.last("f")
				if (got != nil) != c.want {
					t.Errorf("known: %v, want %v", got != nil, c.want)
				}
				if got != nil && got.attrs != large.still() {
					t.Errorf("known as %v, want %v", got.attrs, large.still())
				}
			})
		})
	}
}

// TestOwnForgets: what nothing is known of any more takes no memory.
func TestOwnForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o own
		for i := range 2 * maxOwn {
			o.change(string(rune('a' + i)))(&attrs{flags: hasSize, size: 2 * fanOut})
		}
		time.Sleep(ownAge + 1)
		o.change("f")(nil)
		if n := len(o.names); n != 1 {
			t.Errorf("%d names, want 1", n)
		}
	})
}

// TestAhead: one stream fills its channels, and many share what there is.
func TestAhead(t *testing.T) {
	for _, c := range []struct{ streams, lanes, want int }{
		{0, 1, inLane}, {1, 2, 2 * inLane}, {1, 5, 4 * inLane}, {2, 5, 4 * inLane}, {5, 5, inAll / 5}, {8, 2, inAll / 8}, {8, 1, inLane}, {100, 2, inLane / 2},
	} {
		if got := (&pool{streams: c.streams}).ahead(c.lanes); got != c.want {
			t.Errorf("%d streams, %d lanes: %d, want %d", c.streams, c.lanes, got, c.want)
		}
	}
}
