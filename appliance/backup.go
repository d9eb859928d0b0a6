package appliance

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cellgate/internal/fault"
	"cellgate/store"
)

// A backup file is the line below, the length of a tar archive as eight bytes, big-endian, the archive with the folders of keptFolders, and
// the store's own backup, which checks itself. The keys go along because what is sealed with them is worth nothing without.
const backupMagic = "cellgate box 1\n"

// keptFolders are the folders of the data folder that a backup holds, beside the store.
var keptFolders = []string{"keys", "tls"}

const maxKept = 64 << 20

func writeBackup(ctx context.Context, db *store.DB, dir string, w io.Writer) error {
	var archive bytes.Buffer
	if err := pack(&archive, dir); err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint64([]byte(backupMagic), uint64(archive.Len()))
	for _, part := range [][]byte{head, archive.Bytes()} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return db.Backup(ctx, w)
}

func pack(w io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	for _, folder := range keptFolders {
		err := filepath.WalkDir(filepath.Join(dir, folder), func(name string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(dir, name)
			if err != nil {
				return err
			}
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(rel), Size: int64(len(data)), Mode: 0o600}); err != nil {
				return err
			}
			_, err = tw.Write(data)
			return err
		})
		if err != nil {
			return err
		}
	}
	return tw.Close()
}

// restoreBackup reads a backup into an empty data folder and store. Where it fails, the files it wrote are gone again.
func restoreBackup(ctx context.Context, cfg store.Config, r io.Reader) (err error) {
	const op = "appliance.restore"
	broken := func(cause error) error { return fault.New(op, "", fault.Corrupt, cause) }
	head := make([]byte, len(backupMagic)+8)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:len(backupMagic)]) != backupMagic {
		return broken(errors.New("this is no backup of cellgate"))
	}
	n := binary.BigEndian.Uint64(head[len(backupMagic):])
	if n > maxKept {
		return broken(errors.New("the archive of keys is too large"))
	}
	archive := make([]byte, n)
	if _, err := io.ReadFull(r, archive); err != nil {
		return broken(err)
	}
	for _, folder := range keptFolders {
		if _, err := os.Lstat(filepath.Join(cfg.Dir, folder)); err == nil {
			return fault.New(op, cfg.Dir, fault.NotEmpty, fmt.Errorf("it has %s; restore into a new folder", folder))
		}
	}
	if err := openFolder(cfg.Dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			for _, folder := range keptFolders {
				os.RemoveAll(filepath.Join(cfg.Dir, folder))
			}
		}
	}()
	if err := unpack(archive, cfg.Dir); err != nil {
		return broken(err)
	}
	return store.Restore(ctx, cfg, r)
}

func unpack(archive []byte, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		folder, _, ok := strings.Cut(h.Name, "/")
		if !ok || h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name) || !slices.Contains(keptFolders, folder) {
			return fmt.Errorf("%q has no place in a backup", h.Name)
		}
		if err := root.MkdirAll(filepath.Dir(h.Name), 0o700); err != nil {
			return err
		}
		f, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
}
