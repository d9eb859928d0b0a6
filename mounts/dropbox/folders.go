package dropbox

import (
	"context"
	"strings"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// folders remembers for a moment which folders were seen, so that writing into them needs no call to ask.
type folders struct {
	mu   sync.Mutex
	seen map[string]time.Time // by path in lower case; guarded by mu
}

const (
	folderLife  = 10 * time.Second
	foldersMost = 4096
)

func newFolders() *folders { return &folders{seen: map[string]time.Time{}} }

func (f *folders) know(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.seen[strings.ToLower(path)]
	return ok && time.Since(at) < folderLife
}

func (f *folders) learn(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) >= foldersMost {
		clear(f.seen)
	}
	f.seen[strings.ToLower(path)] = time.Now()
}

// forget drops path and what is below it.
func (f *folders) forget(path string) {
	path = strings.ToLower(path)
	f.mu.Lock()
	defer f.mu.Unlock()
	for p := range f.seen {
		if p == path || strings.HasPrefix(p, path+"/") {
			delete(f.seen, p)
		}
	}
}

// parent makes sure that the folder name lies in, or will lie in, is there: Dropbox would make it. It asks only where it was not seen lately.
func (b *Backend) parent(ctx context.Context, op, name string) error {
	dir, _ := mounts.Split(name)
	if dir == "." && b.root == "" || b.folders.know(b.path(dir)) {
		return nil
	}
	info, err := b.stat(ctx, op, dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fault.New("mounts/dropbox."+op, name, fault.NotDir, nil)
	}
	return nil
}

// parentLater is parent in the background, from now on; the returned function waits for the answer and must be called.
func (b *Backend) parentLater(ctx context.Context, op, name string) (wait func() error) {
	dir, _ := mounts.Split(name)
	if dir == "." && b.root == "" || b.folders.know(b.path(dir)) {
		return func() error { return nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- b.parent(ctx, op, name) }()
	return sync.OnceValue(func() error {
		defer cancel()
		return <-done
	})
}
