package seal

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cellgate/internal/fault"
)

const firstLine = "cellgate keys 1"

// readKeys reads the key file and sees to its modes.
func readKeys(file string) ([]key, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chmod(filepath.Dir(file), 0o700), os.Chmod(file, 0o600)); err != nil {
		return nil, err
	}
	return parseKeys(string(b))
}

func parseKeys(text string) ([]key, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if lines[0] != firstLine {
		return nil, fault.New("store/seal.Open", "", fault.Corrupt, fmt.Errorf("the key file does not begin with %q", firstLine))
	}
	var keys []key
	for i, line := range lines[1:] {
		k, err := parseKey(line)
		if err != nil {
			return nil, fault.New("store/seal.Open", "", fault.Corrupt, fmt.Errorf("line %d of the key file: %w", i+2, err))
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fault.New("store/seal.Open", "", fault.Corrupt, errors.New("the key file holds no key"))
	}
	return keys, nil
}

// parseKey reads one line. Its errors do not quote it.
func parseKey(line string) (key, error) {
	words := strings.Split(line, " ")
	if len(words) != 3 {
		return key{}, errors.New("want an id, a time and a key")
	}
	created, err := time.Parse(time.RFC3339, words[1])
	if err != nil {
		return key{}, errors.New("the time is not RFC 3339")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(words[2])
	if err != nil || len(b) != 32 {
		return key{}, errors.New("the key is not 32 bytes in base64")
	}
	k, err := newKey([32]byte(b), created)
	if err != nil {
		return key{}, err
	}
	if fmt.Sprintf("%08x", k.id) != words[0] {
		return key{}, errors.New("the id does not belong to the key")
	}
	return k, nil
}

// writeKeys replaces the key file: after a crash it is the old or the new one.
func writeKeys(file string, keys []key) (err error) {
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintln(&b, firstLine)
	for _, k := range keys {
		fmt.Fprintf(&b, "%08x %s %s\n", k.id, k.created.Format(time.RFC3339), base64.StdEncoding.EncodeToString(k.secret[:]))
	}
	f, err := os.CreateTemp(dir, ".master-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.WriteString(b.String())
	if err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), file); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
