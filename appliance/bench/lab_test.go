package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
)

// lab is where the servers live during a run.
type lab struct {
	scale  scale
	dir    string
	binary string // cellgate
	report report

	once    sync.Once
	err     error
	sides   []side // all that are compared
	servers []*server
	seen    map[string]bool // measures done: testing calls a benchmark again when it was quick
}

// bench is the lab of this process.
var bench lab

// open builds the binary and starts the servers, once.
func (l *lab) open(b *testing.B) {
	b.Helper()
	l.once.Do(func() { l.err = l.start() })
	if l.err != nil {
		b.Fatal(l.err)
	}
}

func (l *lab) start() (err error) {
	l.seen = map[string]bool{}
	if l.scale, err = scaleOf(os.Getenv(scaleEnv)); err != nil {
		return err
	}
	l.report.Scale = l.scale
	if l.dir, err = l.place(); err != nil {
		return err
	}
	if err := os.Chmod(l.dir, 0o755); err != nil {
		return err
	}
	l.binary = filepath.Join(l.dir, "cellgate.bin")
	if text, err := exec.Command("go", "build", "-trimpath", "-o", l.binary, "cellgate/appliance/cellgate").CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, text)
	}
	for _, p := range peers {
		sides, err := l.launch(p, p.name)
		if errors.Is(err, errMissing) {
			l.note(p.name + " is not installed: no comparison with it")
			continue
		}
		if err != nil {
			return err
		}
		l.servers = append(l.servers, sides[0].server)
		l.sides = append(l.sides, sides...)
	}
	return nil
}

// peer is a kind of server.
type peer struct {
	name  string
	start launch
}

var peers = []peer{{ours, startCellgate}, {nginx, startNginx}, {bare, startFloor}, {apache, startApache}}

// launch starts a peer in a new folder of that name.
func (l *lab) launch(p peer, name string) ([]side, error) {
	dir := filepath.Join(l.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return p.start(l, dir)
}

// forget removes the folder of a peer that has been stopped.
func (l *lab) forget(name string) { os.RemoveAll(filepath.Join(l.dir, name)) }

// place makes the folder of the run, in memory where that has room.
func (l *lab) place() (string, error) {
	parent := os.Getenv(dirEnv)
	if parent == "" {
		const memory = "/dev/shm"
		var fs syscall.Statfs_t
		if err := syscall.Statfs(memory, &fs); err == nil && int64(fs.Bavail)*fs.Bsize > 8*l.scale.Bulk {
			parent = memory
		} else {
			l.note("/dev/shm has no room; the files are in " + os.TempDir())
		}
	}
	return os.MkdirTemp(parent, "cellgate-bench-")
}

// note is a sentence below the table.
func (l *lab) note(text string) { l.report.Notes = append(l.report.Notes, text) }

// close ends the servers and removes what they left.
func (l *lab) close() error {
	var errs []error
	for _, s := range l.servers {
		errs = append(errs, s.stop())
	}
	if l.dir != "" {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

// of returns the sides with these names that are there, in this order.
func (l *lab) of(names ...string) (sides []side) {
	for _, name := range names {
		if i := slices.IndexFunc(l.sides, func(s side) bool { return s.name == name }); i >= 0 {
			sides = append(sides, l.sides[i])
		}
	}
	return sides
}

// everyone is the box and its peers; everyMode has the box in its default durability too.
var (
	everyone  = []string{ours, nginx, apache, bare}
	everyMode = []string{ours, nginx, apache, bare, synced}
)
