package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"slices"

	"cellgate/internal/fault"
)

// backupReader reads a backup and digests what it has read. Nothing it yields is to be trusted before end has returned nil.
type backupReader struct {
	r   *bufio.Reader
	sum hash.Hash
	few []byte // read but not yet digested: bytes come one by one
}

func newBackupReader(r io.Reader) *backupReader {
	return &backupReader{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New(), few: make([]byte, 0, 4096)}
}

// corrupt is the fault of a stream that is not a whole and unchanged backup. An error of the reader below keeps its kind.
func corrupt(err error) error {
	if f := (*fault.Error)(nil); errors.As(err, &f) {
		return err
	}
	kind := fault.KindOf(err)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the backup is cut off")
	}
	if kind == fault.Internal {
		kind = fault.Corrupt
	}
	return fault.New("store.Restore", "", kind, err)
}

func (b *backupReader) digest() {
	b.sum.Write(b.few)
	b.few = b.few[:0]
}

// ReadByte makes it an io.ByteReader, for the variable-length integers.
func (b *backupReader) ReadByte() (byte, error) {
	c, err := b.r.ReadByte()
	if err != nil {
		return 0, err
	}
	if len(b.few) == cap(b.few) {
		b.digest()
	}
	b.few = append(b.few, c)
	return c, nil
}

// bytes reads a length and as many bytes. Memory grows with what comes, not with what the length promises.
func (b *backupReader) bytes(most uint64) ([]byte, error) {
	n, err := b.uint(most)
	if err != nil {
		return nil, err
	}
	b.digest()
	if n <= 64<<10 {
		p := make([]byte, n)
		if _, err := io.ReadFull(b.r, p); err != nil {
			return nil, corrupt(err)
		}
		b.sum.Write(p)
		return p, nil
	}
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, b.r, int64(n)); err != nil {
		return nil, corrupt(err)
	}
	b.sum.Write(buf.Bytes())
	return buf.Bytes(), nil
}

func (b *backupReader) uint(most uint64) (uint64, error) {
	n, err := binary.ReadUvarint(b)
	if err == nil && n > most {
		err = fmt.Errorf("%d is over %d", n, most)
	}
	if err != nil {
		return 0, corrupt(err)
	}
	return n, nil
}

// header reads the first line and the version of the schema.
func (b *backupReader) header() (version int64, err error) {
	line := make([]byte, len(backupMagic))
	if _, err := io.ReadFull(b.r, line); err != nil {
		return 0, corrupt(err)
	}
	if string(line) != backupMagic {
		return 0, corrupt(errors.New("not a backup of cellgate, or of a format this version does not know"))
	}
	b.sum.Write(line)
	v, err := b.uint(math.MaxInt32)
	return int64(v), err
}

// tables reads the rows of the known tables, hands them to insert in batches of bounded size, and checks the end of the stream.
func (b *backupReader) tables(known []table, insert func(head string, rows [][]any) error) error {
	known = slices.Clone(known)
	var into string
	var width int
	var rows [][]any
	var total uint64
	size := 0
	flush := func() error {
		if len(rows) == 0 {
			return nil
		}
		err := insert(into, rows)
		clear(rows)
		rows, size = rows[:0], 0
		return err
	}
	for {
		frame, err := b.ReadByte()
		if err != nil {
			return corrupt(err)
		}
		if frame != frameRow {
			if err := flush(); err != nil {
				return err
			}
		}
		switch frame {
		case frameTable:
			t, err := b.table()
			if err != nil {
				return err
			}
			i := slices.IndexFunc(known, func(k table) bool { return k.name == t.name })
			if i < 0 || !slices.Equal(known[i].columns, t.columns) {
				return corrupt(fmt.Errorf("table %q is not that of its schema version", t.name))
			}
			known = slices.Delete(known, i, i+1) // each comes once
			into, width = `INSERT INTO `+quoted([]string{t.name})+` (`+quoted(t.columns)+`)`, len(t.columns)
		case frameRow:
			if width == 0 {
				return corrupt(errors.New("a row before its table"))
			}
			row := make([]any, width)
			for i := range row {
				n, err := b.value(&row[i])
				if err != nil {
					return err
				}
				size += n
			}
			total++
			if rows = append(rows, row); len(rows) >= 256 || size > 1<<20 {
				if err := flush(); err != nil {
					return err
				}
			}
		case frameEnd:
			return b.end(total)
		default:
			return corrupt(fmt.Errorf("unknown frame %q", frame))
		}
	}
}

func (b *backupReader) table() (table, error) {
	name, err := b.bytes(maxName)
	if err != nil {
		return table{}, err
	}
	n, err := b.uint(maxColumns)
	if err != nil {
		return table{}, err
	}
	t := table{name: string(name), columns: make([]string, n)}
	for i := range t.columns {
		c, err := b.bytes(maxName)
		if err != nil {
			return table{}, err
		}
		t.columns[i] = string(c)
	}
	return t, nil
}

// value reads a value and returns about how much memory it takes.
func (b *backupReader) value(v *any) (int, error) {
	tag, err := b.ReadByte()
	if err != nil {
		return 0, corrupt(err)
	}
	switch tag {
	case valueNull:
		*v = nil
	case valueInt:
		n, err := binary.ReadVarint(b)
		if err != nil {
			return 0, corrupt(err)
		}
		*v = n
	case valueFloat:
		var p [8]byte
		for i := range p {
			if p[i], err = b.ReadByte(); err != nil {
				return 0, corrupt(err)
			}
		}
		*v = math.Float64frombits(binary.BigEndian.Uint64(p[:]))
	case valueText, valueBytes:
		p, err := b.bytes(maxValue)
		if err != nil {
			return 0, err
		}
		if *v = p; tag == valueText {
			*v = string(p)
		}
		return len(p) + 32, nil
	default:
		return 0, corrupt(fmt.Errorf("unknown type %d of a value", tag))
	}
	return 16, nil
}

// end checks the number of rows, the digest, and that nothing follows.
func (b *backupReader) end(rows uint64) error {
	n, err := b.uint(math.MaxUint64)
	if err != nil {
		return err
	}
	b.digest()
	var want [sha256.Size]byte
	if _, err := io.ReadFull(b.r, want[:]); err != nil {
		return corrupt(err)
	}
	if n != rows || !bytes.Equal(b.sum.Sum(nil), want[:]) {
		return corrupt(errors.New("the backup was changed: its digest does not fit"))
	}
	if _, err := b.r.ReadByte(); err != io.EOF {
		return corrupt(errors.New("something follows the backup"))
	}
	return nil
}
