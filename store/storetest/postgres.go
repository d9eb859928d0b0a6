package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// The one server of the test process, started by the first test that needs it. It is the one variable of this package: no test should have
// to carry it about, and no TestMain is needed to stop it.
var server = sync.OnceValues(start)

var schemas atomic.Int64

// errMissing says that there is no PostgreSQL to start.
var errMissing = errors.New("no PostgreSQL installed (apt-get install postgresql)")

// Postgres returns the URL of a new, empty schema, which is a database to whoever uses it but made 50 times faster; it is dropped with the
// test. Where PostgreSQL is not installed the test is skipped; where it does not start the test fails.
func Postgres(t testing.TB) string {
	t.Helper()
	sockets, err := server()
	if errors.Is(err, errMissing) {
		t.Skipf("NOT TESTED ON POSTGRESQL: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("t%d", schemas.Add(1))
	if err := admin(t.Context(), sockets, "CREATE SCHEMA "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := admin(context.Background(), sockets, "DROP SCHEMA "+name+" CASCADE"); err != nil {
			t.Error(err)
		}
	})
	return address(sockets, name)
}

func address(sockets, schema string) string {
	v := url.Values{"host": {sockets}, "user": {"cellgate"}, "database": {"postgres"}, "search_path": {schema}}
	return "postgres:///?" + v.Encode()
}

func admin(ctx context.Context, sockets, q string) error {
	conn, err := pgx.Connect(ctx, address(sockets, "public"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, q)
	return err
}

// keeper makes the cluster, runs the server, and takes everything away when its standard input ends. That is a pipe from the test process,
// so it ends however that process does, SIGKILL included; no signal is sent by name.
const keeper = `
cd "$1" || exit 1
"$2/initdb" -D data -U cellgate -A trust -E UTF8 --no-sync --locale-provider=icu --icu-locale=en-US --locale=C >log 2>&1 ||
	{ rm -rf data; "$2/initdb" -D data -U cellgate -A trust -E UTF8 --no-sync --locale=C >>log 2>&1 || exit 1; }
"$2/postgres" -D data -k "$1" -c listen_addresses= -c fsync=off -c full_page_writes=off -c synchronous_commit=off \
	-c max_connections=200 -c shared_buffers=32MB -c jit=off -c autovacuum=off </dev/null >>log 2>&1 &
echo $! >pid
cat >/dev/null
kill -QUIT $!
wait $!
cd / && rm -rf "$1"
`

// start starts the server and returns the folder of its socket. It sorts names by the English rules, so a column that forgot COLLATE "C" shows.
func start() (string, error) {
	bin, err := binaries()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "cellgate-pg-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("/bin/sh", "-c", keeper, "keeper", dir, bin)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal is for the tests; the keeper notices
	if os.Geteuid() == 0 {                                // PostgreSQL refuses to run as root
		cred, err := account("postgres")
		if err != nil {
			return "", err
		}
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			return "", err
		}
		cmd.SysProcAttr.Credential = cred
	}
	if _, err := cmd.StdinPipe(); err != nil { // never closed but by the end of this process
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := admin(context.Background(), dir, "SELECT 1")
		if err == nil {
			return dir, nil
		}
		select {
		case err = <-gone:
		default:
			if time.Now().Before(deadline) {
				continue
			}
		}
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		return "", fmt.Errorf("PostgreSQL did not start: %w\n%s", err, bytes.TrimSpace(log))
	}
}

func account(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// binaries returns the folder of the newest PostgreSQL: Debian's place, or the one in PATH.
func binaries() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) > 0 {
		version := func(p string) int {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(p))))
			return n
		}
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
	}
	p, err := exec.LookPath("initdb")
	if err != nil {
		return "", errMissing
	}
	return filepath.Dir(p), nil
}
