package sftp

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"math"
	"time"

	"cellgate/mounts"
)

// Packet types of draft-ietf-secsh-filexfer-02 §3, those that this package writes or reads itself.
const (
	typeInit     = 1
	typeVersion  = 2
	typeOpen     = 3
	typeClose    = 4
	typeRead     = 5
	typeWrite    = 6
	typeLstat    = 7
	typeFstat    = 8
	typeFsetstat = 10
	typeOpendir  = 11
	typeReaddir  = 12
	typeRemove   = 13
	typeMkdir    = 14
	typeRmdir    = 15
	typeRename   = 18
	typeReadlink = 19
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
	openCreate = 8
	openExcl   = 32

	hasSize   = 1
	hasOwner  = 2
	hasMode   = 4
	hasTimes  = 8
	hasExtras = 1 << 31
)

const (
	headerSize = 4 + 1 + 4             // length, type, id
	maxPacket  = 256<<10 + 1<<10       // no server sends more: OpenSSH stops at 256 KiB
	maxSeconds = int64(math.MaxUint32) // of times, which end in 2106
)

var errShort = errors.New("a packet of the server is malformed")

// packet is a request under construction. Its length and id are filled in when it is sent.
type packet []byte

func request(typ byte, room int) packet {
	p := make(packet, headerSize, headerSize+room)
	p[4] = typ
	return p
}

func (p packet) u32(v uint32) packet { return binary.BigEndian.AppendUint32(p, v) }
func (p packet) u64(v uint64) packet { return binary.BigEndian.AppendUint64(p, v) }
func (p packet) str(s string) packet { return append(p.u32(uint32(len(s))), s...) }

// simple is a request whose arguments are strings.
func simple(typ byte, args ...string) packet {
	room := 8
	for _, a := range args {
		room += 4 + len(a)
	}
	p := request(typ, room)
	for _, a := range args {
		p = p.str(a)
	}
	return p
}

// wishes are attributes to be set; a field that is nil stays.
type wishes struct {
	mode  *fs.FileMode
	times *[2]uint32 // access, modification
}

func (p packet) wishes(w wishes) packet {
	var flags uint32
	if w.mode != nil {
		flags |= hasMode
	}
	if w.times != nil {
		flags |= hasTimes
	}
	p = p.u32(flags)
	if w.mode != nil {
		p = p.u32(uint32(w.mode.Perm()))
	}
	if w.times != nil {
		p = p.u32(w.times[0]).u32(w.times[1])
	}
	return p
}

// input reads the fields of a reply. After a field that is not there, bad is set and every field is zero.
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
	hi := i.u32()
	return uint64(hi)<<32 | uint64(i.u32())
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

// attrs is what a server says about a node.
type attrs struct {
	flags          uint32
	size           uint64
	uid, gid, mode uint32
	atime, mtime   uint32
}

func (i *input) attrs() (a attrs) {
	a.flags = i.u32()
	if a.flags&hasSize != 0 {
		a.size = i.u64()
	}
	if a.flags&hasOwner != 0 {
		a.uid, a.gid = i.u32(), i.u32()
	}
	if a.flags&hasMode != 0 {
		a.mode = i.u32()
	}
	if a.flags&hasTimes != 0 {
		a.atime, a.mtime = i.u32(), i.u32()
	}
	if a.flags&hasExtras != 0 {
		for n := i.u32(); n > 0 && !i.bad; n-- {
			i.bytes()
			i.bytes()
		}
	}
	return a
}

// entry is one name of a NAME reply.
type entry struct {
	name  string
	attrs attrs
}

func (i *input) entries() []entry {
	n := i.u32()
	if uint64(n) > uint64(len(i.b))/12 { // two lengths and flags at least
		i.bad = true
		return nil
	}
	list := make([]entry, 0, n)
	for range n {
		e := entry{name: string(i.bytes())}
		i.bytes() // the line of "ls -l", for people
		e.attrs = i.attrs()
		if i.bad {
			return nil
		}
		list = append(list, e)
	}
	return list
}

// sound reports whether the body of a reply, without its id, is what its type demands, and returns it in the full form of the protocol: some
// servers leave the texts of a STATUS out.
func sound(typ byte, body []byte) ([]byte, bool) {
	in := input{b: body}
	switch typ {
	case typeStatus:
		in.u32()
		if !in.bad && len(in.b) == 0 {
			return append(body[:len(body):len(body)], 0, 0, 0, 0, 0, 0, 0, 0), true
		}
		in.bytes()
		if !in.bad && len(in.b) == 0 {
			return append(body[:len(body):len(body)], 0, 0, 0, 0), true
		}
		in.bytes()
	case typeHandle, typeData:
		in.bytes()
	case typeName:
		in.entries()
	case typeAttrs:
		in.attrs()
	case typeExtReply: // statvfs: eleven numbers
		return body, len(body) >= 88
	default:
		return nil, false
	}
	return body, !in.bad
}

// Modes of POSIX, of which a server tells the type of a node.
const (
	modeType    = 0o170000
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeLink    = 0o120000
)

func (a attrs) typ() mounts.Type {
	switch a.mode & modeType {
	case modeDir:
		return mounts.Dir
	case modeRegular:
		return mounts.File
	case modeLink:
		return mounts.Symlink
	}
	return mounts.Other // also when it does not say: it might be a link
}

// info is a as the gateway tells it. A size beyond all measure is unknown.
func (a attrs) info(name string) mounts.Info {
	i := mounts.Info{Name: name, Type: a.typ(), Mode: fs.FileMode(a.mode & 0o777)}
	if i.Type == mounts.File {
		i.Size = a.length()
	}
	if a.flags&hasTimes != 0 {
		i.ModTime = time.Unix(int64(a.mtime), 0).UTC()
	}
	return i
}

// length is the size, -1 when unknown.
func (a attrs) length() int64 {
	if a.flags&hasSize == 0 || a.size > math.MaxInt64 {
		return -1
	}
	return int64(a.size)
}
