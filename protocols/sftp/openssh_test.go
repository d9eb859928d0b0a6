package sftp

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOpenSSH lets OpenSSH's sftp do everything it can.
func TestOpenSSH(t *testing.T) {
	b := start(t, onDisk(t), Config{})
	dir := t.TempDir()
	big := random(5<<20 + 17)
	src := file(t, big)
	back := filepath.Join(dir, "back")
	out, err := b.batch(
		"pwd", "ls -la /", "cd docs", "mkdir sub", "put -p "+src+" sub/big", "get sub/big "+back, "ls -l sub",
		"rename sub/big sub/moved", "cp sub/moved sub/copy", "ln -s moved sub/link", "ln sub/moved sub/hard", "df sub", "chmod 600 sub/copy",
		"ls -l sub", "get sub/link "+back+"2", "rm sub/link", "rm sub/hard", "rm sub/copy", "put -f "+src+" sub/synced", "rm sub/*", "rmdir sub", "ls -a",
	)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{back, back + "2"} {
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, big) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(big), err)
		}
	}
	for _, want := range []string{"Remote working directory: /\n", "docs", "homes", "-rw-------", "alice"} {
		if !strings.Contains(out, want) {
			t.Errorf("nothing of %q in\n%s", want, out)
		}
	}
	t.Log(out)
}
