package mounts

import (
	"context"

	"cellgate/internal/fault"
)

// Purge removes name with everything below it, by the backend itself where it can. What is missing is fine, also when it goes meanwhile. By
// hand, names that List leaves out stay, and the folders they are in: NotEmpty.
func Purge(ctx context.Context, b Backend, name string) error {
	p, ok := As[Purger](b)
	if ok {
		err := p.Purge(ctx, name)
		switch fault.KindOf(err) {
		case fault.NotExist:
			return nil
		case fault.Unsupported:
		default:
			return err
		}
	}
	return purge(ctx, b, name)
}

// purge removes what it can and lists the folders that are not empty, in pieces and before it goes on: some backends skip entries when names
// go while they list.
func purge(ctx context.Context, b Backend, name string) error {
	const batch = 1000
	type step struct {
		name   string
		before int // names removed when it was last listed
	}
	todo, removed := []step{{name, -1}}, 0
	for len(todo) > 0 {
		last := len(todo) - 1
		at := todo[last]
		err := b.Remove(ctx, at.name)
		if err == nil {
			removed++
		}
		if err == nil || fault.KindOf(err) == fault.NotExist {
			todo = todo[:last]
			continue
		}
		if fault.KindOf(err) != fault.NotEmpty || at.before == removed { // the latter: it was listed and nothing in it could be removed
			return err
		}
		todo[last].before = removed
		for info, err := range b.List(ctx, at.name) {
			if fault.KindOf(err) == fault.NotExist {
				break
			}
			if err != nil {
				return err
			}
			if todo = append(todo, step{Join(at.name, info.Name), -1}); len(todo) > last+batch {
				break
			}
		}
	}
	return nil
}

// AreaOf returns the Area on the file system that the parent of name lies on, see Partitioned.
func AreaOf(b Backend, name string) string {
	if p, ok := As[Partitioned](b); ok {
		return p.Area(name)
	}
	return Area
}
