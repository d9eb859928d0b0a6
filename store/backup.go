package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"math"
	"strings"

	"cellgate/internal/fault"
)

// The stream of a backup; FORMAT.md describes it.
const (
	backupMagic = "cellgate backup 1\n"

	frameTable = 'T' // name, columns
	frameRow   = 'R' // values
	frameEnd   = 'E' // number of rows; the digest follows

	valueNull  = 0
	valueInt   = 1
	valueFloat = 2
	valueText  = 3
	valueBytes = 4
)

const (
	versionTable = "schema_version" // goose's
	maxValue     = 1 << 30          // bytes of a text or blob
	maxColumns   = 1 << 10
	maxName      = 1 << 10
)

// Backup writes every table, as of one moment, to w, while the box goes on. The stream is the same for both databases and can be restored
// into either. Memory does not grow with the store. A slow w keeps the snapshot open, and with it SQLite's log growing.
func (db *DB) Backup(ctx context.Context, w io.Writer) error {
	const op = "store.Backup"
	err := db.View(ctx, func(tx *Tx) error {
		version, err := schemaVersion(tx)
		if err != nil {
			return err
		}
		tables, err := db.dialect.tables(tx)
		if err != nil {
			return err
		}
		out := newBackupWriter(w)
		out.string(backupMagic)
		out.uint(uint64(version))
		for _, t := range tables {
			if err := out.table(tx, t); err != nil {
				return err
			}
		}
		return out.end()
	})
	return fault.Wrap(op, "", err)
}

// table is a table and its columns, sorted by name.
type table struct {
	name    string
	columns []string
	key     []string // of the primary key
}

func schemaVersion(tx *Tx) (version int64, err error) {
	err = tx.QueryRow(`SELECT coalesce(max(version_id), 0) FROM ` + versionTable).Scan(&version)
	return version, err
}

// backupWriter writes and digests; its first error stays.
type backupWriter struct {
	w    *bufio.Writer
	sum  hash.Hash
	rows uint64
	buf  []byte
}

func newBackupWriter(w io.Writer) *backupWriter {
	sum := sha256.New()
	return &backupWriter{w: bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10), sum: sum}
}

// bufio.Writer keeps its first error for Flush, so these need not report theirs.
func (b *backupWriter) byte(c byte)     { b.w.WriteByte(c) }
func (b *backupWriter) string(s string) { b.w.WriteString(s) }
func (b *backupWriter) uint(v uint64) {
	b.buf = binary.AppendUvarint(b.buf[:0], v)
	b.w.Write(b.buf)
}
func (b *backupWriter) text(s string) {
	b.uint(uint64(len(s)))
	b.w.WriteString(s)
}

func (b *backupWriter) table(tx *Tx, t table) error {
	b.byte(frameTable)
	b.text(t.name)
	b.uint(uint64(len(t.columns)))
	for _, c := range t.columns {
		b.text(c)
	}
	q := `SELECT ` + quoted(t.columns) + ` FROM ` + quoted([]string{t.name})
	if len(t.key) > 0 {
		q += ` ORDER BY ` + quoted(t.key)
	}
	rows, err := tx.Query(q)
	if err != nil {
		return err
	}
	defer rows.Close()
	values := make([]any, len(t.columns))
	into := make([]any, len(values))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		b.rows++
		b.byte(frameRow)
		for i, v := range values {
			if err := b.value(v); err != nil {
				return fmt.Errorf("%s.%s: %w", t.name, t.columns[i], err)
			}
		}
		if b.rows%1024 == 0 { // notice early that w fails
			if err := b.w.Flush(); err != nil {
				return err
			}
		}
	}
	return rows.Err()
}

func (b *backupWriter) value(v any) error {
	switch v := v.(type) {
	case nil:
		b.byte(valueNull)
	case int64:
		b.byte(valueInt)
		b.buf = binary.AppendVarint(b.buf[:0], v)
		b.w.Write(b.buf)
	case float64:
		b.byte(valueFloat)
		b.buf = binary.BigEndian.AppendUint64(b.buf[:0], math.Float64bits(v))
		b.w.Write(b.buf)
	case string:
		b.byte(valueText)
		b.text(v)
	case []byte:
		b.byte(valueBytes)
		b.uint(uint64(len(v)))
		b.w.Write(v)
	default:
		return fmt.Errorf("a column of type %T cannot be backed up", v)
	}
	return nil
}

func (b *backupWriter) end() error {
	b.byte(frameEnd)
	b.uint(b.rows)
	if err := b.w.Flush(); err != nil {
		return err
	}
	b.w.Write(b.sum.Sum(nil))
	return b.w.Flush()
}

// quoted returns names as a list of SQL identifiers.
func quoted(names []string) string {
	var s strings.Builder
	for i, n := range names {
		if i > 0 {
			s.WriteString(", ")
		}
		s.WriteString(`"` + strings.ReplaceAll(n, `"`, `""`) + `"`)
	}
	return s.String()
}
