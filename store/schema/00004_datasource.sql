-- +goose Up
-- Credentials of each user for datasources in the modes "user" and "session", and datasources that users complete from a template.

ALTER TABLE datasources ADD COLUMN fallback TEXT NOT NULL DEFAULT '';  -- what who has no credentials of his own gets: '' nothing, 'shared'
ALTER TABLE datasources ADD COLUMN owner BIGINT NOT NULL DEFAULT 0;    -- the user who completed it from a template, 0 none
ALTER TABLE datasources ADD COLUMN template TEXT NOT NULL DEFAULT '';  -- that template
ALTER TABLE datasources ADD COLUMN guest BIGINT NOT NULL DEFAULT 0;    -- its address is that user's choice

CREATE TABLE credentials (
	datasource TEXT NOT NULL,
	user_id    BIGINT NOT NULL,
	sealed     BYTES NOT NULL,             -- JSON object of strings
	changed    BIGINT NOT NULL,
	PRIMARY KEY (datasource, user_id)
) STRICT;

CREATE TABLE templates (
	name        TEXT PRIMARY KEY,
	label       TEXT NOT NULL,
	driver      TEXT NOT NULL,
	options     TEXT NOT NULL,             -- JSON object of strings: what the admin filled in
	credentials BYTES,                     -- sealed JSON object of strings, likewise
	asks        TEXT NOT NULL,             -- JSON array of the keys the user fills in
	principals  TEXT NOT NULL,             -- JSON array: who may
	read_only   BIGINT NOT NULL,
	created     BIGINT NOT NULL
) STRICT;
