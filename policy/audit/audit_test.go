package audit_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/internal/clock"
	"cellgate/policy/audit"
	"cellgate/store"
	"cellgate/store/storetest"
)

func fill(t *testing.T, db *store.DB, log *audit.Log, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range n / 4 {
				err := db.Update(t.Context(), func(tx *store.Tx) error {
					log.Append(tx, audit.Record{Actor: fmt.Sprintf("user:u%d", w), Action: "put", Place: fmt.Sprintf("disk:/a/%d", i), Outcome: "done"})
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestLog writes from several sides, rolls back, lists and verifies.
func TestLog(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		at := clock.At(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))
		log := audit.New(db, at)
		if rep, err := log.Verify(t.Context()); err != nil || !rep.OK() {
			t.Errorf("an empty log: %+v, %v", rep, err)
		}
		fill(t, db, log, 40)
		_ = db.Update(t.Context(), func(tx *store.Tx) error {
			log.Append(tx, audit.Record{Actor: "user:nobody"})
			return errors.New("rolled back")
		})
		at.Advance(time.Hour)
		log.Note(audit.Record{Actor: "user:eve", Action: "get", Place: "disk:/a/3/x\x00\xff", Outcome: "refused", Detail: strings.Repeat("é", 10000)})
		if err := db.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		rep, err := log.Verify(t.Context())
		if err != nil || !rep.OK() || rep.Records != 41 {
			t.Fatalf("%+v, %v", rep, err)
		}
		for _, c := range []struct {
			name string
			f    audit.Filter
			want int
		}{
			{"all", audit.Filter{}, 41},
			{"actor", audit.Filter{Actor: "user:u1"}, 10},
			{"place", audit.Filter{Place: "disk:/a/3"}, 5}, // not /a/30
			{"root", audit.Filter{Place: "disk:/"}, 41},
			{"from", audit.Filter{From: at.Now()}, 1},
			{"to", audit.Filter{To: at.Now(), Action: "put"}, 40},
			{"limit", audit.Filter{Limit: 7}, 7},
			{"before", audit.Filter{Before: 5}, 4},
			{"oldest first", audit.Filter{OldestFirst: true, Limit: 3}, 3},
		} {
			n, last := 0, int64(0)
			for r, err := range log.List(t.Context(), c.f) {
				if err != nil {
					t.Fatal(err)
				}
				if n > 0 && (r.Seq > last) != c.f.OldestFirst {
					t.Errorf("%s: %d after %d", c.name, r.Seq, last)
				}
				last = r.Seq
				n++
			}
			if n != c.want {
				t.Errorf("%s: %d records, want %d", c.name, n, c.want)
			}
		}
	})
}

// TestTampering changes, removes, inserts, reorders and cuts off records behind the log's back. Each is found, and found where it is.
func TestTampering(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		log := audit.New(db, nil)
		fill(t, db, log, 20)
		exec := func(qs ...string) {
			for _, q := range qs {
				if err := db.Update(t.Context(), func(tx *store.Tx) error { _, err := tx.Exec(q); return err }); err != nil {
					t.Fatal(err)
				}
			}
		}
		exec(`CREATE TABLE keep AS SELECT * FROM audit`, `CREATE TABLE keep_head AS SELECT * FROM audit_head`)
		for _, c := range []struct {
			name string
			at   int64
			do   []string
		}{
			{"column changed", 7, []string{`UPDATE audit SET actor = 'user:else' WHERE seq = 7`}},
			{"body changed", 7, []string{`UPDATE audit SET body = (SELECT body FROM keep WHERE seq = 8) WHERE seq = 7`}},
			{"hash changed", 7, []string{`UPDATE audit SET hash = (SELECT hash FROM keep WHERE seq = 8) WHERE seq = 7`}},
			{"removed", 8, []string{`DELETE FROM audit WHERE seq = 7`}},
			{"removed and closed up", 7, []string{`DELETE FROM audit WHERE seq = 7`, `UPDATE audit SET seq = 1000 + seq - 1 WHERE seq > 7`, `UPDATE audit SET seq = seq - 1000 WHERE seq > 1000`}},
			{"inserted", 21, []string{`INSERT INTO audit SELECT 21, time, actor, action, place, body, hash FROM keep WHERE seq = 20`}},
			{"swapped", 7, []string{`UPDATE audit SET seq = 99 WHERE seq = 7`, `UPDATE audit SET seq = 7 WHERE seq = 8`, `UPDATE audit SET seq = 8 WHERE seq = 99`}},
			{"head cut off", 2, []string{`DELETE FROM audit WHERE seq = 1`}},
			{"tail cut off", 19, []string{`DELETE FROM audit WHERE seq = 20`}},
			{"tail cut off, head set back", 19, []string{`DELETE FROM audit WHERE seq = 20`, `UPDATE audit_head SET seq = 19`}},
			{"all removed", 0, []string{`DELETE FROM audit`}},
		} {
			exec(c.do...)
			rep, err := log.Verify(t.Context())
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if rep.OK() || rep.Problems[0].Seq != c.at {
				t.Errorf("%s: found %+v, want something at %d", c.name, rep.Problems, c.at)
			}
			exec(`DELETE FROM audit`, `DELETE FROM audit_head`, `INSERT INTO audit SELECT * FROM keep`, `INSERT INTO audit_head SELECT * FROM keep_head`)
			if rep, err := log.Verify(t.Context()); err != nil || !rep.OK() {
				t.Fatalf("put right again: %+v, %v", rep, err)
			}
		}
	})
}

// TestX04Cells keeps exported records text.
func TestX04Cells(t *testing.T) {
	for in, want := range map[string]string{"=1+1": "'=1+1", "+x": "'+x", "-x": "'-x", "@x": "'@x", "\tx": "␉x", "\rx": "␍x", "a\nb": "a␊b", "a\u2028b": "a\uFFFDb", `"q"`: `"q"`, "'x": "''x"} {
		if got := (audit.Record{Detail: in}).Cells()[len(audit.Columns)-1]; got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

// BenchmarkAppend writes batches of 16 records, one Update each.
func BenchmarkAppend(b *testing.B) {
	db := storetest.Open(b)
	log := audit.New(db, nil)
	r := audit.Record{Actor: "user:alice", Action: "put", Place: "disk:/docs/folder/file.txt", Path: "/docs/folder/file.txt", Outcome: "done", Protocol: "webdav",
		Addr: "192.0.2.1", RequestID: "0123456789abcdef"}
	b.ReportAllocs()
	for b.Loop() {
		err := db.Update(b.Context(), func(tx *store.Tx) error {
			for range 16 {
				log.Append(tx, r)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/record")
}
