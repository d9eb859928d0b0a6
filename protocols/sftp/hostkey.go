package sftp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

// kinds are the host keys a server has, with how they are made.
var kinds = []struct {
	name string
	make func() (crypto.Signer, error)
}{
	{"ed25519", func() (crypto.Signer, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}},
	{"ecdsa", func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	{"rsa", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) }},
}

// HostKeys returns the host keys kept in dir, ssh_host_ed25519_key, ssh_host_ecdsa_key and ssh_host_rsa_key in OpenSSH's format, and makes those
// that are missing. A file that others may read, or that is no key, is an error: clients trust what is in it.
func HostKeys(dir string) ([]ssh.Signer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var all []ssh.Signer
	for _, k := range kinds {
		name := filepath.Join(dir, "ssh_host_"+k.name+"_key")
		key, err := readKey(name)
		if errors.Is(err, fs.ErrNotExist) {
			if err = makeKey(name, k.make); err == nil {
				key, err = readKey(name)
			}
		}
		if err != nil {
			return nil, err
		}
		all = append(all, key)
	}
	return all, nil
}

func readKey(name string) (ssh.Signer, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %#o): make it 0600, or delete it for a new one", name, info.Mode().Perm())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParsePrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

// makeKey puts a new key at name, whole or not at all. Of two that do so at once the first one's stays.
func makeKey(name string, make func() (crypto.Signer, error)) error {
	key, err := make()
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(key, "cellgate")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".ssh_host_") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(pem.EncodeToMemory(block)); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
