package sftp

import (
	"encoding/binary"
	"errors"
	"math"
	"time"

	"cellgate/gateway"
)

// Packet types of draft-ietf-secsh-filexfer-02 §3.
const (
	typeInit     = 1
	typeVersion  = 2
	typeOpen     = 3
	typeClose    = 4
	typeRead     = 5
	typeWrite    = 6
	typeLstat    = 7
	typeFstat    = 8
	typeSetstat  = 9
	typeFsetstat = 10
	typeOpendir  = 11
	typeReaddir  = 12
	typeRemove   = 13
	typeMkdir    = 14
	typeRmdir    = 15
	typeRealpath = 16
	typeStat     = 17
	typeRename   = 18
	typeReadlink = 19
	typeSymlink  = 20
	typeStatus   = 101
	typeHandle   = 102
	typeData     = 103
	typeName     = 104
	typeAttrs    = 105
	typeExtended = 200
	typeExtReply = 201
)

// Flags of an open, §6.3, and of attributes, §5.
const (
	openRead   = 1
	openWrite  = 2
	openAppend = 4
	openCreate = 8
	openTrunc  = 16
	openExcl   = 32

	hasSize   = 1
	hasOwner  = 2
	hasMode   = 4
	hasTimes  = 8
	hasExtras = 1 << 31
)

// Bits of a mode, as POSIX has them.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
)

const (
	protocolVersion = 3
	maxPacket       = 256<<10 + 1<<10 // of a request; OpenSSH stops at 256 KiB
	maxOther        = 64 << 10        // of a request that is no write
	maxData         = 255 << 10       // of a read or write, as OpenSSH has it
	sayPacket       = 256 << 10       // what limits@openssh.com is told
	handleSize      = 4
	dataHead        = 4 + 1 + 4 + 4 // of a reply with data: length, type, id, length of the data
)

var (
	errMalformed = errors.New("a malformed packet")
	errLong      = errors.New("a packet that is too long")
)

// input reads the fields of a request. After a field that is not there, bad is set and every field is zero.
type input struct {
	b   []byte
	bad bool
}

func (i *input) u32() uint32 {
	if len(i.b) < 4 {
		i.bad, i.b = true, nil
		return 0
	}
	v := binary.BigEndian.Uint32(i.b)
	i.b = i.b[4:]
	return v
}

func (i *input) u64() uint64 {
	if len(i.b) < 8 {
		i.bad, i.b = true, nil
		return 0
	}
	v := binary.BigEndian.Uint64(i.b)
	i.b = i.b[8:]
	return v
}

func (i *input) bytes() []byte {
	n := i.u32()
	if uint64(n) > uint64(len(i.b)) {
		i.bad, i.b = true, nil
		return nil
	}
	v := i.b[:n:n]
	i.b = i.b[n:]
	return v
}

func (i *input) str() string { return string(i.bytes()) }

// offset reads one that an int64 can hold.
func (i *input) offset() int64 {
	v := i.u64()
	if v > math.MaxInt64 {
		i.bad = true
		return 0
	}
	return int64(v)
}

// handle reads the name of a handle. 0 is nobody's.
func (i *input) handle() uint32 {
	b := i.bytes()
	if len(b) != handleSize {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// wishes are attributes as a client sends them. Owners and extensions are read over.
type wishes struct {
	flags uint32
	size  int64
	mode  uint32
	mtime uint32
}

func (i *input) attrs() (w wishes) {
	w.flags = i.u32()
	if w.flags&hasSize != 0 {
		w.size = i.offset()
	}
	if w.flags&hasOwner != 0 {
		i.u64()
	}
	if w.flags&hasMode != 0 {
		w.mode = i.u32()
	}
	if w.flags&hasTimes != 0 {
		i.u32() // of the last access: nobody keeps it
		w.mtime = i.u32()
	}
	if w.flags&hasExtras != 0 {
		for n := i.u32(); n > 0 && !i.bad; n-- {
			i.bytes()
			i.bytes()
		}
	}
	return w
}

// reply is an answer under construction. Its length is filled in by done.
type reply []byte

// answer begins a reply to the request id.
func answer(typ byte, id uint32, room int) reply {
	p := make(reply, 5, 9+room)
	p[4] = typ
	return p.u32(id)
}

func (p reply) u32(v uint32) reply { return binary.BigEndian.AppendUint32(p, v) }
func (p reply) u64(v uint64) reply { return binary.BigEndian.AppendUint64(p, v) }

func (p reply) str(s string) reply { return append(p.u32(uint32(len(s))), s...) }

func (p reply) done() reply {
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	return p
}

// owner is the uid and gid that every node has.
const owner = 1000

// attrs appends what a node is.
func (p reply) attrs(i gateway.Info) reply {
	flags := uint32(hasSize | hasOwner | hasMode)
	if !i.ModTime.IsZero() {
		flags |= hasTimes
	}
	p = p.u32(flags).u64(sizeOf(i)).u32(owner).u32(owner).u32(modeOf(i))
	if flags&hasTimes != 0 {
		t := seconds(i.ModTime)
		p = p.u32(t).u32(t)
	}
	return p
}

func sizeOf(i gateway.Info) uint64 {
	if i.Target != "" {
		return uint64(len(i.Target))
	}
	return uint64(max(i.Size, 0))
}

// modeOf returns type and permission bits. Where nobody has set any, they are the usual ones.
func modeOf(i gateway.Info) uint32 {
	kind, usual := uint32(modeFile), uint32(0o644)
	switch {
	case i.Target != "":
		return modeLink | 0o777
	case i.Dir:
		kind, usual = modeDir, 0o755
	}
	if i.Mode != 0 {
		usual = uint32(i.Mode.Perm())
	}
	return kind | usual
}

// seconds clamps a time to what version 3 can say: whole seconds from 1970 to 2106.
func seconds(t time.Time) uint32 {
	return uint32(min(max(t.Unix(), 0), math.MaxUint32))
}
