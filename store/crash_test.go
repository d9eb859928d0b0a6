package store_test

import (
	"bufio"
	"context"
	"fmt"

	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/store"
	"cellgate/store/storetest"
)

// childEnv makes the test binary play a box that writes: "URL|DIR|START".
const childEnv = "CELLGATE_STORE_CHILD"

func TestMain(m *testing.M) {
	if v := os.Getenv(childEnv); v != "" {
		child(v)
	}
	os.Exit(m.Run())
}

// child writes rows from eight goroutines for ever, and prints the number of each row once it is acknowledged, "! KIND" when one failed.
func child(v string) {
	parts := strings.Split(v, "|")
	start, _ := strconv.ParseInt(parts[2], 10, 64)
	db, err := store.Open(context.Background(), store.Config{URL: parts[0], Dir: parts[1], Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var mu sync.Mutex
	fmt.Println("ready")
	for w := range int64(8) {
		go func() {
			for n := start + w; ; n += 8 {
				err := db.Update(context.Background(), func(tx *store.Tx) error {
					if err := store.SetSetting(tx, fmt.Sprint(n), "x"); err != nil {
						return err
					}
					return store.SetSetting(tx, fmt.Sprint("twin of ", n), strings.Repeat("x", int(n%3000)))
				})
				mu.Lock()
				if err != nil {
					fmt.Println("!", fault.KindOf(err))
				} else {
					fmt.Println(n)
				}
				mu.Unlock()
			}
		}()
	}
	select {}
}

// play starts the child, under the command before it if there is one, and returns its lines.
func play(t *testing.T, url, dir string, start int64, before ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(before, exe)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%s|%d", childEnv, url, dir, start))
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	return cmd, bufio.NewScanner(out)
}

// kill ends the child and all it started.
func kill(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	}
}

// TestKill: whatever was acknowledged before a SIGKILL is there after it, and no transaction is there by half.
func TestKill(t *testing.T) {
	storetest.EachURL(t, func(t *testing.T, url string) {
		dir := filepath.Join(t.TempDir(), "data")
		acknowledged := make(map[int64]bool)
		rounds := 20
		if testing.Short() {
			rounds = 4
		}
		for round := range rounds {
			cmd, lines := play(t, url, dir, int64(round)*1_000_000)
			if !lines.Scan() || lines.Text() != "ready" {
				t.Fatalf("round %d: got %q", round, lines.Text())
			}
			time.AfterFunc(time.Duration(5+round*7%60)*time.Millisecond, func() { syscall.Kill(cmd.Process.Pid, syscall.SIGKILL) })
			for lines.Scan() {
				n, err := strconv.ParseInt(lines.Text(), 10, 64)
				if err != nil {
					t.Fatalf("round %d: %s", round, lines.Text())
				}
				acknowledged[n] = true
			}
			cmd.Wait()
		}
		db := openConfig(t, store.Config{URL: url, Dir: dir})
		check(t, db, acknowledged)
		t.Logf("%d acknowledged rows over %d kills", len(acknowledged), rounds)
		if len(acknowledged) < rounds {
			t.Error("too few to prove anything")
		}
	})
}

// check looks for each acknowledged row, and for rows without their twin.
func check(t *testing.T, db *store.DB, acknowledged map[int64]bool) {
	t.Helper()
	rows, err := db.Query(t.Context(), `SELECT key FROM settings ORDER BY key`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	there := make(map[string]bool)
	for _, k := range scan(t, rows) {
		there[k] = true
	}
	for n := range acknowledged {
		if !there[fmt.Sprint(n)] {
			t.Errorf("row %d was acknowledged and is lost", n)
		}
	}
	for k := range there {
		n, isTwin := strings.CutPrefix(k, "twin of ")
		if isTwin && !there[n] || !isTwin && !there["twin of "+k] {
			t.Errorf("half a transaction: %s", k)
		}
	}
}

// TestSyncFails is case D07: every k-th sync fails. The failing updates fail, no more and no less is there afterwards than what was
// acknowledged (what failed may be there or not, but not by half), and the box goes on without a restart.
func TestSyncFails(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("NOT TESTED: no strace installed")
	}
	for _, inject := range []string{
		"fsync,fdatasync:error=EIO:when=20+7",
		"fsync,fdatasync:error=EIO:when=25..60",
		"pwrite64:error=EIO:when=300+41",
		"pwrite64:error=ENOSPC:when=300..500",
	} {
		t.Run(inject, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			openConfig(t, store.Config{Dir: dir}).Close() // the faults are for the running box
			cmd, lines := play(t, "", dir, 0, strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync,pwrite64", "-e", "inject="+inject)
			acknowledged := make(map[int64]bool)
			failed, after := 0, 0
			timer := time.AfterFunc(20*time.Second, func() { kill(cmd) })
			defer timer.Stop()
			for lines.Scan() && (after < 300 || failed == 0) {
				switch n, err := strconv.ParseInt(lines.Text(), 10, 64); {
				case err == nil:
					acknowledged[n] = true
					after++
				case strings.HasPrefix(lines.Text(), "!"):
					if k := strings.TrimPrefix(lines.Text(), "! "); k != fault.Unavailable.String() && k != fault.NoSpace.String() {
						t.Errorf("failed with %q", k)
					}
					failed, after = failed+1, 0
					if strings.Contains(inject, "+") && failed > 20 {
						after = 300
					}
				}
			}
			kill(cmd)
			if failed == 0 || after < 300 {
				t.Fatalf("%d failures, %d acknowledged after the last: proves nothing, or the box did not recover", failed, after)
			}
			t.Logf("%d acknowledged, %d failed", len(acknowledged), failed)
			db := openConfig(t, store.Config{Dir: dir})
			check(t, db, acknowledged)
			var ok string
			if err := db.QueryRow(t.Context(), `PRAGMA integrity_check`).Scan(&ok); err != nil || ok != "ok" {
				t.Errorf("integrity: %s, %v", ok, err)
			}
		})
	}
}

// TestFullDisk is case D08 on a small tmpfs: updates fail with NoSpace, reading goes on, and so does writing when there is space again.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Skipf("NOT TESTED: cannot mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	db := openConfig(t, store.Config{Dir: filepath.Join(dir, "data")})
	stored := make(map[string]bool)
	fillUp := func() (err error) {
		for i := 0; i < 10_000 && err == nil; i++ {
			key := fmt.Sprint(len(stored))
			if err = db.Update(t.Context(), set(key, strings.Repeat("x", 5000))); err == nil {
				stored[key] = true
			}
		}
		return err
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fillUp(); fault.KindOf(err) != fault.NoSpace {
		t.Fatalf("got %v", err)
	}
	if db.Err() == nil {
		t.Error("the store says that it can write")
	}
	for range 20 { // it stays so
		if err := db.Update(t.Context(), set("big", strings.Repeat("x", 500_000))); fault.KindOf(err) != fault.NoSpace {
			t.Fatalf("got %v", err)
		}
	}
	for k := range stored {
		if got := setting(t, db, k); len(got) != 5000 {
			t.Fatalf("%s: got %d bytes", k, len(got))
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	n := len(stored)
	if err := fillUp(); fault.KindOf(err) != fault.NoSpace || len(stored) < n+20 {
		t.Errorf("after there was space: %d more rows, then %v", len(stored)-n, err)
	}
	_ = db.Close()
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=20m"); err != nil {
		t.Fatal(err)
	}
	db = openConfig(t, store.Config{Dir: filepath.Join(dir, "data")})
	for k := range stored {
		if got := setting(t, db, k); len(got) != 5000 {
			t.Fatalf("%s after opening again: got %d bytes", k, len(got))
		}
	}
}

// A box that hangs up on its PostgreSQL, or the other way round, goes on when it can.
func TestConnectionsLost(t *testing.T) {
	url := storetest.Postgres(t)
	db := openConfig(t, store.Config{URL: url})
	for i := range 20 {
		var n int
		// Another connection ends all of the box's, between transactions and in the midst of one.
		err := db.Update(t.Context(), func(tx *store.Tx) error {
			n++
			if err := store.SetSetting(tx, fmt.Sprint(i), fmt.Sprint(n)); err != nil {
				return err
			}
			if n == 1 {
				if _, err := tx.Exec(`SELECT pg_terminate_backend(pg_backend_pid())`); err == nil {
					t.Error("the connection survived")
				}
			}
			return store.SetSetting(tx, fmt.Sprint(i), fmt.Sprint(n))
		})
		if err != nil || n < 2 {
			t.Fatalf("round %d: %d runs, %v", i, n, err)
		}
	}
	if got := setting(t, db, "19"); got != "2" {
		t.Errorf("got %q", got)
	}
}

// Two boxes on one PostgreSQL add to the same row: none of it is lost, none is done twice.
func TestTwoNodes(t *testing.T) {
	url := storetest.Postgres(t)
	nodes := []*store.DB{openConfig(t, store.Config{URL: url}), openConfig(t, store.Config{URL: url})}
	if err := nodes[0].Update(t.Context(), set("n", "0")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, db := range nodes {
		for range 4 {
			wg.Go(func() {
				for range 25 {
					err := db.Update(t.Context(), func(tx *store.Tx) error {
						var n int
						if err := tx.QueryRow(`SELECT CAST(value AS BIGINT) FROM settings WHERE key = 'n'`).Scan(&n); err != nil {
							return err
						}
						return store.SetSetting(tx, "n", fmt.Sprint(n+1))
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if got := setting(t, nodes[1], "n"); got != "200" {
		t.Errorf("got %s, want 200", got)
	}
}

func TestDataFolder(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := filepath.Join(t.TempDir(), "a b%20?c#", "data")
	db := openConfig(t, store.Config{Dir: dir})
	if err := db.Update(t.Context(), set("a", "1")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 4 {
		t.Errorf("got %v, want database, log, index and lock", entries)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	_, err = store.Open(t.Context(), store.Config{Dir: dir})
	if fault.KindOf(err) != fault.Busy || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("opened twice: %v", err)
	}
	db.Close()
	db = openConfig(t, store.Config{Dir: dir})
	if got := setting(t, db, "a"); got != "1" {
		t.Errorf("got %q after opening again", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cellgate.db")
	if err := os.WriteFile(file, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg  store.Config
		want fault.Kind
	}{
		"no folder":    {store.Config{}, fault.Invalid},
		"no database":  {store.Config{Dir: filepath.Dir(file)}, fault.Corrupt},
		"bad URL":      {store.Config{URL: "postgres://u:topsecret@h:notaport/x"}, fault.Invalid},
		"nobody there": {store.Config{URL: "postgres://u:topsecret@127.0.0.1:1/x?connect_timeout=1"}, fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := store.Open(t.Context(), c.cfg)
			if fault.KindOf(err) != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "topsecret") {
				t.Errorf("the password shows: %v", err)
			}
		})
	}
}
