package bench

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// lay puts a file of size bytes into the folder of a side, for the server to read.
func lay(s side, name string, size int64) error {
	path := filepath.Join(s.files, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for left := size; left > 0 && err == nil; left -= int64(len(block)) {
		_, err = f.Write(block[:min(left, int64(len(block)))])
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func gib(n int64) float64 { return float64(n) / (1 << 30) }

func sizeName(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%d GiB", n>>30)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// BenchmarkGetLarge reads a file in one stream and in several. Seconds per GiB in PERFORMANCE are those of another machine: what counts is
// the ratio.
func BenchmarkGetLarge(b *testing.B) {
	bench.open(b)
	size := bench.scale.Bulk
	times := int(max(1, 1<<29/size)) // a small file is read so quickly that its time says nothing
	for _, streams := range []int{1, bench.scale.Streams} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			m := measure{
				name: fmt.Sprintf("GET %s, streams %d", sizeName(size), streams), sides: everyone, warm: true, metrics: []metric{speed, perGiB, peak},
				goals: map[string][]goal{
					speed.name:  {{no: "1", ratio: nginx, least: 0.95}},
					perGiB.name: {{no: "1", ratio: nginx, most: 1.1}, {no: "18", ratio: bare, most: 1.1}},
				},
				prepare: func(s side) error { return lay(s, "large", size) },
				run: func(s side, _ int) (float64, time.Duration, error) {
					err := each(s, streams, streams*times, func(c *conn, _ int) error { return get(c, "/large", size) })
					return gib(size) * float64(streams*times), 0, err
				},
				cleanup: func(s side) error { return os.Remove(filepath.Join(s.files, "large")) },
			}
			if streams > 1 {
				m.goals[peak.name] = []goal{{no: "17", most: 64}}
			}
			m.do(b)
		})
	}
}

// BenchmarkPutLarge writes files in one stream and in several.
func BenchmarkPutLarge(b *testing.B) {
	bench.open(b)
	for _, streams := range []int{1, bench.scale.Streams} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			size := bench.scale.Bulk / int64(streams)
			m := measure{
				name: fmt.Sprintf("PUT %s, streams %d", sizeName(size), streams), sides: everyMode, warm: true, metrics: []metric{speed, perGiB, peak},
				goals: map[string][]goal{
					speed.name:  {{no: "2", ratio: nginx, least: 1}},
					perGiB.name: {{no: "2", ratio: nginx, most: 1}, {no: "18", ratio: bare, most: 1.1}},
				},
				run: func(s side, _ int) (float64, time.Duration, error) {
					err := each(s, streams, streams, func(c *conn, i int) error { return putLarge(c, fmt.Sprintf("/put%d", i), size) })
					return gib(size) * float64(streams), 0, err
				},
				cleanup: func(s side) error {
					return each(s, 1, streams, func(c *conn, i int) error {
						_, err := c.do("DELETE", fmt.Sprintf("/put%d", i), "", nil)
						return err
					})
				},
			}
			if streams > 1 {
				m.goals[peak.name] = []goal{{no: "17", most: 64}}
			}
			m.do(b)
		})
	}
}

// BenchmarkRange reads parts of a large file at random.
func BenchmarkRange(b *testing.B) {
	bench.open(b)
	const part = 64 << 10
	size, n := bench.scale.Bulk, bench.scale.Ranges
	measure{
		name: "64 KiB ranges, 16 connections", sides: everyone, warm: true, metrics: []metric{rate, micros},
		goals:   map[string][]goal{rate.name: {{no: "4", ratio: nginx, least: 0.5}, {no: "4 stretch", ratio: nginx, least: 0.8}}},
		prepare: func(s side) error { return lay(s, "large", size) },
		run: func(s side, _ int) (float64, time.Duration, error) {
			err := each(s, 16, n, func(c *conn, _ int) error {
				at := rand.Int64N(size - part)
				got, err := c.do("GET", "/large", fmt.Sprintf("Range: bytes=%d-%d\r\n", at, at+part-1), nil)
				if err == nil && got != part {
					err = fmt.Errorf("%s: a range of %d bytes, want %d", s.name, got, part)
				}
				return err
			})
			return float64(n), 0, err
		},
		cleanup: func(s side) error { return os.Remove(filepath.Join(s.files, "large")) },
	}.do(b)
}
