package cache_test

import (
	"context"
	"io"
	"testing"

	"cellgate/mounts"
	"cellgate/mounts/cache"
	"cellgate/mounts/mem"
)

// BenchmarkStream reads a file from its beginning to its end, from a backend that costs nothing but the copy: without blocks, with blocks that
// are all missing, of a file too large to be kept, and with blocks that are all there.
func BenchmarkStream(b *testing.B) {
	const size = 64 << 20
	for _, test := range []struct {
		name string
		room int64 // of the blocks
		cold bool
	}{{"without", 0, true}, {"missing", 16 * size, true}, {"scan", size, true}, {"there", 16 * size, false}} {
		b.Run(test.name, func(b *testing.B) {
			next := unwatched{mem.New(mem.Config{})}
			if _, err := mounts.WriteFile(b.Context(), next, "f", make([]byte, size)); err != nil {
				b.Fatal(err)
			}
			c, err := cache.New(next, cache.Config{Dir: b.TempDir(), Size: test.room})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, 256<<10)
			read := func() {
				r, err := c.Open(context.Background(), "f", 0, -1)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
				if err != nil || n != size {
					b.Fatal(n, err)
				}
				r.Close()
			}
			read()
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if test.cold {
					c.Forget()
				}
				read()
			}
		})
	}
}
