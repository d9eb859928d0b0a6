// Package local is a folder of this machine as a backend.
//
// # Safety
//
// Nothing a name or a symbolic link says leads out of the folder. On Linux every call starts from a descriptor of the folder that was opened
// once, and reaches the parent of the named node by one openat2(2) with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS, so
// that the kernel itself walks and refuses "..", absolute paths and links, however the tree is changed meanwhile. The last segment is then
// used relative to that descriptor by calls that do not follow links (O_NOFOLLOW, AT_SYMLINK_NOFOLLOW). There is no check before a use.
// That is what os.Root does with an openat for each segment, and stricter: os.Root follows links that stay within, here none is followed,
// since rights are decided on names (see mounts.Resolve). Where openat2 is missing or a sandbox forbids it, the walk is done here, with
// openat(O_NOFOLLOW|O_DIRECTORY) for each segment. Other systems use os.Root.
//
// A path walk costs os.Root two system calls a segment; openat2 makes it one a call. Keeping descriptors of parent folders would save that
// too, but a kept folder may have been moved since, so that its name now stands for another: not done.
//
// Devices, sockets and pipes are listed as Other. Files are opened with O_NONBLOCK and looked at before use, so none of them can hang a call.
// /proc and the like are no fit datasource: the size of their files lies.
//
// # Writing
//
// Put writes a file in the folder's Area (made 0700), syncs it, renames it to its place and syncs the parent folder. Below another file
// system that is mounted within the folder, that one's own Area is used: names cannot move between file systems. A sync that fails is
// never repeated on the same file, since the kernel forgets what it could not write: the call fails and the staged file is dropped.
//
// A process that is killed leaves its stage behind, a folder held by flock. The next one to open the datasource removes every stage that
// nobody holds.
//
// A replaced file's permission bits and, where the process may, its owner and group stay; extended attributes, ACLs and other hard links
// stay with the former content. New files are 0640 and new folders 0750 whatever the umask; a parent with the set-group-ID bit gives its group.
package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sort"
	"strconv"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	defaultFileMode = 0o640
	defaultDirMode  = 0o750
	defaultWatches  = 65536
)

// Driver returns the driver "local".
func Driver() mounts.Driver {
	return mounts.Driver{
		Local: true,
		Name:  "local",
		Options: []mounts.Option{
			{Name: "path", Help: "absolute path of the folder", Required: true},
			{Name: "create", Help: `"true" makes the folder when it is missing`},
			{Name: "fileMode", Help: "permission bits of new files, octal; 0640 when absent"},
			{Name: "dirMode", Help: "permission bits of new folders, octal; 0750 when absent"},
			{Name: "watches", Help: "the most folders watched for changes; 65536 when absent, 0 watches none"},
		},
		Open: func(ctx context.Context, cfg mounts.Config) (mounts.Backend, error) {
			s, wrong := parse(cfg)
			if len(wrong) > 0 {
				return nil, fault.New("mounts/local.Open", cfg.Name, fault.Invalid, errors.Join(wrong...))
			}
			b, err := open(ctx, s)
			if err != nil {
				return nil, err // not b: a nil *Backend is no nil Backend
			}
			return b, nil
		},
		Check: func(cfg mounts.Config) []error {
			_, wrong := parse(cfg)
			return wrong
		},
	}
}

// settings are the parsed options of a datasource.
type settings struct {
	name     string
	path     string
	create   bool
	fileMode fs.FileMode
	dirMode  fs.FileMode
	watches  int
	readOnly bool
	unsynced bool
	logger   *slog.Logger
}

// parse reads the options and reports all that is wrong with them.
func parse(cfg mounts.Config) (_ settings, wrong []error) {
	s := settings{
		name: cfg.Name, fileMode: defaultFileMode, dirMode: defaultDirMode, watches: defaultWatches,
		readOnly: cfg.ReadOnly, unsynced: cfg.Unsynced, logger: cfg.Logger,
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	keys := make([]string, 0, len(cfg.Options))
	for key := range cfg.Options {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		var err error
		switch value := cfg.Options[key]; key {
		case "path":
			s.path = value
		case "create":
			s.create, err = strconv.ParseBool(value)
		case "fileMode":
			s.fileMode, err = parseMode(value, 0o600)
		case "dirMode":
			s.dirMode, err = parseMode(value, 0o700)
		case "watches":
			s.watches, err = strconv.Atoi(value)
			if err == nil && s.watches < 0 {
				err = strconv.ErrRange
			}
		default:
			err = errors.New("unknown option")
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("option %q: %w", key, err))
		}
	}
	if !filepath.IsAbs(s.path) {
		wrong = append(wrong, errors.New(`option "path": an absolute path is required`))
	}
	return s, wrong
}

// parseMode reads octal permission bits, which must have need: what is written must be readable again.
func parseMode(value string, need fs.FileMode) (fs.FileMode, error) {
	bits, err := strconv.ParseUint(value, 8, 32)
	if err != nil {
		return 0, err
	}
	mode := fs.FileMode(bits)
	if mode&^fs.ModePerm != 0 {
		return 0, errors.New("permission bits are 0000 to 0777")
	}
	if mode&need != need {
		return 0, fmt.Errorf("the owner needs %#o", uint32(need))
	}
	return mode, nil
}
