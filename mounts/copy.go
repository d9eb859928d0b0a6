package mounts

import (
	"bytes"
	"context"
	"io"
	"time"

	"cellgate/internal/fault"
)

// Copy copies the file from to the file to of the same backend, by the backend itself where it can, else as a stream. The target is replaced
// as Put does.
func Copy(ctx context.Context, b Backend, from, to string) (Info, error) {
	if c, ok := As[Copier](b); ok {
		info, err := c.CopyFile(ctx, from, to)
		if fault.KindOf(err) != fault.Unsupported {
			return info, err
		}
	}
	return stream(ctx, b, from, b, to, time.Time{})
}

// CopyBetween copies the file from of src to the file to of dst as a stream, with its permission bits and, where dst keeps such, its
// modification time. A source that shrinks meanwhile fails with Invalid; what it grows by is left out.
func CopyBetween(ctx context.Context, src Backend, from string, dst Backend, to string) (Info, error) {
	info, err := src.Stat(ctx, from)
	if err != nil {
		return Info{}, err
	}
	return stream(ctx, src, from, dst, to, info.ModTime)
}

func stream(ctx context.Context, src Backend, from string, dst Backend, to string, mtime time.Time) (Info, error) {
	info, err := src.Stat(ctx, from)
	if err != nil {
		return Info{}, err
	}
	if info.IsDir() {
		return Info{}, fault.New("mounts.Copy", from, fault.IsDir, nil)
	}
	r, err := src.Open(ctx, from, 0, info.Size)
	if err != nil {
		return Info{}, err
	}
	defer r.Close()
	return dst.Put(ctx, to, r, PutOptions{Size: info.Size, ModTime: mtime, Mode: info.Mode})
}

// ReadFile returns the content of a file of at most limit bytes; a longer one is TooLarge.
func ReadFile(ctx context.Context, b Backend, name string, limit int64) ([]byte, error) {
	r, err := b.Open(ctx, name, 0, limit+1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	buf := bytes.NewBuffer(make([]byte, 0, min(limit+1, 8<<10)+bytes.MinRead))
	if _, err := buf.ReadFrom(struct{ io.Reader }{r}); err != nil {
		return nil, fault.Wrap("mounts.ReadFile", name, err)
	}
	if int64(buf.Len()) > limit {
		return nil, fault.New("mounts.ReadFile", name, fault.TooLarge, nil)
	}
	return buf.Bytes(), nil
}

// WriteFile puts content into the file name.
func WriteFile(ctx context.Context, b Backend, name string, content []byte) (Info, error) {
	return b.Put(ctx, name, bytes.NewReader(content), PutOptions{Size: int64(len(content))})
}

// MkdirAll makes the folder name and what is missing above it.
func MkdirAll(ctx context.Context, b Backend, name string) error {
	if name == "." {
		return nil
	}
	err := b.Mkdir(ctx, name)
	if fault.KindOf(err) == fault.NotExist {
		dir, _ := Split(name)
		if err := MkdirAll(ctx, b, dir); err != nil {
			return err
		}
		err = b.Mkdir(ctx, name)
	}
	if err == nil || fault.KindOf(err) != fault.Exist {
		return err
	}
	info, err := b.Stat(ctx, name)
	if err == nil && !info.IsDir() {
		return fault.New("mounts.MkdirAll", name, fault.NotDir, nil)
	}
	return err
}
