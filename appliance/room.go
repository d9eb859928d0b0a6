package appliance

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"cellgate/internal/fault"
)

// reserve is how much of the data volume is kept for what gives space back: each deletion needs a little for its record.
const reserve = 16 << 20

// roomAge is how long "there is room" holds. That there is none holds not at all: as soon as there is, work goes on.
const roomAge = 100 * time.Millisecond

// room watches the volume of the data folder.
type room struct {
	dir string

	mu   sync.Mutex
	seen time.Time // when there was room; guarded by mu
}

// left fails with NoSpace while the volume has less than the reserve, or a twentieth of a small volume.
func (r *room) left() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.seen) < roomAge {
		return nil
	}
	if err := nearlyFull(r.dir); err != nil {
		return err
	}
	r.seen = now
	return nil
}

func nearlyFull(dir string) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return nil // whoever writes will find out
	}
	size, free := fs.Blocks*uint64(fs.Bsize), fs.Bavail*uint64(fs.Bsize)
	switch need := min(reserve, size/20); {
	case free < need:
		return fault.New("appliance.room", "", fault.NoSpace, fmt.Errorf("the data volume has %s left; deleting and reading go on", bytesText(int64(free))))
	case fs.Files > 0 && fs.Ffree < 16:
		return fault.New("appliance.room", "", fault.NoSpace, errors.New("the data volume has no inodes left; deleting and reading go on"))
	}
	return nil
}
