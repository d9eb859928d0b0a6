package mounttest

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

func testInfo(t *testing.T, b mounts.Backend) {
	ctx := t.Context()
	before := time.Now().Add(-time.Hour)
	put, err := mounts.WriteFile(ctx, b, "f", []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	stat, err := b.Stat(ctx, "f")
	if err != nil {
		t.Fatal(err)
	}
	if put.ModTime.IsZero() { // unknown: some servers do not tell it in their answer, nor the tag, and asking would double the round trips
		put.ModTime = stat.ModTime
		if put.Tag == "" {
			put.Tag = stat.Tag
		}
	}
	if put != stat {
		t.Errorf("Put returned %+v\nStat says     %+v", put, stat)
	}
	if !stat.ModTime.IsZero() && (stat.ModTime.Before(before) || stat.ModTime.Location() != time.UTC) {
		t.Errorf("ModTime %v, want now in UTC", stat.ModTime)
	}
	for info, err := range b.List(ctx, ".") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Name == "f" && info != stat {
			t.Errorf("List says %+v\nStat says %+v", info, stat)
		}
	}
	r, err := b.Open(ctx, "f", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := r.(mounts.Stater); ok {
		if info, err := s.Stat(); err != nil || info != stat {
			t.Errorf("the reader says %+v, %v\nStat says       %+v", info, err, stat)
		}
	}
	r.Close()
	if err := b.Rename(ctx, "f", "g"); err != nil {
		t.Fatal(err)
	}
	moved, err := b.Stat(ctx, "g")
	if err != nil {
		t.Fatal(err)
	}
	if stat.ID != 0 && moved.ID != stat.ID { // a file that is not on the backend yet has none
		t.Errorf("ID was %d, is %d after Rename", stat.ID, moved.ID)
	}
	if !moved.ModTime.Equal(stat.ModTime) && b.Features().Rename == mounts.Native {
		t.Errorf("ModTime was %v, is %v after Rename", stat.ModTime, moved.ModTime)
	}
	if _, err := mounts.WriteFile(ctx, b, "g", []byte("HELLO")); err != nil {
		t.Fatal(err)
	}
	changed, err := b.Stat(ctx, "g")
	if err != nil {
		t.Fatal(err)
	}
	if moved.Change != 0 && moved.Change == changed.Change && moved.ID == changed.ID {
		t.Errorf("Change and ID are as before another content of the same length: %+v", changed)
	}
	if moved.Tag != "" && moved.Tag == changed.Tag {
		t.Errorf("Tag %q is as before another content", moved.Tag)
	}
}

func testListMany(t *testing.T, b mounts.Backend) {
	const many = 1500
	ctx := t.Context()
	if err := b.Mkdir(ctx, "d"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for part := range 4 {
		all.Go(func() {
			for i := part; i < many; i += 4 {
				if _, err := mounts.WriteFile(ctx, b, fmt.Sprintf("d/file-%04d", i), nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	names, err := list(ctx, b, "d")
	if err != nil || len(names) != many || names[0] != "file-0000" || names[many-1] != "file-1499" || len(slices.Compact(names)) != many {
		t.Fatalf("List found %d names, %v; want %d different ones", len(names), err, many)
	}
	breaks := 200
	if b.Features().Remote {
		breaks = 30 // each costs the server the whole listing
	}
	for range breaks { // what an early break leaves open would show
		for _, err := range b.List(ctx, "d") {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	again := 0 // while listing, entries go
	for info, err := range b.List(ctx, "d") {
		if err != nil {
			t.Fatalf("List while files are removed: %v", err)
		}
		if again++; again%10 == 0 {
			if err := b.Remove(ctx, "d/"+info.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if names, err = list(ctx, b, "d"); err != nil || len(names) != many-again/10 {
		t.Errorf("%d names are left, %v; want %d", len(names), err, many-again/10)
	}
	seq := b.List(ctx, "d")
	for range 2 { // a sequence may be ranged over again
		n := 0
		for _, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != len(names) {
			t.Errorf("listed %d of %d", n, len(names))
		}
	}
}

// testConcurrent lets workers do all there is in folders of their own and in one they share, and looks that nothing is lost.
func testConcurrent(t *testing.T, b mounts.Backend) {
	const workers, rounds = 8, 15
	ctx := t.Context()
	if err := b.Mkdir(ctx, "shared"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			dir := fmt.Sprintf("w%d", w)
			if err := b.Mkdir(ctx, dir); err != nil {
				t.Error(err)
				return
			}
			for i := range rounds {
				content := bytes.Repeat([]byte(dir), i*100)
				name, moved := fmt.Sprintf("%s/f%d", dir, i), fmt.Sprintf("shared/%s-%d", dir, i)
				if _, err := mounts.WriteFile(ctx, b, name, content); err != nil {
					t.Errorf("Put(%s): %v", name, err)
				}
				if err := b.Rename(ctx, name, moved); err != nil {
					t.Errorf("Rename(%s): %v", name, err)
				}
				if got, err := mounts.ReadFile(ctx, b, moved, 1<<20); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s holds %d bytes, %v; want %d", moved, len(got), err, len(content))
				}
				if _, err := list(ctx, b, "shared"); err != nil {
					t.Errorf("List: %v", err)
				}
				if _, err := b.Stat(ctx, name); fault.KindOf(err) != fault.NotExist {
					t.Errorf("Stat(%s) after Rename: %v", name, err)
				}
			}
			if err := b.Remove(ctx, dir); err != nil {
				t.Errorf("Remove(%s): %v", dir, err)
			}
		})
	}
	all.Wait()
	names, err := list(ctx, b, "shared")
	if err != nil || len(names) != workers*rounds {
		t.Errorf("%d files in the shared folder, %v; want %d", len(names), err, workers*rounds)
	}
}
