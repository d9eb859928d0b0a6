package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/store"
)

// tuning is how a datasource is used, whatever its driver. Its keys stand among the options of the datasource.
type tuning struct {
	cacheAge  time.Duration // how long attributes and listings are believed
	cacheSize int64         // bytes of content kept on this machine's disk
	readAhead int64
	maxRead   int64 // bytes a second
	maxWrite  int64
	maxCalls  int
	deadline  time.Duration // of a call that moves no content
	progress  time.Duration // without a byte, of one that does
	writeBack bool
	writeSize int64 // bytes that may wait for the backend
	poll      time.Duration
}

// Tunings are the options that every datasource has besides those of its driver.
func Tunings() []mounts.Option {
	return []mounts.Option{
		{Name: "cacheAge", Help: "how old what is told about files may be, 0s for no cache; default 5s, for folders of this machine 0s"},
		{Name: "cacheSize", Help: "how much content is kept on this machine's disk, such as 2GiB; default 0"},
		{Name: "readAhead", Help: "how much is read ahead with a cache of content, such as 4MiB; default 0"},
		{Name: "maxRead", Help: "bytes a second read from the backend, such as 10MiB; default 0, no limit"},
		{Name: "maxWrite", Help: "bytes a second written to the backend; default 0, no limit"},
		{Name: "maxCalls", Help: "how many requests the backend gets at once; default 128"},
		{Name: "deadline", Help: "how long a request may take that moves no content; default 30s"},
		{Name: "progress", Help: "how long a transfer may stand still; default 60s"},
		{Name: "writeBack", Help: "true: writing small files succeeds once they are safe on this machine's disk, and they go to the backend a moment later; default false"},
		{Name: "writeBackSize", Help: "how much may wait on this machine's disk; default 1GiB"},
		{Name: "poll", Help: "how often folders in use are looked at for changes made outside, where the backend does not tell; default 1m, 0s for never"},
	}
}

func isTuning(key string) bool { return has(Tunings(), key) }

// tuning reads the datasource's own options. The error names every problem.
func (d Datasource) tuning() (t tuning, err error) {
	t = tuning{deadline: 30 * time.Second, progress: time.Minute, maxCalls: 128, writeSize: 1 << 30, cacheAge: -1, poll: time.Minute}
	var errs []error
	bad := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("option %s: %w", key, err))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(d.Options)) {
		v := d.Options[key]
		switch key {
		case "cacheAge":
			t.cacheAge, err = duration(v, 0)
		case "deadline":
			t.deadline, err = duration(v, 100*time.Millisecond)
		case "progress":
			t.progress, err = duration(v, 100*time.Millisecond)
		case "poll":
			if t.poll, err = duration(v, 0); err == nil && t.poll > 0 && t.poll < time.Second {
				err = errors.New("at least 1s, or 0s for never")
			}
		case "cacheSize":
			t.cacheSize, err = amount(v)
		case "readAhead":
			t.readAhead, err = amount(v)
		case "maxRead":
			t.maxRead, err = amount(v)
		case "maxWrite":
			t.maxWrite, err = amount(v)
		case "writeBackSize":
			t.writeSize, err = amount(v)
		case "maxCalls":
			if t.maxCalls, err = strconv.Atoi(v); err != nil || t.maxCalls < 1 || t.maxCalls > 10_000 {
				err = errors.New("a number from 1 to 10000")
			}
		case "writeBack":
			if t.writeBack, err = strconv.ParseBool(v); err != nil {
				err = errors.New("true or false")
			}
		default:
			continue
		}
		bad(key, err)
	}
	if t.writeBack && d.Mode != "" && d.Mode != Shared {
		bad("writeBack", errors.New("what waits is written with the datasource's own credentials: only in the mode shared"))
	}
	return t, errors.Join(errs...)
}

func duration(v string, least time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err != nil || d < least {
		return 0, fmt.Errorf("%q is no duration of at least %v, such as 30s or 5m", v, least)
	}
	return d, nil
}

// units are those of bytes, the longer names first.
var units = []struct {
	name string
	size int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1}}

// amount reads one such as "10MiB".
func amount(v string) (int64, error) {
	for _, u := range units {
		number, ok := strings.CutSuffix(strings.TrimSpace(v), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err == nil && n >= 0 && n <= (1<<62)/u.size {
			return n * u.size, nil
		}
		break
	}
	return 0, fmt.Errorf("%q is no amount such as 512KiB, 10MiB or 2GiB", v)
}

// config is what a driver is told of d.
func (g *Gateway) config(d Datasource) mounts.Config {
	d = d.spelled(g.drivers[d.Driver])
	options := maps.Clone(d.Options)
	maps.DeleteFunc(options, func(key, _ string) bool { return isTuning(key) && !has(g.drivers[d.Driver].Options, key) })
	return mounts.Config{
		Name: d.Name, Options: options, Credentials: d.Credentials, ReadOnly: d.ReadOnly, Unsynced: d.Durability == Written, Logger: g.log,
		Allow: g.allow, Guest: d.Guest, Known: g.known(d.Name),
		Learn: func(key, value string) error { return g.learn(d.Name, key, value) },
	}
}

// complete stands in for credentials that each user brings, so that the rest can be checked.
func (d Datasource) complete(driver mounts.Driver) Datasource {
	if d.Mode == "" || d.Mode == Shared {
		return d
	}
	d.Credentials = maps.Clone(d.Credentials)
	for _, o := range driver.Secrets {
		if o.Required && d.Credentials[o.Name].IsZero() {
			if d.Credentials == nil {
				d.Credentials = make(map[string]secret.String)
			}
			d.Credentials[o.Name] = secret.New("x")
		}
	}
	return d
}

// known returns what drivers have asked to remember of a datasource.
func (g *Gateway) known(name string) map[string]string {
	all := make(map[string]string)
	rows, err := g.db.Query(context.Background(), `SELECT key, value FROM settings WHERE key >= $1 AND key < $2 ORDER BY key`, knowledge(name), knowledgeEnd(name))
	if err != nil {
		g.log.Error("cannot read what is known of a datasource", "datasource", name, "err", err)
		return all
	}
	defer rows.Close()
	for rows.Next() {
		var key, value string
		if err := rows.Scan(&key, &value); err != nil {
			g.log.Error("cannot read what is known of a datasource", "datasource", name, "err", err)
			return all
		}
		all[strings.TrimPrefix(key, knowledge(name))] = value
	}
	if err := rows.Err(); err != nil {
		g.log.Error("cannot read what is known of a datasource", "datasource", name, "err", err)
	}
	return all
}

// learn remembers something of a datasource, for good.
func (g *Gateway) learn(name, key, value string) error {
	err := g.db.Update(context.Background(), func(tx *store.Tx) error { return store.SetSetting(tx, knowledge(name)+key, value) })
	return fault.Wrap("gateway.learn", name, err)
}

// knowledge is what the keys of settings begin with that hold what drivers remember, and knowledgeEnd is behind all of them.
func knowledge(name string) string    { return "known/" + name + "/" }
func knowledgeEnd(name string) string { return "known/" + name + "0" } // '0' follows '/'

// Forget makes the box forget what the drivers have remembered of a datasource within tx, such as the host key of a server that was given a
// new one on purpose. At the next opening it is learnt anew.
func (g *Gateway) Forget(tx *store.Tx, name string) error {
	_, err := tx.Exec(`DELETE FROM settings WHERE key >= $1 AND key < $2`, knowledge(name), knowledgeEnd(name))
	return fault.Wrap("gateway.Forget", name, err)
}
