-- +goose Up
-- What the core remembers of the storage. The backend is the authority on names and bytes; these rows are an overlay.

CREATE TABLE datasources (
	name        TEXT PRIMARY KEY,
	driver      TEXT NOT NULL,
	options     TEXT NOT NULL,             -- JSON object of strings
	mode        TEXT NOT NULL,             -- of the credentials: shared
	credentials BYTES,                     -- sealed JSON object of strings
	read_only   BIGINT NOT NULL,
	durability  TEXT NOT NULL,
	created     BIGINT NOT NULL
) STRICT;

CREATE TABLE workspaces (
	slug    TEXT PRIMARY KEY,
	label   TEXT NOT NULL,
	roots   TEXT NOT NULL,                 -- JSON array of "datasource:/path", templates allowed
	quota   BIGINT NOT NULL,               -- bytes, -1 none
	created BIGINT NOT NULL
) STRICT;

-- A file or folder that was written through the gateway or that something refers to. depth is the number of segments of path:
-- it makes both "the children of" and "everything below" a range of one index.
CREATE TABLE nodes (
	id         BIGINT PRIMARY KEY,
	datasource TEXT NOT NULL,
	depth      BIGINT NOT NULL,
	path       TEXT NOT NULL,
	folder     BIGINT NOT NULL,
	size       BIGINT NOT NULL,
	mtime      BIGINT NOT NULL,
	fid        BIGINT NOT NULL,            -- the id of the content on the backend (inode), 0 unknown
	sums       TEXT NOT NULL,              -- checksums the writer declared and we verified, "SHA1:… MD5:…"
	owner      TEXT NOT NULL,              -- login that wrote the content, whose quota its size counts on
	created    BIGINT NOT NULL,
	changed    BIGINT NOT NULL
) STRICT;
CREATE UNIQUE INDEX nodes_place ON nodes (datasource, depth, path);

CREATE TABLE props (
	node  BIGINT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
	space TEXT NOT NULL,
	name  TEXT NOT NULL,
	value BYTES NOT NULL,
	PRIMARY KEY (node, space, name)
) STRICT;

CREATE TABLE locks (
	token      TEXT PRIMARY KEY,
	datasource TEXT NOT NULL,
	path       TEXT NOT NULL,
	root       TEXT NOT NULL,              -- the virtual path it was taken under
	holder     BIGINT NOT NULL,            -- id of the user, not the login: a namesake made later holds nothing
	login      TEXT NOT NULL,
	owner      BYTES NOT NULL,             -- the words of the client (RFC 4918 section 14.17)
	shared     BIGINT NOT NULL,
	infinite   BIGINT NOT NULL,
	timeout    BIGINT NOT NULL,
	expires    BIGINT NOT NULL
) STRICT;

-- Operations whose transaction is committed and whose last step on the backend may be outstanding. Replayed at start.
CREATE TABLE journal (
	id         BIGINT PRIMARY KEY,
	datasource TEXT NOT NULL,
	kind       TEXT NOT NULL,
	payload    TEXT NOT NULL,
	created    BIGINT NOT NULL
) STRICT;

-- +goose Down
DROP TABLE journal;
DROP TABLE locks;
DROP TABLE props;
DROP TABLE nodes;
DROP TABLE workspaces;
DROP TABLE datasources;
