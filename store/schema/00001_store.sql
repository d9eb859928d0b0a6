-- +goose Up
-- Written once for both databases; store/migrate.go says which words differ.

CREATE TABLE settings (
	key   TEXT NOT NULL PRIMARY KEY,
	value TEXT NOT NULL
) STRICT;

CREATE TABLE leases (
	name    TEXT NOT NULL PRIMARY KEY,
	holder  TEXT NOT NULL,
	fence   BIGINT NOT NULL,  -- grows by one with every change of the holder
	expires BIGINT NOT NULL   -- Unix nanoseconds
) STRICT;
