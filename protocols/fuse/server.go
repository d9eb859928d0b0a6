package fuse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cellgate/gateway"
	"cellgate/gateway/event"
	"cellgate/policy"
)

// Config is what a mount is made of. Session is required.
type Config struct {
	Session    *gateway.Session // the user's tree
	Credential string           // how the user was authenticated, for conditions of policies
	// Events are the core's. Nil: what happens through other doors is seen when the timeouts have passed.
	Events *event.Bus
	// Place says where a path of the user's tree lies, as gateway.Gateway.Place does. Events are told by places, and files that lie on
	// different datasources cannot be moved or linked by one step. Nil: nothing is known of that.
	Place func(gateway.Path) (policy.Place, error)

	ReadOnly      bool
	AllowOther    bool   // others than UID may enter, too; by default not even root
	UID, GID      uint32 // who everything belongs to; unless we are root it should be ourselves
	IgnoreOwners  bool   // chown succeeds and does nothing, which root's tar and rsync -a want; by default it fails with EPERM
	NoPassthrough bool   // the kernel never reads or writes local files without asking, so that revoked rights end open files
	WriteBack     bool   // the kernel collects small writes; only for mounts whose files nobody else changes

	EntryTimeout    time.Duration // how long the kernel remembers names, 1 s
	AttrTimeout     time.Duration // and attributes, 1 s
	NegativeTimeout time.Duration // and that there is nothing, 1 s
	Grace           time.Duration // how long the core may go on when the caller was interrupted, 1 s
	UnmountTimeout  time.Duration // how long Unmount waits for open files before it takes the mount away from those who have them, 10 s
	Spool           string        // folder for the content of files that are deleted while open; empty: that of temporary files
	SpoolBytes      int64         // how large such a file may be, 4 GiB; larger ones cannot be read on

	Logger *slog.Logger // nil discards
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.EntryTimeout, time.Second}, {&c.AttrTimeout, time.Second}, {&c.NegativeTimeout, time.Second},
		{&c.Grace, time.Second}, {&c.UnmountTimeout, 10 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if c.SpoolBytes <= 0 {
		c.SpoolBytes = 4 << 30
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Server is a mounted tree.
type Server struct {
	fs  *fsys
	dir string
	dev string // "major:minor"

	stop sync.Mutex // one Unmount at a time
	over sync.Once
	done chan struct{} // closed when everything is published and nobody is served any more
}

// maxWrite is the largest request of the kernel.
const maxWrite = 1 << 20

// readAhead is what the kernel reads ahead, in KiB, where we may say so.
const readAhead = 1024

// Mount mounts the tree on the folder dir. What an earlier process has left mounted there without serving it is taken away first.
func Mount(dir string, cfg Config) (*Server, error) {
	if cfg.Session == nil {
		return nil, errors.New("fuse: no session")
	}
	cfg.setDefaults()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := clean(dir); err != nil {
		return nil, fmt.Errorf("fuse: %s: %w", dir, err)
	}
	s := &Server{fs: newFsys(cfg), dir: dir, done: make(chan struct{})}
	root := os.Geteuid() == 0
	opt := &gofuse.MountOptions{
		Name: "cellgate", FsName: "cellgate:" + fsName(cfg.Session.Subject().Login),
		AllowOther: cfg.AllowOther, Options: []string{"default_permissions"}, EnableLocks: true, MaxWrite: maxWrite, MaxReadAhead: maxWrite,
		MaxBackground: 64, SyncRead: true, DirectMountStrict: root, DirectMountFlags: unix.MS_NOSUID | unix.MS_NODEV,
		// Without the last the kernel asks for security.capability before every single write.
		ExtraCapabilities: gofuse.CAP_ATOMIC_O_TRUNC | gofuse.CAP_READDIRPLUS_AUTO | gofuse.CAP_HANDLE_KILLPRIV_V2,
		Logger:            log.New(logWriter{cfg.Logger}, "", 0),
	}
	switch {
	case !root:
		opt.Options = append(opt.Options, "nosuid", "nodev")
	case !cfg.AllowOther:
		opt.Options = append(opt.Options, "user_id="+strconv.FormatUint(uint64(cfg.UID), 10), "group_id="+strconv.FormatUint(uint64(cfg.GID), 10))
	}
	if cfg.ReadOnly {
		opt.DirectMountFlags |= unix.MS_RDONLY
		if !root {
			opt.Options = append(opt.Options, "ro")
		}
	}
	if cfg.WriteBack {
		opt.ExtraCapabilities |= gofuse.CAP_WRITEBACK_CACHE
	}
	srv, err := gofuse.NewServer(s.fs, dir, opt)
	if err != nil {
		return nil, fmt.Errorf("fuse: mount %s: %w", dir, err)
	}
	s.dev = deviceOf(dir)
	if root && s.dev != "" {
		// Best effort: without it sequential reads of what the kernel cannot pass through take more requests.
		if err := os.WriteFile("/sys/class/bdi/"+s.dev+"/read_ahead_kb", []byte(strconv.Itoa(readAhead)), 0); err != nil {
			cfg.Logger.Debug("read-ahead stays as it is", "err", err)
		}
	}
	s.fs.watch()
	go srv.Serve()
	// The kernel is made to ask whether files can be polled, once and now: should this process ever open a file on its own mount, the runtime
	// would wait for the answer and keep everybody from giving it.
	if err := srv.WaitMount(); err != nil {
		cfg.Logger.Debug("the mount is not for this process", "err", err)
	}
	go func() {
		srv.Wait()
		s.finish()
	}()
	return s, nil
}

// finish ends what serves the mount.
func (s *Server) finish() {
	s.over.Do(func() {
		s.fs.shutdown()
		close(s.done)
	})
}

// fsName makes of a login a word that mount options can carry.
func fsName(login string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == ',' || r == '\\' || r > '~' {
			return '_'
		}
		return r
	}, login)
}

// clean takes a mount away that nobody serves any more, as one of a process that was killed.
func clean(dir string) error {
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	for tries := 0; errors.Is(err, syscall.ENOTCONN) && tries < 8; tries++ {
		if err = unmount(dir, true); err != nil {
			return err
		}
		err = unix.Stat(dir, &st)
	}
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return syscall.ENOTDIR
	}
	return err
}

// unmount takes a mount away; a lazy one at once for all who come, and when the last has left for those who are there.
func unmount(dir string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(dir, flags)
	if err != syscall.EPERM {
		return err
	}
	args := []string{"-u", dir}
	if lazy {
		args = []string{"-u", "-z", dir}
	}
	if out, err := exec.Command("fusermount3", args...).CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte("busy")) {
			return syscall.EBUSY
		}
		return fmt.Errorf("fusermount3: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// deviceOf returns the device number of what is mounted on dir, "" when it cannot be told. Asking dir itself would ask us.
func deviceOf(dir string) string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(dir)
	dev := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// proc(5): id, parent, major:minor, root, mount point, …
		if w := strings.Fields(lines.Text()); len(w) > 4 && w[4] == escaped {
			dev = w[2]
		}
	}
	return dev
}

// Wait returns when the tree has been unmounted, by whomever, and all that was written is published or has failed to be.
func (s *Server) Wait() { <-s.done }

// Unmount unmounts the tree. While files are open it waits, up to the timeout; then it publishes what was written and takes the mount away
// from those who still use it. It works whatever the datasources do.
func (s *Server) Unmount() error {
	s.stop.Lock()
	defer s.stop.Unlock()
	if err := s.unmount(); err != nil {
		return err
	}
	<-s.done
	return nil
}

func (s *Server) unmount() error {
	deadline := time.Now().Add(s.fs.cfg.UnmountTimeout)
	for {
		select {
		case <-s.done: // somebody else did
			return nil
		default:
		}
		err := unmount(s.dir, false)
		switch {
		case err == nil || errors.Is(err, syscall.EINVAL): // EINVAL: nothing is mounted there any more
			return nil
		case !errors.Is(err, syscall.EBUSY):
			return fmt.Errorf("fuse: unmount %s: %w", s.dir, err)
		}
		if time.Now().After(deadline) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.fs.cfg.UnmountTimeout)
	s.fs.publishAll(ctx)
	cancel()
	if err := unmount(s.dir, true); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("fuse: unmount %s: %w", s.dir, err)
	}
	s.fs.end()
	s.abort()
	s.finish() // where the connection cannot be aborted, those who have files open get errors until they close them
	return nil
}

// abort ends the connection of those who still have something open.
func (s *Server) abort() {
	_, minor, ok := strings.Cut(s.dev, ":")
	if !ok {
		return
	}
	if err := os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0); err != nil {
		s.fs.cfg.Logger.Warn("files of the mount stay open until their processes end", "dir", s.dir, "err", err)
	}
}

// logWriter hands what go-fuse has to say to our log.
type logWriter struct{ log *slog.Logger }

// Write implements io.Writer.
func (w logWriter) Write(p []byte) (int, error) {
	w.log.Warn("go-fuse", "says", strings.TrimSpace(string(p)))
	return len(p), nil
}
