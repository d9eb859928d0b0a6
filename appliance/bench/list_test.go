package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// named asks for what file managers and sync clients ask for.
const named = `<?xml version="1.0"?><d:propfind xmlns:d="DAV:"><d:prop><d:displayname/><d:getlastmodified/><d:getcontentlength/>` +
	`<d:resourcetype/><d:getetag/></d:prop></d:propfind>`

const allprop = `<?xml version="1.0"?><d:propfind xmlns:d="DAV:"><d:allprop/></d:propfind>`

// fill makes a folder of n small files.
func fill(s side, name string, n int) error {
	dir, err := folder(s.files, name)
	if err != nil {
		return err
	}
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%06d.txt", i)), []byte("content"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkPropfind lists a folder at Depth 1.
func BenchmarkPropfind(b *testing.B) {
	bench.open(b)
	n, times := bench.scale.Entries, bench.scale.Lists
	for _, kind := range []struct{ name, body string }{{"allprop", allprop}, {"named", named}} {
		b.Run(kind.name, func(b *testing.B) {
			measure{
				name: fmt.Sprintf("PROPFIND of %d, %s", n, kind.name), sides: everyone, warm: true, metrics: []metric{total, first, cpuEach, peak},
				goals: map[string][]goal{
					total.name:   {{no: "5", ratio: nginx, most: 1}},
					first.name:   {{no: "5", most: 5}},
					cpuEach.name: {{no: "5", most: 40}, {no: "5 (40 of 37 ms)", ratio: nginx, most: 1.08}},
				},
				prepare: func(s side) error { return fill(s, "list", n) },
				run: func(s side, _ int) (units float64, first time.Duration, err error) {
					err = each(s, 1, times, func(c *conn, _ int) error {
						at, size, err := list(c, "/list/", kind.body)
						first += at / time.Duration(times)
						if err == nil && size < int64(n)*100 {
							err = fmt.Errorf("%s: a listing of %d bytes", s.name, size)
						}
						return err
					})
					return float64(times), first, err
				},
				cleanup: func(s side) error { return os.RemoveAll(filepath.Join(s.files, "list")) },
			}.do(b)
		})
	}
}
