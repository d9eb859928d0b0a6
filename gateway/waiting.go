package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// waitingRoom is where files lie that wait to be written to a datasource.
func (g *Gateway) waitingRoom(datasource string) string {
	return filepath.Join(g.spool, "writeback", datasource)
}

// waiting returns how many files wait to be written to a datasource, be it open or not.
func (g *Gateway) waiting(datasource string) (n int, err error) {
	if g.spool == "" {
		return 0, nil
	}
	files, err := os.ReadDir(g.waitingRoom(datasource))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fault.Wrap("gateway.waiting", datasource, err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".put") {
			n++
		}
	}
	return n, nil
}

// errWaiting says what keeps a datasource from being changed or deleted.
func (g *Gateway) errWaiting(n int, datasource, what string) error {
	return fmt.Errorf("%d files that were acknowledged wait to be written to it: %s; to give them up, move %s away", n, what, g.waitingRoom(datasource))
}

// ownerFile is beside the files that wait, and holds the mark of the storage that they are for.
const ownerFile = "storage"

// owns refuses to write what waits to another storage than the one it was meant for: it would replace what has the same names there.
func (ds *datasource) owns(ctx context.Context, b mounts.Backend) error {
	n, err := ds.g.waiting(ds.cfg.Name)
	if err != nil || n == 0 {
		return err
	}
	owner, err := os.ReadFile(filepath.Join(ds.g.waitingRoom(ds.cfg.Name), ownerFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap("gateway.waiting", ds.cfg.Name, err)
	}
	have, err := markOf(ctx, b)
	if err != nil {
		return err
	}
	if have == "" || have != strings.TrimSpace(string(owner)) {
		return fault.New("gateway.attach", ds.cfg.Name, fault.Unavailable, ds.g.errWaiting(n, ds.cfg.Name, "this is another storage"))
	}
	return nil
}

// own writes down which storage files will wait for from now on.
func (ds *datasource) own(m *mounted) error {
	if m.chain.pending == nil {
		return nil
	}
	name := filepath.Join(ds.g.waitingRoom(ds.cfg.Name), ownerFile)
	if owner, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(owner)) == m.id {
		return nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return spoolFault(err)
	}
	_, err = f.WriteString(m.id + "\n")
	return spoolFault(errors.Join(err, f.Sync(), f.Close())) // its name is synced with that of the first file that waits
}
