package gateway

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"time"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// Attr is what SetAttr changes of a node.
type Attr struct {
	ModTime time.Time    // zero: as it is
	Mode    *fs.FileMode // permission bits, nil: as they are
}

// posixSpace is the name space of the properties that stand for what a backend does not keep itself.
const posixSpace = "urn:cellgate:posix"

// modeProp is the property of permission bits, in octal.
const modeProp = "mode"

// SetAttr changes attributes of p, all or none. A time that the backend does not keep is Unsupported; permission bits that it does not keep
// become a property of the node. They restrict nobody: rights are a matter of grants.
func (s *Session) SetAttr(ctx context.Context, p Path, a Attr) (err error) {
	o, err := s.begin(ctx, verbSetAttr, p, policy.Modify, policy.Create)
	if err != nil {
		return err
	}
	defer o.end(&err)
	times, ok := mounts.As[mounts.TimeSetter](o.m.Backend)
	if !ok && !a.ModTime.IsZero() {
		return fault.New("gateway.set-attr", p.String(), fault.Unsupported, errors.New("the datasource keeps no times"))
	}
	release, err := o.ds.serial.claim(ctx, span{path: o.at.Path})
	if err != nil {
		return err
	}
	defer release()
	if err := o.again(ctx, policy.Modify, policy.Create); err != nil {
		return err
	}
	info, err := o.changing(ctx, Cond{})
	if err != nil {
		return err
	}
	var props []PropChange
	if a.Mode != nil {
		mode := *a.Mode & fs.ModePerm
		if modes, ok := mounts.As[mounts.ModeSetter](o.m.Backend); ok {
			if err := modes.SetMode(ctx, o.name, mode); err != nil {
				return err
			}
		} else {
			value := strconv.FormatUint(uint64(mode), 8)
			props = []PropChange{{Prop: Prop{Space: posixSpace, Name: modeProp, Value: []byte(value)}}}
		}
	}
	if !a.ModTime.IsZero() {
		if err := times.SetModTime(ctx, o.name, a.ModTime); err != nil {
			return err
		}
	}
	err = o.commit(ctx, func(tx *store.Tx) error {
		if len(props) > 0 {
			if err := o.patch(tx, info, props); err != nil {
				return err
			}
		}
		if a.ModTime.IsZero() {
			return nil
		}
		_, err := tx.Exec(`UPDATE nodes SET mtime = $1 WHERE datasource = $2 AND depth = $3 AND path = $4`,
			a.ModTime.UnixNano(), o.at.Datasource, depthOf(o.at.Path), o.at.Path)
		return err
	})
	if err == nil {
		o.publish(event.Props, o.at, policy.Place{}, info.IsDir(), -1)
	}
	return err
}
