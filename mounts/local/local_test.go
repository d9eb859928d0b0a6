package local_test

import (
	"os"
	"path/filepath"
	"testing"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/local"
	"cellgate/mounts/mounttest"
)

// open opens dir as a datasource that is closed at the end of the test.
func open(t testing.TB, dir string, options ...string) mounts.Backend {
	t.Helper()
	cfg := mounts.Config{Name: "disk", Options: map[string]string{"path": dir}, Unsynced: true}
	for i := 0; i+1 < len(options); i += 2 {
		cfg.Options[options[i]] = options[i+1]
	}
	b, err := local.Driver().Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestConformance(t *testing.T) {
	mounttest.Run(t, func(t *testing.T) mounts.Backend { return open(t, t.TempDir()) })
}

// TestConformanceSynced runs on the disk with all syncs, and once more below a guard against panics.
func TestConformanceSynced(t *testing.T) {
	if testing.Short() {
		t.Skip("syncs")
	}
	mounttest.Run(t, func(t *testing.T) mounts.Backend {
		b, err := local.Driver().Open(t.Context(), mounts.Config{Options: map[string]string{"path": t.TempDir()}})
		if err != nil {
			t.Fatal(err)
		}
		return mounts.Contain(b, nil)
	})
}

func BenchmarkLocal(b *testing.B) {
	dir := b.TempDir()
	if shm, err := os.MkdirTemp("/dev/shm", "cellgate"); err == nil {
		b.Cleanup(func() { os.RemoveAll(shm) })
		dir = shm
	}
	mounttest.Bench(b, func(b *testing.B) mounts.Backend {
		m, err := local.Driver().Open(b.Context(), mounts.Config{Options: map[string]string{"path": dir}})
		if err != nil {
			b.Fatal(err)
		}
		return m
	})
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		options map[string]string
		want    fault.Kind
	}{
		{"none", nil, fault.Invalid},
		{"relative", map[string]string{"path": "x"}, fault.Invalid},
		{"unknown", map[string]string{"path": dir, "sync": "1"}, fault.Invalid},
		{"mode", map[string]string{"path": dir, "fileMode": "999"}, fault.Invalid},
		{"unreadable", map[string]string{"path": dir, "fileMode": "0044"}, fault.Invalid},
		{"set-id", map[string]string{"path": dir, "dirMode": "4750"}, fault.Invalid},
		{"watches", map[string]string{"path": dir, "watches": "-1"}, fault.Invalid},
		{"missing", map[string]string{"path": filepath.Join(dir, "no")}, fault.NotExist},
		{"file", map[string]string{"path": file}, fault.NotDir},
	} {
		b, err := local.Driver().Open(t.Context(), mounts.Config{Options: test.options})
		if err == nil || fault.KindOf(err) != test.want || b != nil {
			t.Errorf("%s: %v; want %v", test.name, err, test.want)
		}
	}
	made := filepath.Join(dir, "a", "b")
	open(t, made, "create", "true")
	if info, err := os.Stat(made); err != nil || !info.IsDir() {
		t.Errorf("create: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := local.Driver().Open(t.Context(), mounts.Config{Options: map[string]string{"path": dir}, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	mounttest.Script(t, b, `
		cat f   -> "x"
		ls .    -> f
		put f y -> ! permission denied
		new g y -> ! permission denied
		mkdir d -> ! permission denied
		mv f g  -> ! permission denied
		rm f    -> ! permission denied
		cp f g  -> ! permission denied
		cat f   -> "x"
	`)
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("a read-only datasource left %v", entries)
	}
}

func openErr(t *testing.T, dir string) (mounts.Backend, error) {
	return local.Driver().Open(t.Context(), mounts.Config{Options: map[string]string{"path": dir}})
}
