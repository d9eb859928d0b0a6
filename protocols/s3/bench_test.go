package s3

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/minio/minio-go/v7"
)

// BenchmarkList lists a folder of so many files from start to end, a thousand at a time.
func BenchmarkList(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			box := openBox(b, nil)
			dir := filepath.Join(box.dir, "docs")
			for i := range n {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%07d", i)), nil, 0o644); err != nil {
					b.Fatal(err)
				}
			}
			c := box.client(alice)
			b.ReportAllocs()
			for b.Loop() {
				token, keys := "", 0
				for {
					l, err := c.ListObjectsV2("docs", "", "", token, "", 1000)
					if err != nil {
						b.Fatal(err)
					}
					if keys += len(l.Contents); !l.IsTruncated {
						break
					}
					token = l.NextContinuationToken
				}
				if keys != n {
					b.Fatalf("%d keys", keys)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}

// BenchmarkObject puts and gets objects.
func BenchmarkObject(b *testing.B) {
	for _, size := range []int{4 << 10, 10 << 20} {
		box := openBox(b, nil)
		c := box.client(alice)
		data := many(size)
		b.Run(fmt.Sprintf("put/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := c.PutObject(b.Context(), "docs", "f", bytes.NewReader(data), int64(size), "", "", minio.PutObjectOptions{DisableContentSha256: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("get/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				o, _, _, err := c.GetObject(b.Context(), "docs", "f", minio.GetObjectOptions{})
				if err == nil {
					_, err = io.Copy(io.Discard, o)
					o.Close()
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
