//go:build linux && !portable

package local

import (
	"cmp"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/mounts"
)

// partitions is what is mounted below the datasource.
type partitions struct {
	read   time.Time
	points []string    // mount points as names in the datasource, the longest first; some may be no valid names
	areas  []partition // of those that users can reach, the longest first
}

type partition struct{ point, area string }

const partitionsLast = 2 * time.Second

// Area implements mounts.Partitioned.
func (b *Backend) Area(name string) string {
	areas := b.partitions(partitionsLast).areas
	if len(areas) == 0 {
		return mounts.Area
	}
	dir, _ := mounts.Split(name)
	for _, p := range areas {
		if mounts.Below(dir, p.point) {
			return p.area
		}
	}
	return mounts.Area
}

// Areas implements mounts.Partitioned.
func (b *Backend) Areas() []string {
	all := []string{mounts.Area}
	for _, p := range b.partitions(0).areas {
		if !b.isFile(p.point) {
			all = append(all, p.area)
		}
	}
	return all
}

// isFile reports whether the mount point is a file with another bound over it, which has no room for an Area.
func (b *Backend) isFile(point string) bool {
	if !b.gate.enter() {
		return false
	}
	defer b.gate.leave()
	fd, err := b.open(point, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		unix.Close(fd)
	}
	return err == unix.ENOTDIR
}

// partitions returns what is mounted below, as of no longer ago than age. What cannot be read anew stays as it was.
func (b *Backend) partitions(age time.Duration) *partitions {
	if p := b.parts.Load(); p != nil && time.Since(p.read) < age {
		return p
	}
	b.partsMu.Lock()
	defer b.partsMu.Unlock()
	old := b.parts.Load()
	if old != nil && time.Since(old.read) < age {
		return old
	}
	p := &partitions{read: time.Now()}
	if info, err := os.ReadFile("/proc/self/mountinfo"); err == nil && b.real != "" {
		p.points = mountsBelow(string(info), b.real, b.mount)
		for _, point := range p.points {
			if mounts.ValidPath(point) == nil && !mounts.InArea(point) {
				p.areas = append(p.areas, partition{point, mounts.Join(point, mounts.Area)})
			}
		}
	} else if old != nil {
		p.points, p.areas = old.points, old.areas
	}
	b.parts.Store(p)
	return p
}

// mountsBelow returns the mount points strictly below the folder at path, which lies on mount root, relative to it and the longest first.
// info is the text of proc_pid_mountinfo(5). Left out is what was covered by a later mount on itself or above it.
func mountsBelow(info, path string, root uint64) []string {
	type mount struct {
		id, parent uint64
		point      string
	}
	var found []mount
	known := false // the kernel told which mount the folder lies on
	prefix := strings.TrimSuffix(path, "/") + "/"
	for line := range strings.Lines(info) {
		f := strings.SplitN(line, " ", 6)
		if len(f) < 6 {
			continue
		}
		id, _ := strconv.ParseUint(f[0], 10, 64)
		parent, _ := strconv.ParseUint(f[1], 10, 64)
		known = known || id == root
		if point, below := strings.CutPrefix(unescape(f[4]), prefix); below && point != "" {
			found = append(found, mount{id, parent, point})
		}
	}
	slices.SortStableFunc(found, func(a, b mount) int {
		return cmp.Or(len(a.point)-len(b.point), strings.Compare(a.point, b.point))
	})
	var seen []mount // the uppermost mount of each point that can be reached
	for i := 0; i < len(found); {
		end := i + 1
		for end < len(found) && found[end].point == found[i].point {
			end++
		}
		stack, under, anyhow := found[i:end], root, !known
		for _, m := range slices.Backward(seen) {
			if mounts.Below(stack[0].point, m.point) {
				under, anyhow = m.id, false
				break
			}
		}
		top := mount{}
		for more := true; more; {
			more = false
			for _, m := range stack {
				if m.parent == under || anyhow && m.id != m.parent {
					top, under, anyhow, more = m, m.id, false, true
				}
			}
		}
		if top.id != 0 {
			seen = append(seen, top)
		}
		i = end
	}
	slices.Reverse(seen)
	points := make([]string, len(seen))
	for i, m := range seen {
		points[i] = m.point
	}
	return points
}

// unescape turns \040 and the like into the bytes they stand for.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
