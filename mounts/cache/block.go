package cache

import (
	"container/list"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"cellgate/mounts"
)

const (
	chunk    = 64 << 10 // what is sealed and read from disk in one piece
	overhead = 16       // of a sealed chunk
	together = 4        // chunks are written at once
	share    = 2        // a reader of more than this part of the cache leaves it as it is
	settled  = 5 * time.Second
	pattern  = "blocks-*"
)

// identity is what tells one content of a file from another.
type identity struct {
	tag           string
	change, mtime int64
	size          int64
}

// identify returns the identity of a file's content, and false when the Info does not tell.
func identify(info mounts.Info, now time.Time) (identity, bool) {
	id := identity{tag: info.Tag, size: info.Size}
	if info.Type != mounts.File || info.Size < 0 {
		return id, false
	}
	if id.tag == "" {
		id.change = info.Change
	}
	if id.tag == "" && id.change == 0 {
		if info.ModTime.IsZero() || now.Sub(info.ModTime) < settled { // a change within the grain of the time would not show
			return id, false
		}
		id.mtime = info.ModTime.UnixNano()
	}
	return id, true
}

// blocks are pieces of content in slots of one file.
type blocks struct {
	size   int64 // of a block in the clear
	aead   cipher.AEAD
	file   *os.File
	name   string // of file while it has one
	logger *slog.Logger
	spare  sync.Pool // of *[]byte with room for some sealed chunks

	mu    sync.Mutex // guards all below
	files map[string]*content
	used  *list.List // of stored *block, the last used first
	free  []int64    // slots given back
	next  int64      // the first slot never used
	slots int64
	nonce uint64 // the last one used
	off   bool   // the disk failed
}

// content is one content of a file, by the key of its name.
type content struct {
	key    string
	id     identity
	blocks map[int64]*block // guarded by blocks.mu, as are the fields below
	gone   bool             // another one took its place: nothing is stored any more
}

// block is one block of a content: under way, stored, or only in memory for those who waited for it.
type block struct {
	c     *content
	i     int64
	size  int
	slot  int64
	nonce uint64 // of the first chunk
	pins  int    // readers
	at    *list.Element
	done  chan struct{} // closed when it is there or will not be

	// Written before done is closed.
	err  error
	data []byte // when it could not be stored
}

var errDisk = errors.New("a stored block cannot be read")

func newBlocks(dir string, size, block int64, logger *slog.Logger) (*blocks, error) {
	block = max(block/chunk, 1) * chunk
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return nil, err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return nil, err
		}
	}
	var key [32]byte
	rand.Read(key[:]) // never fails
	c, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(c)
	if err != nil {
		return nil, err
	}
	file, err := os.CreateTemp(dir, pattern) // 0600
	if err != nil {
		return nil, err
	}
	b := &blocks{size: block, aead: aead, file: file, logger: logger, files: map[string]*content{}, used: list.New()}
	b.slots = size / b.slotSize()
	b.spare.New = func() any { buf := make([]byte, 0, together*(chunk+overhead)); return &buf }
	if os.Remove(file.Name()) != nil {
		b.name = file.Name() // a system that keeps open files: at Close, then
	}
	return b, nil
}

func (b *blocks) slotSize() int64 { return b.size / chunk * (chunk + overhead) }

// close gives the disk back. Readers that are left get errors.
func (b *blocks) close() {
	if b == nil {
		return
	}
	b.forget(".")
	b.mu.Lock()
	b.off = true
	b.mu.Unlock()
	b.file.Close()
	if b.name != "" {
		os.Remove(b.name)
	}
}

// forgetFile drops the content of key.
func (b *blocks) forgetFile(key string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.files[key]; c != nil {
		b.drop(c)
	}
}

// forget drops the content of key and of all below it.
func (b *blocks) forget(key string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, c := range b.files {
		if mounts.Below(k, key) {
			b.drop(c)
		}
	}
}

// drop takes a content out. What its readers have pinned stays theirs. The caller holds mu.
func (b *blocks) drop(c *content) {
	if b.files[c.key] == c {
		delete(b.files, c.key)
	}
	c.gone = true
	for _, blk := range c.blocks {
		b.remove(blk)
	}
}

// remove takes a block out; its slot is free when nobody reads it. The caller holds mu.
func (b *blocks) remove(blk *block) {
	delete(blk.c.blocks, blk.i)
	if blk.at == nil {
		return
	}
	b.used.Remove(blk.at)
	blk.at = nil
	if blk.pins == 0 {
		b.free = append(b.free, blk.slot)
	}
	if c := blk.c; len(c.blocks) == 0 && b.files[c.key] == c {
		delete(b.files, c.key)
	}
}

// content returns that of key, which has the identity id from now on.
func (b *blocks) content(key string, id identity) *content {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.files[key]
	if c != nil && c.id == id {
		return c
	}
	if c != nil {
		b.drop(c)
	}
	c = &content{key: key, id: id, blocks: map[int64]*block{}}
	if !b.off {
		b.files[key] = c
	}
	return c
}

// length returns the number of bytes of block i.
func (b *blocks) length(c *content, i int64) int { return int(min(c.id.size-i*b.size, b.size)) }

// acquire pins block i. With mine, it is not there and the caller must fill it; otherwise it is there, or will be when done is closed.
func (b *blocks) acquire(c *content, i int64) (blk *block, mine bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if blk := c.blocks[i]; blk != nil {
		blk.pins++
		if blk.at != nil {
			b.used.MoveToFront(blk.at)
		}
		return blk, false
	}
	blk = &block{c: c, i: i, size: b.length(c, i), pins: 1, done: make(chan struct{})}
	if !c.gone && !b.off {
		c.blocks[i] = blk
		b.files[c.key] = c // it may have been let go when its last block was
	}
	return blk, true
}

// stored pins block i if it is stored, and returns nil otherwise.
func (b *blocks) stored(c *content, i int64) *block {
	b.mu.Lock()
	defer b.mu.Unlock()
	blk := c.blocks[i]
	if blk == nil || blk.at == nil {
		return nil
	}
	blk.pins++
	b.used.MoveToFront(blk.at)
	return blk
}

// known reports whether block i is stored or under way.
func (b *blocks) known(c *content, i int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return c.blocks[i] != nil
}

// fill gives a block that is mine its data, or the reason why there is none. It reports whether data is not used any more.
func (b *blocks) fill(blk *block, data []byte, err error) (stored bool) {
	if err == nil {
		stored = b.store(blk, data)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !stored {
		blk.err = err
		if err == nil {
			blk.data = data
		}
		if blk.c.blocks[blk.i] == blk {
			b.remove(blk)
		}
		if c := blk.c; len(c.blocks) == 0 && b.files[c.key] == c {
			delete(b.files, c.key)
		}
	}
	close(blk.done)
	return stored
}

// store writes a block to a slot, if there is one.
func (b *blocks) store(blk *block, data []byte) bool {
	chunks := uint64((len(data) + chunk - 1) / chunk)
	b.mu.Lock()
	slot, ok := b.slot()
	if !ok || b.off || blk.c.gone {
		if ok {
			b.free = append(b.free, slot)
		}
		b.mu.Unlock()
		return false
	}
	nonce := b.nonce + 1
	b.nonce += chunks
	b.mu.Unlock()

	err := b.write(slot, nonce, data)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil || b.off || blk.c.gone {
		b.free = append(b.free, slot)
		if err != nil {
			b.fail(err)
		}
		return false
	}
	blk.slot, blk.nonce = slot, nonce
	blk.at = b.used.PushFront(blk)
	return true
}

// write seals data into a slot.
func (b *blocks) write(slot int64, nonce uint64, data []byte) error {
	buf := b.spare.Get().(*[]byte)
	defer b.spare.Put(buf)
	for i := 0; i < len(data); {
		at, sealed := slot*b.slotSize()+int64(i/chunk*(chunk+overhead)), *buf
		for end := min(i+together*chunk, len(data)); i < end; i += chunk {
			sealed = b.aead.Seal(sealed, b.nonceOf(nonce+uint64(i/chunk)), data[i:min(i+chunk, end)], nil)
		}
		if _, err := b.file.WriteAt(sealed, at); err != nil {
			return err
		}
	}
	return nil
}

// slot returns a slot to write to, that of the block unused longest when all are taken. The caller holds mu.
func (b *blocks) slot() (int64, bool) {
	if n := len(b.free); n > 0 {
		slot := b.free[n-1]
		b.free = b.free[:n-1]
		return slot, true
	}
	if b.next < b.slots {
		b.next++
		return b.next - 1, true
	}
	at := b.used.Back()
	for range 1000 { // the rest is pinned, too, or might as well be
		if at == nil {
			break
		}
		if blk := at.Value.(*block); blk.pins == 0 {
			b.remove(blk)
			return b.slot()
		}
		at = at.Prev()
	}
	return 0, false
}

// fail turns the cache off. The caller holds mu.
func (b *blocks) fail(err error) {
	if b.off {
		return
	}
	b.off = true
	b.logger.Error("block cache is turned off", "err", err)
	for _, c := range b.files {
		b.drop(c)
	}
	if err := b.file.Truncate(0); err != nil { // give the room back
		b.logger.Warn("block cache cannot be emptied", "err", err)
	}
}

func (b *blocks) release(blk *block) {
	b.mu.Lock()
	defer b.mu.Unlock()
	blk.pins--
	if blk.pins == 0 && blk.at == nil && blk.data == nil && blk.nonce != 0 {
		b.free = append(b.free, blk.slot)
	}
}

// read returns the chunk k of a pinned, stored block in the clear, in buf.
func (b *blocks) read(blk *block, k int, buf []byte) ([]byte, error) {
	n := min(blk.size-k*chunk, chunk) + overhead
	buf = buf[:n]
	_, err := b.file.ReadAt(buf, blk.slot*b.slotSize()+int64(k)*(chunk+overhead))
	if err == nil {
		buf, err = b.aead.Open(buf[:0], b.nonceOf(blk.nonce+uint64(k)), buf, nil)
	}
	if err != nil {
		b.mu.Lock()
		b.fail(errors.Join(errDisk, err))
		b.mu.Unlock()
		return nil, err
	}
	return buf, nil
}

func (b *blocks) nonceOf(n uint64) []byte {
	var nonce [12]byte
	binary.BigEndian.PutUint64(nonce[4:], n)
	return nonce[:]
}
