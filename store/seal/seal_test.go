package seal

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cellgate/internal/fault"
)

func open(t *testing.T, dir string) *Keyring {
	t.Helper()
	k, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealUnseal(t *testing.T) {
	k := open(t, t.TempDir())
	for _, plain := range []string{"", "x", strings.Repeat("long ", 10_000)} {
		sealed, err := k.Seal([]byte(plain), "a")
		if err != nil {
			t.Fatal(err)
		}
		if len(sealed) != len(plain)+Overhead {
			t.Errorf("%d bytes sealed are %d", len(plain), len(sealed))
		}
		got, err := k.Unseal(sealed, "a")
		if err != nil || string(got) != plain {
			t.Errorf("got %q, %v", got, err)
		}
		again, _ := k.Seal([]byte(plain), "a")
		if bytes.Equal(sealed, again) {
			t.Error("two sealings of one secret are equal")
		}
		if len(plain) > 1 && bytes.Contains(sealed, []byte(plain[:4])) {
			t.Error("the plain text shows")
		}
	}
}

func TestUnsealRefuses(t *testing.T) {
	k := open(t, t.TempDir())
	sealed, err := k.Seal([]byte("secret"), "user:alice")
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		for bit := range 8 {
			bad := bytes.Clone(sealed)
			bad[i] ^= 1 << bit
			if got, err := k.Unseal(bad, "user:alice"); fault.KindOf(err) != fault.Corrupt {
				t.Fatalf("bit %d of byte %d changed: got %q, %v", bit, i, got, err)
			}
		}
		if _, err := k.Unseal(sealed[:i], "user:alice"); fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
	if _, err := k.Unseal(sealed, "user:bob"); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("another context: %v", err)
	}
	if _, err := open(t, t.TempDir()).Unseal(sealed, "user:alice"); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("another keyring: %v", err)
	}
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	old, err := k.Seal([]byte("secret"), "c")
	if err != nil {
		t.Fatal(err)
	}
	if k.Stale(old) {
		t.Error("stale before the rotation")
	}
	if err := k.Rotate(); err != nil {
		t.Fatal(err)
	}
	fresh, err := k.Seal([]byte("secret"), "c")
	if err != nil {
		t.Fatal(err)
	}
	for _, ring := range []*Keyring{k, open(t, dir)} {
		if !ring.Stale(old) || ring.Stale(fresh) {
			t.Error("stale is the wrong one")
		}
		for _, sealed := range [][]byte{old, fresh} {
			if got, err := ring.Unseal(sealed, "c"); err != nil || string(got) != "secret" {
				t.Errorf("got %q, %v", got, err)
			}
		}
	}
}

func TestModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := t.TempDir()
	open(t, dir)
	file := filepath.Join(dir, "keys", "master.key")
	if err := os.Chmod(file, 0o644); err != nil { // as a careless copy leaves it
		t.Fatal(err)
	}
	open(t, dir)
	for name, want := range map[string]os.FileMode{filepath.Dir(file): 0o700, file: 0o600} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
	}
}

func TestBadKeyFile(t *testing.T) {
	good, err := os.ReadFile("testdata/keys/master.key")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty": "", "no key": firstLine + "\n", "other version": strings.Replace(string(good), "keys 1", "keys 2", 1),
		"cut": string(good[:len(good)-5]), "other id": strings.Replace(string(good), "\n", "\n0", 1), "line added": string(good) + "x\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "keys", "master.key")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir)
			if fault.KindOf(err) != fault.Corrupt {
				t.Errorf("got %v", err)
			}
			if b, _ := os.ReadFile(file); string(b) != text {
				t.Error("the file was replaced")
			}
		})
	}
}

// TestSample opens what the first release sealed.
func TestSample(t *testing.T) {
	text, err := os.ReadFile("testdata/keys/master.key")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := parseKeys(string(text))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("testdata/sealed.hex")
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	k := &Keyring{keys: keys}
	if got, err := k.Unseal(sealed, "datasource:sample:password"); err != nil || string(got) != "open sesame" {
		t.Errorf("got %q, %v", got, err)
	}
	if !k.Stale(sealed) {
		t.Error("the sample is of the older of two keys")
	}
}

func FuzzUnseal(f *testing.F) {
	k, err := Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	sealed, _ := k.Seal([]byte("secret"), "c")
	f.Add(sealed)
	f.Fuzz(func(t *testing.T, b []byte) {
		if plain, err := k.Unseal(b, "c"); err == nil && !bytes.Equal(b, sealed) {
			t.Errorf("%x unsealed to %q", b, plain)
		}
	})
}
