package store

import (
	"bytes"
	"os"
	"testing"
)

// FuzzBackupReader: no stream but a true one is taken for a backup, and none costs much memory or a panic.
func FuzzBackupReader(f *testing.F) {
	good, err := os.ReadFile("testdata/backup-1.bin")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	known := []table{
		{name: "leases", columns: []string{"expires", "fence", "holder", "name"}},
		{name: "settings", columns: []string{"key", "value"}},
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := newBackupReader(bytes.NewReader(b))
		if _, err := in.header(); err != nil {
			return
		}
		rows := 0
		err := in.tables(known, func(_ string, r [][]any) error { rows += len(r); return nil })
		if bytes.Equal(b, good) != (err == nil) {
			t.Errorf("%d rows, %v", rows, err)
		}
	})
}
