package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"regexp"
	"testing/fstest"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"cellgate/internal/fault"
)

// The migrations are written once, with the words BIGINT, BYTES and TEXT and tables that end in ") STRICT;" (or ") STRICT, WITHOUT ROWID;"),
// and turned into the words of the database when they are read. A released file is never changed: what comes later is a new number.
//
//go:embed schema/*.sql
var schemaFiles embed.FS

type wording struct {
	word *regexp.Regexp
	with string
}

var (
	sqliteWords = []wording{
		{regexp.MustCompile(`\bBIGINT\b`), "INTEGER"},
		{regexp.MustCompile(`\bBYTES\b`), "BLOB"},
	}
	postgresWords = []wording{
		{regexp.MustCompile(`\bBYTES\b`), "BYTEA"},
		{regexp.MustCompile(`\bTEXT\b`), `TEXT COLLATE "C"`},
		{regexp.MustCompile(`\)\s*STRICT(\s*,\s*WITHOUT\s+ROWID)?\s*;`), ");"},
	}
)

// comments are dropped before words are replaced; goose's own annotations stay.
var comment = regexp.MustCompile(`(?m)--[ \t]*([^+ \t\n][^\n]*)?$`)

// schema returns the migrations in the words of one database.
func schema(words []wording) (fs.FS, error) {
	names, err := fs.Glob(schemaFiles, "schema/*.sql")
	if err != nil {
		return nil, err
	}
	out := make(fstest.MapFS, len(names))
	for _, name := range names {
		b, err := schemaFiles.ReadFile(name)
		if err != nil {
			return nil, err
		}
		b = comment.ReplaceAll(b, nil)
		for _, w := range words {
			b = w.word.ReplaceAll(b, []byte(w.with))
		}
		out[name[len("schema/"):]] = &fstest.MapFile{Data: b, Mode: 0o444}
	}
	return out, nil
}

// newest stands for the newest version in migrate.
const newest = -1

// migrate brings the schema to a version. Nodes that share a PostgreSQL take turns.
func migrate(ctx context.Context, d dialect, db *sql.DB, version int64) error {
	const op = "store.migrate"
	files, err := schema(d.words())
	if err != nil {
		return fault.New(op, "", fault.Internal, err)
	}
	opts := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true), goose.WithTableName(versionTable)}
	kind := goose.DialectSQLite3
	if d.name() == "postgres" {
		kind = goose.DialectPostgres
		locker, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return fault.New(op, "", fault.Internal, err)
		}
		opts = append(opts, goose.WithSessionLocker(locker))
	}
	p, err := goose.NewProvider(kind, db, files, opts...)
	if err != nil {
		return fault.New(op, "", fault.Internal, err)
	}
	sources := p.ListSources() // by version
	last := sources[len(sources)-1].Version
	if version == newest {
		version = last
	}
	if _, err := p.UpTo(ctx, min(version, last)); err != nil {
		return fault.New(op, "", d.kind(err), err)
	}
	now, err := p.GetDBVersion(ctx)
	if err != nil {
		return fault.New(op, "", d.kind(err), err)
	}
	if max(now, version) > last {
		return fault.New(op, "", fault.Unsupported, errors.New("the schema is that of a newer cellgate"))
	}
	return nil
}
