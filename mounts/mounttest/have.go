package mounttest

import (
	"reflect"
	"slices"
	"testing"

	"cellgate/mounts"
)

// everything is a backend with all capabilities, to be looked at but not called.
type everything struct {
	mounts.Backend
	mounts.RandomAccess
	mounts.Copier
	mounts.Linker
	mounts.TimeSetter
	mounts.ModeSetter
	mounts.Truncater
	mounts.Symlinker
	mounts.Xattrer
	mounts.Watcher
	mounts.Spacer
	mounts.Hasher
	mounts.Conditional
	mounts.PartPutter
	mounts.Purger
	mounts.Resumer
	mounts.Partitioned
}

var (
	_ mounts.RandomAccess = everything{}
	_ mounts.Resumer      = everything{}
)

// capabilities are the names of all there are, in the order of everything.
func capabilities() []string {
	var names []string
	for t, i := reflect.TypeFor[everything](), 1; i < t.NumField(); i++ {
		names = append(names, t.Field(i).Name)
	}
	return names
}

// Capabilities returns the names of the capabilities that mounts.As finds, such as "Copier".
func Capabilities(b mounts.Backend) []string {
	has := map[string]bool{
		"RandomAccess": has[mounts.RandomAccess](b), "Copier": has[mounts.Copier](b), "Linker": has[mounts.Linker](b),
		"TimeSetter": has[mounts.TimeSetter](b), "ModeSetter": has[mounts.ModeSetter](b), "Truncater": has[mounts.Truncater](b),
		"Symlinker": has[mounts.Symlinker](b), "Xattrer": has[mounts.Xattrer](b), "Watcher": has[mounts.Watcher](b), "Spacer": has[mounts.Spacer](b),
		"Hasher": has[mounts.Hasher](b), "Conditional": has[mounts.Conditional](b), "PartPutter": has[mounts.PartPutter](b),
		"Purger": has[mounts.Purger](b), "Resumer": has[mounts.Resumer](b), "Partitioned": has[mounts.Partitioned](b),
	}
	var names []string
	for _, name := range capabilities() {
		if has[name] {
			names = append(names, name)
		}
	}
	return names
}

func has[T any](b mounts.Backend) bool {
	_, ok := mounts.As[T](b)
	return ok
}

// Keeps tests that wrap neither loses a capability nor makes one up, but for those named, which it must never have.
func Keeps(t *testing.T, wrap func(mounts.Backend) mounts.Backend, never ...string) {
	t.Helper()
	all := capabilities()
	sets := [][]string{nil, all}
	for _, name := range all {
		sets = append(sets, []string{name}, slices.DeleteFunc(slices.Clone(all), func(n string) bool { return n == name }))
	}
	for _, set := range sets {
		want := slices.DeleteFunc(slices.Clone(set), func(n string) bool { return slices.Contains(never, n) })
		if got := Capabilities(wrap(only{everything{}, set})); !slices.Equal(got, want) {
			t.Errorf("a backend with %q wrapped has %q, want %q", set, got, want)
		}
	}
}

// only is a backend with some of the capabilities of another.
type only struct {
	mounts.Backend
	names []string
}

func (o only) Provide(target any) (known, found bool) {
	return !slices.Contains(o.names, reflect.TypeOf(target).Elem().Name()), false
}

func (o only) Unwrap() mounts.Backend { return o.Backend }

// Features is that of no backend at all: wrappers may look at it.
func (o only) Features() mounts.Features { return mounts.Features{} }
