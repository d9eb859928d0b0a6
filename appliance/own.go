package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/all"
)

// drivers is the table of drivers for a box with this data folder: no folder of this machine may be, hold or lie in it, or users would get at
// the box's keys and its database.
func drivers(data string) []mounts.Driver {
	table := all.Drivers()
	for i, d := range table {
		if d.Name != "local" {
			continue
		}
		table[i].Check = func(cfg mounts.Config) (errs []error) {
			if d.Check != nil {
				errs = d.Check(cfg)
			}
			if err := outside(cfg.Options["path"], data); err != nil {
				errs = append(errs, err)
			}
			return errs
		}
		table[i].Open = func(ctx context.Context, cfg mounts.Config) (mounts.Backend, error) {
			if err := outside(cfg.Options["path"], data); err != nil {
				return nil, fault.New("appliance.drivers", cfg.Name, fault.Invalid, err)
			}
			return d.Open(ctx, cfg)
		}
	}
	return table
}

// outside fails when path and the data folder have anything to do with each other, whatever links lead there.
func outside(path, data string) error {
	if !filepath.IsAbs(path) {
		return nil // the driver refuses it
	}
	data, err := filepath.Abs(data)
	if err != nil {
		return err
	}
	path, data = real(path), real(data)
	word := ""
	switch in, holds := below(path, data), below(data, path); {
	case in && holds:
		word = "is"
	case in:
		word = "lies in"
	case holds:
		word = "holds"
	default:
		return nil
	}
	return fmt.Errorf("%s %s the data folder %s, where the box keeps its keys; share another folder", path, word, data)
}

// real returns path without symbolic links, as far as it exists.
func real(path string) string {
	to, err := filepath.EvalSymlinks(path)
	if err == nil {
		return to
	}
	if up := filepath.Dir(path); up != path && errors.Is(err, fs.ErrNotExist) {
		return filepath.Join(real(up), filepath.Base(path))
	}
	return path
}

// below reports whether path is top or lies in it. A folder mounted at two places is one.
func below(path, top string) bool {
	want, err := os.Stat(top)
	for ; ; path = filepath.Dir(path) {
		if path == top {
			return true
		}
		if got, e := os.Stat(path); e == nil && err == nil && os.SameFile(got, want) {
			return true
		}
		if path == filepath.Dir(path) {
			return false
		}
	}
}
