package mounttest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"

	"cellgate/mounts"
)

// Bench measures the backend that open returns, with small and large files.
func Bench(b *testing.B, open func(b *testing.B) mounts.Backend) {
	m := open(b)
	defer m.Close()
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	must(mounts.MkdirAll(ctx, m, "d/e"))
	for _, size := range []int{4 << 10, 16 << 20} {
		content := bytes.Repeat([]byte("x"), size)
		label := fmt.Sprintf("%dKiB", size>>10)
		b.Run("Put/"+label, func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				_, err := mounts.WriteFile(ctx, m, "d/e/f", content)
				must(err)
			}
		})
		_, err := mounts.WriteFile(ctx, m, "d/e/f", content)
		must(err)
		buf := make([]byte, 256<<10)
		b.Run("Open/"+label, func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				r, err := m.Open(ctx, "d/e/f", 0, -1)
				must(err)
				_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
				must(err)
				must(r.Close())
			}
		})
	}
	b.Run("Put/new", func(b *testing.B) {
		must(m.Mkdir(ctx, "new"))
		content, i := make([]byte, 4<<10), 0
		for b.Loop() {
			i++
			_, err := mounts.WriteFile(ctx, m, fmt.Sprintf("new/%d", i), content)
			must(err)
		}
		for ; i > 0; i-- {
			must(m.Remove(ctx, fmt.Sprintf("new/%d", i)))
		}
		must(m.Remove(ctx, "new"))
	})
	b.Run("Stat", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, err := m.Stat(ctx, "d/e/f")
			must(err)
		}
	})
	b.Run("Rename", func(b *testing.B) {
		names := [2]string{"d/e/f", "d/g"}
		for b.Loop() {
			must(m.Rename(ctx, names[0], names[1]))
			names[0], names[1] = names[1], names[0]
		}
		if names[0] != "d/e/f" {
			must(m.Rename(ctx, names[0], names[1]))
		}
	})
	const many = 10_000
	must(m.Mkdir(ctx, "many"))
	for i := range many {
		_, err := mounts.WriteFile(ctx, m, fmt.Sprintf("many/file-%05d.txt", i), nil)
		must(err)
	}
	b.Run("List/10000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			for _, err := range m.List(ctx, "many") {
				must(err)
				n++
			}
			if n != many {
				b.Fatalf("listed %d of %d", n, many)
			}
		}
	})
}
