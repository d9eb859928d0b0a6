package breaker_test

import (
	"context"
	"io"
	"testing"

	"cellgate/mounts"
	"cellgate/mounts/breaker"
	"cellgate/mounts/mem"
)

// BenchmarkRead is a stream through the bulkhead, from a backend that costs nothing but the copy.
func BenchmarkRead(b *testing.B) {
	const size = 64 << 20
	next := mem.New(mem.Config{})
	if _, err := mounts.WriteFile(b.Context(), next, "f", make([]byte, size)); err != nil {
		b.Fatal(err)
	}
	guarded := breaker.New(next, breaker.Config{})
	defer guarded.Close()
	for name, backend := range map[string]mounts.Backend{"bare": next, "guarded": guarded} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 256<<10)
			b.SetBytes(size)
			for b.Loop() {
				r, err := backend.Open(context.Background(), "f", 0, -1)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
				if err != nil || n != size {
					b.Fatal(n, err)
				}
				r.Close()
			}
		})
	}
}
