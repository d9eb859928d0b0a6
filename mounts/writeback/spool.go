package writeback

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	magic       = "CGSPOOL1"
	footer      = 4 + 4 + len(magic) // length and checksum of the manifest
	maxManifest = 64 << 10
	suffix      = ".put"
	unfinished  = "tmp-*"
	aside       = "torn-"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// manifest is what is known of a content in the spool; FORMAT.md describes how it is written.
type manifest struct {
	Name    string      `json:"name"`
	Size    int64       `json:"size"`
	Sum     uint32      `json:"sum"` // CRC-32C of the content
	Mode    fs.FileMode `json:"mode,omitempty"`
	ModTime time.Time   `json:"modTime"`
	Put     time.Time   `json:"put"`
	Tag     string      `json:"tag,omitempty"` // of what it replaces, as far as known
}

// spool is a folder of contents that wait for their upload, each in a file of its own, named by its number.
type spool struct {
	dir    string
	lock   *os.File
	folder *os.File
	logger *slog.Logger

	mu     sync.Mutex      // guards what follows
	seq    uint64          // the last number given out
	gone   map[uint64]bool // contents dropped without an upload, lately
	order  []uint64        // the keys of gone, in order
	group  *group          // the sync that those who come now share
	syncMu sync.Mutex      // held while the folder is synced
}

// openSpool locks the folder and returns what is in it, in the order it was put.
func openSpool(dir string, logger *slog.Logger) (_ *spool, left []*entry, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	s := &spool{dir: dir, logger: logger, gone: map[uint64]bool{}, group: newGroup()}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, nil, err
	}
	err = syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fault.New("mounts/writeback.New", dir, fault.Busy, errors.New("another process uses the spool"))
	}
	if err != nil {
		return nil, nil, err
	}
	if s.folder, err = os.Open(dir); err != nil {
		return nil, nil, err
	}
	tmp, err := filepath.Glob(filepath.Join(dir, unfinished))
	if err != nil {
		return nil, nil, err
	}
	for _, name := range tmp { // of Puts that were never acknowledged
		if err := os.Remove(name); err != nil {
			return nil, nil, err
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		number, ok := strings.CutSuffix(f.Name(), suffix)
		seq, bad := strconv.ParseUint(number, 16, 64)
		if !ok || bad != nil {
			continue
		}
		s.seq = max(s.seq, seq)
		m, err := readSpoolFile(filepath.Join(dir, f.Name()))
		if err != nil {
			if err := s.setAside(seq, err); err != nil {
				return nil, nil, err
			}
			continue
		}
		left = append(left, &entry{manifest: m, seq: seq})
	}
	slices.SortFunc(left, func(a, b *entry) int {
		if a.seq < b.seq {
			return -1
		}
		return 1
	})
	parent, err := os.Open(filepath.Dir(filepath.Clean(dir))) // a new folder must outlive a power cut, too
	if err != nil {
		return nil, nil, err
	}
	defer parent.Close()
	return s, left, errors.Join(parent.Sync(), s.folder.Sync())
}

func (s *spool) close() error {
	if s.folder != nil {
		s.folder.Close()
	}
	if s.lock != nil {
		return s.lock.Close() // and with it the lock goes
	}
	return nil
}

func (s *spool) path(seq uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%016x%s", seq, suffix))
}

func (s *spool) open(seq uint64) (*os.File, error) { return os.Open(s.path(seq)) }

// setAside keeps a file that is damaged, but out of the way.
func (s *spool) setAside(seq uint64, why error) error {
	to := filepath.Join(s.dir, fmt.Sprintf("%s%016x", aside, seq))
	s.logger.Error("a damaged spool file is set aside", "file", to, "err", why)
	return os.Rename(s.path(seq), to)
}

// appendTrailer appends the manifest and the footer, which end a spool file.
func appendTrailer(p []byte, m manifest) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	p = append(p, text...)
	p = binary.BigEndian.AppendUint32(p, uint32(len(text)))
	p = binary.BigEndian.AppendUint32(p, crc32.Checksum(text, castagnoli))
	return append(p, magic...), nil
}

var (
	errNoEnd    = errors.New("the end of the file is missing")
	errManifest = errors.New("the manifest is damaged")
	errContent  = errors.New("the content is damaged")
)

// readSpoolFile returns the manifest of a spool file that is whole.
func readSpoolFile(name string) (manifest, error) {
	f, err := os.Open(name)
	if err != nil {
		return manifest{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return manifest{}, err
	}
	m, err := readManifest(f, st.Size())
	if err != nil {
		return manifest{}, err
	}
	h := crc32.New(castagnoli)
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, m.Size)); err != nil {
		return manifest{}, err
	}
	if h.Sum32() != m.Sum {
		return manifest{}, errContent
	}
	return m, nil
}

// readManifest returns the manifest at the end of a spool file of size bytes.
func readManifest(r io.ReaderAt, size int64) (m manifest, err error) {
	var end [footer]byte
	if size < int64(footer) {
		return m, errNoEnd
	}
	if _, err := r.ReadAt(end[:], size-int64(footer)); err != nil {
		return m, err
	}
	n := int64(binary.BigEndian.Uint32(end[:]))
	if string(end[8:]) != magic || n > maxManifest || n > size-int64(footer) {
		return m, errNoEnd
	}
	text := make([]byte, n)
	if _, err := r.ReadAt(text, size-int64(footer)-n); err != nil {
		return m, err
	}
	if crc32.Checksum(text, castagnoli) != binary.BigEndian.Uint32(end[4:]) {
		return m, errManifest
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, errors.Join(errManifest, err)
	}
	if m.Size != size-int64(footer)-n || mounts.ValidPath(m.Name) != nil || m.Name == "." {
		return m, errManifest
	}
	return m, nil
}

// publish gives a synced file its name in the spool. When it returns, the name is durable, too.
func (s *spool) publish(tmp string) (seq uint64, err error) {
	s.mu.Lock()
	s.seq++
	seq = s.seq
	s.mu.Unlock()
	if err := os.Rename(tmp, s.path(seq)); err != nil {
		return 0, err
	}
	return seq, s.sync()
}

// remove takes a content out that was uploaded or replaced. It is durable after the next sync.
func (s *spool) remove(seq uint64) {
	if err := os.Remove(s.path(seq)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.logger.Error("a spool file cannot be removed and may be uploaded again", "file", s.path(seq), "err", err)
	}
}

// drop is remove for a content that is not to be uploaded.
func (s *spool) drop(seq uint64) {
	s.remove(seq)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone[seq] = true
	if s.order = append(s.order, seq); len(s.order) > maxAliases {
		delete(s.gone, s.order[0])
		s.order = s.order[1:]
	}
}

func (s *spool) dropped(seq uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone[seq]
}

// group is a sync that is not begun yet, with all who wait for it.
type group struct {
	once sync.Once
	err  error
}

func newGroup() *group { return &group{} }

// sync makes all names that were given or taken before durable. Those who come while one sync is under way share the next.
func (s *spool) sync() error {
	s.mu.Lock()
	g := s.group
	s.mu.Unlock()
	g.once.Do(func() {
		s.syncMu.Lock()
		defer s.syncMu.Unlock()
		s.mu.Lock()
		s.group = newGroup() // who comes from now on may be too late for this one
		s.mu.Unlock()
		g.err = s.folder.Sync()
	})
	return g.err
}
