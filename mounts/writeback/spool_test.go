package writeback

import (
	"bytes"
	"hash/crc32"
	"os"
	"testing"
	"time"
)

// FuzzManifest: a damaged spool file is refused or read as what was written, and never more than there is.
func FuzzManifest(f *testing.F) {
	content := []byte("content")
	m := manifest{Name: "d/f", Size: int64(len(content)), Sum: crc32.Checksum(content, castagnoli), ModTime: time.Unix(1, 0), Put: time.Unix(2, 0)}
	whole, err := appendTrailer(bytes.Clone(content), m)
	if err != nil {
		f.Fatal(err)
	}
	sample, err := os.ReadFile("testdata/0000000000000001.put")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{whole, whole[1:], whole[:len(whole)-1], nil, []byte(magic), sample} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := readManifest(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			return
		}
		if m.Size < 0 || m.Size > int64(len(p)) || m.Name == "" || m.Name == "." {
			t.Errorf("read %+v of %d bytes", m, len(p))
		}
	})
}
