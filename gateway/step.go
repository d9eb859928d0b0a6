package gateway

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// deed is what a step does. Rows hold it: a value keeps its meaning.
type deed string

// The deeds. A rename of what was staged or is to go is the rule; the others are for backends across a network, where each rename is a round
// trip more, or no rename is one step.
const (
	doRename deed = ""
	doPut    deed = "put"    // publish at To what only the running operation has: a replay can tell whether it was done, not do it
	doMkdir  deed = "mkdir"  // make the folder To
	doRemove deed = "remove" // delete the file or empty folder From
	doPurge  deed = "purge"  // delete From with all that is in it
)

// stampFolder is the stamp of every folder.
const stampFolder = "folder"

// stampOf tells one content of a name from another as well as the backend lets one.
func stampOf(info mounts.Info, exists bool) string {
	switch {
	case !exists:
		return "-"
	case info.IsDir():
		return stampFolder
	case info.Tag != "":
		return "tag " + info.Tag
	case info.Change != 0:
		return fmt.Sprintf("change %d %d", info.Change, info.Size)
	}
	if info.ModTime.IsZero() {
		return stampSize + strconv.FormatInt(info.Size, 10)
	}
	return fmt.Sprintf("time %d %d", info.ModTime.UnixNano(), info.Size)
}

// stampSize begins the stamp of a file whose time is not known.
const stampSize = "size "

// stamped reports whether a name may be what stamp was made of. One that was made without a time leaves times out.
func stamped(info mounts.Info, exists bool, stamp string) bool {
	if exists && !info.IsDir() && strings.HasPrefix(stamp, stampSize) {
		return stamp == stampSize+strconv.FormatInt(info.Size, 10)
	}
	return stampOf(info, exists) == stamp
}

// do takes a step.
func (s step) do(ctx context.Context, m mounts.Backend) error {
	switch s.Do {
	case doMkdir:
		return m.Mkdir(ctx, s.To)
	case doRemove:
		return m.Remove(ctx, s.From)
	case doPurge:
		return mounts.Purge(ctx, m, s.From)
	case doPut:
		return fault.New("gateway.step", s.To, fault.NotExist, nil) // what was to be put is gone
	}
	return m.Rename(ctx, s.From, s.To)
}

// undo takes a step back, as far as that can be.
func (s step) undo(ctx context.Context, m mounts.Backend) error {
	switch s.Do {
	case doRename:
		return m.Rename(ctx, s.To, s.From)
	case doMkdir:
		return m.Remove(ctx, s.To)
	}
	return fault.New("gateway.step", s.From, fault.Unsupported, nil)
}

// landed reports whether a step that failed has taken effect. An error says that the backend does not tell.
func (s step) landed(ctx context.Context, m mounts.Backend) (bool, error) {
	from, there, err := look(ctx, m, s.source())
	if err != nil {
		return false, err
	}
	switch s.Do {
	case doPut:
		return !stamped(from, there, s.Stamp), nil
	case doMkdir:
		return there && from.IsDir(), nil
	case doRemove, doPurge:
		return !there, nil
	}
	if there {
		return false, nil
	}
	to, there, err := look(ctx, m, s.To)
	return err == nil && there && to.ID == s.ID, err
}

// half reports whether a step that failed and is not done may have been begun: one that is many on this backend.
func (s step) half(ctx context.Context, m *mounted) bool {
	switch {
	case s.Do == doPurge:
		return true
	case s.Do != doRename || m.features.Rename == mounts.Native || s.Stamp != stampFolder:
		return false
	}
	_, there, err := look(ctx, m, s.To)
	return there || err != nil
}

// source is the name that shows whether a step was taken.
func (s step) source() string {
	if s.Do == doPut || s.Do == doMkdir {
		return s.To
	}
	return s.From
}

// look is Stat for which a missing name is no error. It asks the backend itself.
func look(ctx context.Context, m mounts.Backend, name string) (info mounts.Info, there bool, err error) {
	info, err = m.Stat(fresh(ctx), name)
	switch fault.KindOf(err) {
	case fault.NotExist, fault.NotDir:
		return info, false, nil
	}
	return info, err == nil, err
}

// redo does what is outstanding of steps and reports whether all are done in the end. Where a step can no longer be done, since the node it
// is about has gone or its target is taken, those before it are undone.
func redo(ctx context.Context, m mounts.Backend, steps []step) (finished bool, err error) {
	// The last step that is done tells that all before it are, even where what they put aside has been deleted since.
	next := len(steps)
	for ; next > 0; next-- {
		done, err := steps[next-1].isDone(ctx, m)
		if err != nil {
			return false, err
		}
		if done {
			break
		}
	}
	for i := next; i < len(steps); i++ {
		there, err := steps[i].canBeDone(ctx, m)
		if err == nil && there {
			err = steps[i].again(ctx, m)
		}
		if err != nil && passing(err) {
			return false, err
		}
		if err == nil && there {
			continue
		}
		for _, s := range slices.Backward(steps[:i]) {
			if s.Do != doRename {
				continue
			}
			if back, err := isAt(ctx, m, s.To, s, false); err == nil && back {
				if err := m.Rename(ctx, s.To, s.From); err != nil && passing(err) {
					return false, err
				}
			}
		}
		return false, nil
	}
	return true, nil
}

// again takes a step that may have been taken in part.
func (s step) again(ctx context.Context, m mounts.Backend) error {
	if s.Do == doRename {
		if r, ok := mounts.As[mounts.Resumer](m); ok {
			return r.ResumeRename(ctx, s.From, s.To)
		}
	}
	return s.do(ctx, m)
}

// canBeDone reports whether what a step needs is still what it was when the step was written down.
func (s step) canBeDone(ctx context.Context, m mounts.Backend) (bool, error) {
	switch s.Do {
	case doPut:
		return false, nil
	case doMkdir:
		return true, nil
	case doPurge:
		return isAt(ctx, m, s.From, s, false)
	}
	return isAt(ctx, m, s.From, s, true)
}

// isDone reports whether a step has been taken. What was put aside may have been deleted since, which happens only after the last step.
func (s step) isDone(ctx context.Context, m mounts.Backend) (bool, error) {
	if s.Do != doRename {
		return s.landed(ctx, m)
	}
	// Without an id, whatever is at To may be what was there before: only that From has gone tells.
	done, err := isAt(ctx, m, s.To, s, false)
	if err != nil || done && s.ID != 0 || !done && !isDiscarded(s.To) {
		return done, err
	}
	there, err := isAt(ctx, m, s.From, s, false)
	return err == nil && !there, err
}

// isAt reports whether the node that a step moves is at name; with same, as it was when the step was written down.
func isAt(ctx context.Context, m mounts.Backend, name string, s step, same bool) (bool, error) {
	info, err := m.Stat(ctx, name)
	if err != nil {
		if passing(err) {
			return false, err
		}
		return false, nil
	}
	if s.ID != 0 && info.ID != s.ID {
		return false, nil
	}
	if s.ID == 0 && s.Stamp != "" && same {
		return stamped(info, true, s.Stamp), nil
	}
	return !same || s.Change == 0 || info.Change == s.Change, nil
}
