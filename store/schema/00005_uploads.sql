-- +goose Up
-- Files that arrive in parts, over many requests. What has come lies in the datasource's area, or in the box's spool.

CREATE TABLE uploads (
	id         TEXT PRIMARY KEY,
	holder     BIGINT NOT NULL,            -- id of the user
	datasource TEXT NOT NULL,
	path       TEXT NOT NULL,
	root       TEXT NOT NULL,              -- the virtual path it was begun under
	folder     TEXT NOT NULL,              -- on the backend, where the parts lie; '' the spool
	slot       BIGINT NOT NULL,            -- bytes of the first part that came: where in the common file the others have their place, 0 none yet
	note       TEXT NOT NULL,              -- words of the protocol
	created    BIGINT NOT NULL,
	done       BIGINT NOT NULL             -- when it was completed, 0 not yet
) STRICT;
CREATE INDEX uploads_holder ON uploads (holder, root, id);

CREATE TABLE parts (
	upload   TEXT NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
	number   BIGINT NOT NULL,
	size     BIGINT NOT NULL,
	sums     TEXT NOT NULL,
	file     TEXT NOT NULL,                -- that holds it, '' the common one
	place    BIGINT NOT NULL,              -- where in the file
	modified BIGINT NOT NULL,
	PRIMARY KEY (upload, number)
) STRICT;

-- +goose Down
DROP TABLE parts;
DROP TABLE uploads;
