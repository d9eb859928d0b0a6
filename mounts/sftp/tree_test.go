package sftp

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestFolders: what was found a moment ago is not asked about again, but for what a change of ours may have made something else since.
func TestFolders(t *testing.T) {
	for _, c := range []struct {
		name  string
		while func(f *folders) // between the question and the answer
		after func(f *folders)
		want  []string // to be asked about for a/b/c/f
	}{
		{"found", nil, nil, nil},
		{"a file went meanwhile", func(f *folders) { f.drop("a/b/other") }, nil, nil},
		{"another folder went meanwhile", func(f *folders) { f.drop("z") }, nil, nil},
		{"a folder went meanwhile", func(f *folders) { f.drop("a/b") }, nil, []string{"a/b", "a/b/c"}},
		{"the highest went meanwhile", func(f *folders) { f.drop("a") }, nil, []string{"a", "a/b", "a/b/c"}},
		{"two went meanwhile", func(f *folders) { f.drop("a/b/c", "x") }, nil, []string{"a/b/c"}},
		{"more went than are remembered", func(f *folders) {
			for i := range maxDrops {
				f.drop(fmt.Sprint(i))
			}
		}, nil, []string{"a", "a/b", "a/b/c"}},
		{"a folder went later", nil, func(f *folders) { f.drop("a/b") }, []string{"a/b", "a/b/c"}},
		{"a file went later", nil, func(f *folders) { f.drop("a/b/c/f") }, nil},
		{"too many", nil, func(f *folders) {
			for i := range maxFolders {
				f.add([]string{fmt.Sprint(i)}, f.epoch, time.Now())
			}
		}, []string{"a", "a/b", "a/b/c"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var f folders
			list, epoch := f.unknown("a/b/c/f")
			if want := []string{"a", "a/b", "a/b/c"}; !slices.Equal(list, want) {
				t.Fatalf("at first %q are asked about, want %q", list, want)
			}
			if c.while != nil {
				c.while(&f)
			}
			f.add(list, epoch, time.Now().Add(time.Hour)) // not to grow old in this test
			if c.after != nil {
				c.after(&f)
			}
			if got, _ := f.unknown("a/b/c/f"); !slices.Equal(got, c.want) {
				t.Errorf("%q are asked about, want %q", got, c.want)
			}
		})
	}
}

// TestFoldersWhole: a folder is remembered with those above it or not at all, so that it goes when one of them does.
func TestFoldersWhole(t *testing.T) {
	var f folders
	f.add([]string{"a"}, f.epoch, time.Now().Add(time.Hour))
	list, epoch := f.unknown("a/b/f")
	for i := range maxFolders {
		f.add([]string{fmt.Sprint(i)}, f.epoch, time.Now())
	}
	f.add(list, epoch, time.Now().Add(time.Hour))
	f.drop("a")
	if got, _ := f.unknown("a/b/f"); !slices.Equal(got, []string{"a", "a/b"}) {
		t.Errorf("%q are asked about, want a and a/b", got)
	}
}
