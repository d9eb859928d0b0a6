package store

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"cellgate/internal/fault"
)

// unfinished is the setting that marks a PostgreSQL schema whose restoring was cut off. It is deleted in the transaction that brings the rows.
const unfinished = "restore.unfinished"

var errUnfinished = errors.New("a restore into this database was cut off: restore again")

// Restore fills an empty store from a backup, of either database. All or nothing: after a failure, or a crash, the store is still empty,
// and whatever was begun is cleared away by the next Restore. A backup of an older schema is migrated. Kinds: Exist when the store is not
// empty, Corrupt when the backup is cut off or changed, Unsupported when a newer cellgate made it.
func Restore(ctx context.Context, cfg Config, r io.Reader) error {
	const op = "store.Restore"
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dir != "" {
		lock, err := lockDir(cfg.Dir)
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	if cfg.URL == "" {
		return fault.Wrap(op, cfg.Dir, restoreSQLite(ctx, cfg, r))
	}
	return fault.Wrap(op, "", restorePostgres(ctx, cfg, r))
}

// restoreSQLite fills a database in a folder beside its place and moves it there when it is complete and synced.
func restoreSQLite(ctx context.Context, cfg Config, r io.Reader) (err error) {
	const op = "store.Restore"
	if cfg.Dir == "" {
		return fault.New(op, "", fault.Invalid, errors.New("no data folder given"))
	}
	final := filepath.Join(cfg.Dir, sqliteFile)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if info, err := os.Lstat(final + suffix); err == nil && info.Size() > 0 {
			return fault.New(op, sqliteFile+suffix, fault.Exist, errors.New("restoring needs a data folder without a database"))
		}
	}
	temp := filepath.Join(cfg.Dir, "restore")
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	d, err := newSQLite(Config{Dir: temp, Unsynced: true})
	if err != nil {
		return err
	}
	err = load(ctx, d, r)
	if err == nil {
		_, err = d.w.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	}
	if err = errors.Join(err, d.r.Close(), d.w.Close()); err != nil {
		return fault.New(op, "", d.kind(err), err)
	}
	if err := syncFile(filepath.Join(temp, sqliteFile)); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(temp, sqliteFile), final); err != nil {
		return err
	}
	return syncFile(cfg.Dir)
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func restorePostgres(ctx context.Context, cfg Config, r io.Reader) error {
	const op = "store.Restore"
	d, err := newPostgres(cfg)
	if err != nil {
		return err
	}
	defer d.w.Close()
	defer d.r.Close()
	if err := d.clear(ctx, false); err != nil {
		return fault.New(op, "", d.kind(err), err)
	}
	if err := load(ctx, d, r); err != nil {
		// The caller may have cancelled: clearing away has a time limit of its own.
		ctx, cancel := d.timeout()
		defer cancel()
		return fault.New(op, "", d.kind(err), errors.Join(err, d.clear(ctx, true)))
	}
	return nil
}

// clear drops the tables of an unfinished restore, or, with ours, of the one that has just failed. It refuses a schema that holds anything else.
func (d *postgresDB) clear(ctx context.Context, ours bool) error {
	return transact(ctx, d, func(tx *Tx) error {
		var n int
		if err := tx.QueryRow(`SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()`).Scan(&n); err != nil || n == 0 {
			return err
		}
		if !ours {
			cut, err := d.unfinished(tx)
			if err != nil {
				return err
			}
			if !cut {
				return fault.New("store.Restore", "", fault.Exist, errors.New("restoring needs an empty database"))
			}
		}
		all, err := d.tables(tx)
		if err != nil {
			return err
		}
		for _, t := range append(all, table{name: versionTable}) {
			if _, err := tx.Exec(`DROP TABLE IF EXISTS ` + quoted([]string{t.name}) + ` CASCADE`); err != nil {
				return err
			}
		}
		return nil
	})
}

// unfinished reports whether the schema is what a cut-off restore left.
func (d *postgresDB) unfinished(tx *Tx) (bool, error) {
	var exists bool
	if err := tx.QueryRow(`SELECT to_regclass('settings') IS NOT NULL`).Scan(&exists); err != nil || !exists {
		return false, err
	}
	var value string
	err := tx.QueryRow(`SELECT value FROM settings WHERE key = $1`, unfinished).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// transact runs fn once, in a transaction of its own without a time limit.
func transact(ctx context.Context, d dialect, fn func(tx *Tx) error) error {
	w, _ := d.pools()
	conn, err := w.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, d.begin()); err != nil {
		return err
	}
	tx := &Tx{conn: conn, ctx: ctx, kind: d.kind}
	err = tx.run(fn)
	if err == nil {
		err = d.commit(ctx, conn)
	}
	if err != nil {
		if _, e := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK"); e != nil {
			drop(conn)
		}
	}
	return err
}

// load brings the tables of an empty database to the backup's schema, reads its rows in one transaction, and then migrates to the newest schema.
func load(ctx context.Context, d dialect, r io.Reader) error {
	in := newBackupReader(r)
	version, err := in.header()
	if err != nil {
		return err
	}
	w, _ := d.pools()
	if err := migrate(ctx, d, w, version); err != nil {
		return err
	}
	if !d.local() {
		if err := transact(ctx, d, func(tx *Tx) error { return SetSetting(tx, unfinished, "1") }); err != nil {
			return err
		}
	}
	err = transact(ctx, d, func(tx *Tx) error {
		enforce, err := d.unbind(tx)
		if err != nil {
			return err
		}
		tables, err := d.tables(tx)
		if err != nil {
			return err
		}
		for _, t := range tables { // of what the migrations put there
			if _, err := tx.Exec(`DELETE FROM ` + quoted([]string{t.name})); err != nil {
				return err
			}
		}
		insert := func(head string, rows [][]any) error { return tx.Insert(head, "", rows) }
		if err := in.tables(tables, insert); err != nil {
			return err
		}
		return enforce()
	})
	if err != nil {
		return err
	}
	return migrate(ctx, d, w, newest)
}

// unbind lets rows come in any order within a transaction; the returned function brings the foreign keys back, and checks them.
func (d *sqliteDB) unbind(tx *Tx) (func() error, error) {
	_, err := tx.Exec(`PRAGMA defer_foreign_keys = ON`) // until COMMIT
	return func() error { return nil }, err
}

func (d *postgresDB) unbind(tx *Tx) (func() error, error) {
	rows, err := tx.Query(`
		SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint
		WHERE contype = 'f' AND connamespace = current_schema()::regnamespace ORDER BY conrelid, conname`)
	if err != nil {
		return nil, err
	}
	var add []string
	var remove []string
	for rows.Next() {
		var table, name, def string
		if err := rows.Scan(&table, &name, &def); err != nil {
			return nil, err
		}
		remove = append(remove, `ALTER TABLE `+table+` DROP CONSTRAINT `+name)
		add = append(add, `ALTER TABLE `+table+` ADD CONSTRAINT `+name+` `+def)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	run := func(statements []string) error {
		for _, q := range statements {
			if _, err := tx.Exec(q); err != nil {
				return err
			}
		}
		return nil
	}
	return func() error { return run(add) }, run(remove)
}
