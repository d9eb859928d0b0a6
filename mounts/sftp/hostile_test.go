package sftp_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/servertest"
	"cellgate/mounts/sftp"
)

// body builds the body of an answer.
func body(parts ...any) (b []byte) {
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		case uint64:
			b = binary.BigEndian.AppendUint64(b, p)
		case string:
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...)
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

func send(w io.Writer, typ byte, b []byte) {
	w.Write(append(append(binary.BigEndian.AppendUint32(nil, uint32(len(b)+1)), typ), b...))
}

// folder and plain are attributes.
var (
	folder = body(4, 0o040755)
	plain  = body(5, uint64(100), 0o100644)
)

// scripted answers requests by answer once the greeting is done. It behaves at first, so that the datasource opens.
func scripted(polite int, answer func(w io.Writer, typ byte, id int, rest []byte)) func(io.ReadWriteCloser) {
	var served atomic.Int32
	return func(ch io.ReadWriteCloser) {
		for {
			var head [5]byte
			if _, err := io.ReadFull(ch, head[:]); err != nil {
				return
			}
			rest := make([]byte, binary.BigEndian.Uint32(head[:])-1)
			if _, err := io.ReadFull(ch, rest); err != nil {
				return
			}
			if head[4] == 1 {
				send(ch, 2, body(3, "posix-rename@openssh.com", "1", "fsync@openssh.com", "1", "copy-data", "1"))
				continue
			}
			id := int(binary.BigEndian.Uint32(rest))
			switch served.Add(1); {
			case int(served.Load()) <= polite && head[4] == 16:
				send(ch, 104, body(id, 1, "/", "/", 0))
			case int(served.Load()) <= polite:
				send(ch, 105, body(id, folder))
			default:
				answer(ch, head[4], id, rest[4:])
			}
		}
	}
}

// TestHostile: whatever a server answers, a call ends with a fault, soon, and nothing else happens.
func TestHostile(t *testing.T) {
	for name, answer := range map[string]func(w io.Writer, typ byte, id int, rest []byte){
		"endless zeros":  func(w io.Writer, _ byte, _ int, _ []byte) { w.Write(make([]byte, 1<<20)) },
		"huge length":    func(w io.Writer, _ byte, _ int, _ []byte) { w.Write([]byte{0xff, 0xff, 0xff, 0xff, 103}) },
		"small length":   func(w io.Writer, _ byte, _ int, _ []byte) { w.Write([]byte{0, 0, 0, 1, 103, 0, 0, 0, 0}) },
		"other id":       func(w io.Writer, _ byte, id int, _ []byte) { send(w, 101, body(id+1000, 0, "", "")) },
		"id zero":        func(w io.Writer, _ byte, _ int, _ []byte) { send(w, 101, body(0, 0, "", "")) },
		"second version": func(w io.Writer, _ byte, _ int, _ []byte) { send(w, 2, body(3)) },
		"unknown type":   func(w io.Writer, _ byte, id int, _ []byte) { send(w, 99, body(id)) },
		"empty status":   func(w io.Writer, _ byte, id int, _ []byte) { send(w, 101, body(id)) },
		"short status":   func(w io.Writer, _ byte, id int, _ []byte) { send(w, 101, body(id, 4)) },
		"success for all": func(w io.Writer, _ byte, id int, _ []byte) {
			send(w, 101, body(id, 0, "", ""))
		},
		"many names": func(w io.Writer, _ byte, id int, _ []byte) { send(w, 104, body(id, 1<<31-1, "a", "a", folder)) },
		"no names":   func(w io.Writer, _ byte, id int, _ []byte) { send(w, 104, body(id, 0)) },
		"long handle": func(w io.Writer, typ byte, id int, _ []byte) {
			answerSome(w, typ, id, strings.Repeat("h", 200<<10), nil)
		},
		"too much data": func(w io.Writer, typ byte, id int, _ []byte) {
			answerSome(w, typ, id, "h", body(id, strings.Repeat("x", 200<<10)))
		},
		"no data":        func(w io.Writer, typ byte, id int, _ []byte) { answerSome(w, typ, id, "h", body(id, "")) },
		"data cut short": func(w io.Writer, typ byte, id int, _ []byte) { answerSome(w, typ, id, "h", body(id, 1000, 1)) },
		"twice": func(w io.Writer, _ byte, id int, _ []byte) {
			send(w, 101, body(id, 4, "", ""))
			send(w, 101, body(id, 4, "", ""))
		},
		"end":     func(w io.Writer, _ byte, _ int, _ []byte) { w.(io.Closer).Close() },
		"silence": func(io.Writer, byte, int, []byte) {},
		"texts": func(w io.Writer, _ byte, id int, _ []byte) {
			send(w, 101, body(id, 77, strings.Repeat("\x1b", 100_000), ""))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := servertest.PlainSFTP(t, servertest.PlainSFTPOptions{Serve: scripted(2, answer)})
			b, err := sftp.Driver().Open(t.Context(), servertest.SFTPConfig(s, servertest.SFTPKey{}, "timeout", "300ms", "connections", "1", "path", "/"))
			if err != nil {
				t.Fatal(err)
			}
			for op, call := range calls(b) {
				if op == "Space" {
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				began := time.Now()
				err := call(ctx)
				if err == nil && name != "success for all" {
					t.Errorf("%s: no error", op)
				}
				if k := fault.KindOf(err); err != nil && k == fault.Internal {
					t.Errorf("%s: %.200v; want a fault with a kind", op, err)
				}
				if len(fmt.Sprint(err)) > 2000 {
					t.Errorf("%s: an error of %d bytes", op, len(fmt.Sprint(err)))
				}
				if time.Since(began) > 4*time.Second {
					t.Errorf("%s took %v", op, time.Since(began))
				}
				cancel()
			}
			b.Close()
			if b, err := sftp.Driver().Open(t.Context(), servertest.SFTPConfig(s, servertest.SFTPKey{}, "timeout", "300ms", "connections", "1")); err == nil {
				b.Close() // also an open may meet such a server
			}
		})
	}
}

// answerSome is a server on which files can be looked at and opened, so that hostile data is asked for.
func answerSome(w io.Writer, typ byte, id int, handle string, data []byte) {
	switch typ {
	case 3, 11:
		send(w, 102, body(id, handle))
	case 5:
		send(w, 103, data)
	case 7, 8:
		send(w, 105, body(id, plain))
	default:
		send(w, 101, body(id, 4, "Failure", ""))
	}
}

// TestHostileNames: names that are none are left out, and sizes beyond all measure unknown.
func TestHostileNames(t *testing.T) {
	pages := 0
	s := servertest.PlainSFTP(t, servertest.PlainSFTPOptions{Serve: scripted(2, func(w io.Writer, typ byte, id int, _ []byte) {
		switch typ {
		case 7:
			send(w, 105, body(id, folder))
		case 11:
			send(w, 102, body(id, "h"))
		case 12:
			if pages++; pages > 1 {
				send(w, 101, body(id, 1, "", ""))
				return
			}
			list := body(id, 7)
			for _, name := range []string{".", "..", "../up", "/etc/passwd", "a\x00b", "", "huge"} {
				list = append(list, body(name, "", 5, ^uint64(0), 0o100644)...)
			}
			send(w, 104, list)
		default:
			send(w, 101, body(id, 0, "", ""))
		}
	})})
	b := attach(t, servertest.SFTPConfig(s, servertest.SFTPKey{}, "timeout", "2s", "path", "/"))
	var got []mounts.Info
	for info, err := range b.List(t.Context(), ".") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info)
	}
	if len(got) != 1 || got[0].Name != "huge" || got[0].Size != -1 {
		t.Errorf("listed %+v", got)
	}
}

// TestListRequests: a listing costs one request a page, and one more to learn of the end. Many entries do not fill the memory.
func TestListRequests(t *testing.T) {
	const perPage, pages = 100, 1000
	var asked atomic.Int32
	s := servertest.PlainSFTP(t, servertest.PlainSFTPOptions{Serve: scripted(2, func(w io.Writer, typ byte, id int, _ []byte) {
		switch typ {
		case 7:
			send(w, 105, body(id, folder))
		case 11:
			send(w, 102, body(id, "h"))
		case 12:
			n := int(asked.Add(1))
			if n > pages {
				send(w, 101, body(id, 1, "", ""))
				return
			}
			list := body(id, perPage)
			for i := range perPage {
				list = append(list, body(fmt.Sprintf("file-%d-%d", n, i), strings.Repeat("l", 60), plain)...)
			}
			send(w, 104, list)
		default:
			send(w, 101, body(id, 0, "", ""))
		}
	})})
	b := attach(t, servertest.SFTPConfig(s, servertest.SFTPKey{}, "path", "/"))
	var start, most runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&start)
	n := 0
	for _, err := range b.List(t.Context(), ".") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%20_000 == 0 {
			runtime.GC()
			var now runtime.MemStats
			if runtime.ReadMemStats(&now); now.HeapAlloc > most.HeapAlloc {
				most = now
			}
		}
	}
	if n != pages*perPage || asked.Load() != pages+1 {
		t.Errorf("%d entries in %d requests, want %d in %d", n, asked.Load(), pages*perPage, pages+1)
	}
	if grown := int64(most.HeapAlloc) - int64(start.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap grew by %d MiB while listing", grown>>20)
	}
}

// TestReplacedWhileRead: a long file that is replaced again and again is never read as a mixture, over however many channels.
func TestReplacedWhileRead(t *testing.T) {
	s, key := openSSH(t)
	b := attach(t, servertest.SFTPConfig(s, key))
	const size = 6 << 20
	file := filepath.Join(s.Root, "f")
	stop, done := make(chan struct{}), make(chan struct{})
	replace := func(i int) {
		content := []byte(strings.Repeat(string(rune('a'+i%26)), size))
		old := time.Now().Add(-time.Hour + time.Duration(i)*time.Minute) // old enough for several channels, and told apart by its time
		err := os.WriteFile(file+".new", content, 0o644)
		if err == nil {
			err = os.Chtimes(file+".new", old, old)
		}
		if err == nil {
			err = os.Rename(file+".new", file)
		}
		if err != nil {
			t.Error(err)
		}
	}
	replace(0)
	go func() {
		defer close(done)
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
				replace(i % 50)
			}
		}
	}()
	for range 15 {
		got, err := mounts.ReadFile(t.Context(), b, "f", size)
		if err != nil || len(got) != size || strings.Count(string(got), string(got[:1])) != size {
			t.Errorf("read %d bytes, %v, or a mixture", len(got), err)
		}
	}
	close(stop)
	<-done
}
