-- +goose Up

-- Counters that move with every change, so that other processes notice: 'policy' and 'identity'.
CREATE TABLE epochs (
	name  TEXT NOT NULL PRIMARY KEY,
	epoch BIGINT NOT NULL
) STRICT;
INSERT INTO epochs (name, epoch) VALUES ('policy', 1), ('identity', 1);

CREATE TABLE grants (
	id         BIGINT NOT NULL PRIMARY KEY,
	source     TEXT NOT NULL,           -- who made it: 'apply', 'workspace:docs'
	principal  TEXT NOT NULL,
	datasource TEXT NOT NULL,
	path       TEXT NOT NULL,           -- fs.ValidPath, '.' the root
	rights     BIGINT NOT NULL,         -- bits: 1 read, 2 write, 4 deny
	policy     TEXT NOT NULL,           -- '' or the policy that answers
	expires    BIGINT NOT NULL,         -- Unix nanoseconds, 0 never
	UNIQUE (datasource, path, principal, source)
) STRICT;
CREATE INDEX grants_by_source ON grants (source);
CREATE INDEX grants_by_principal ON grants (principal);

CREATE TABLE policies (
	name TEXT NOT NULL PRIMARY KEY,
	body TEXT NOT NULL                  -- JSON of policy.Policy without its guards
) STRICT;

CREATE TABLE guards (
	policy     TEXT NOT NULL,
	datasource TEXT NOT NULL,
	path       TEXT NOT NULL,
	PRIMARY KEY (policy, datasource, path)
) STRICT;
CREATE INDEX guards_by_place ON guards (datasource, path);

CREATE TABLE locations (
	name TEXT NOT NULL PRIMARY KEY,
	nets TEXT NOT NULL                  -- CIDRs, one a line
) STRICT;

CREATE TABLE users (
	id       BIGINT NOT NULL PRIMARY KEY,
	login    TEXT NOT NULL UNIQUE,      -- canonical
	name     TEXT NOT NULL,
	email    TEXT NOT NULL,
	grp      TEXT NOT NULL,
	profile  TEXT NOT NULL,
	password TEXT NOT NULL,             -- PHC string, '' none
	disabled BIGINT NOT NULL,
	created  BIGINT NOT NULL
) STRICT;
CREATE INDEX users_by_group ON users (grp);

CREATE TABLE user_groups (
	path  TEXT NOT NULL PRIMARY KEY,
	label TEXT NOT NULL
) STRICT;
INSERT INTO user_groups (path, label) VALUES ('/', '');

CREATE TABLE roles (
	name     TEXT NOT NULL PRIMARY KEY,
	label    TEXT NOT NULL,
	profiles TEXT NOT NULL              -- names of the profiles it applies to by itself, separated by spaces
) STRICT;

CREATE TABLE user_roles (
	user_id BIGINT NOT NULL,
	role    TEXT NOT NULL,
	PRIMARY KEY (user_id, role)
) STRICT;
CREATE INDEX user_roles_by_role ON user_roles (role);

CREATE TABLE app_passwords (
	id        BIGINT NOT NULL PRIMARY KEY,
	user_id   BIGINT NOT NULL,
	label     TEXT NOT NULL,
	hash      BYTES NOT NULL UNIQUE,    -- SHA-256 of the password: it is random, so a slow hash would add nothing
	protocols TEXT NOT NULL,            -- separated by spaces, '' all
	created   BIGINT NOT NULL,
	expires   BIGINT NOT NULL           -- 0 never
) STRICT;
CREATE INDEX app_passwords_by_user ON app_passwords (user_id);

CREATE TABLE ssh_keys (
	id          BIGINT NOT NULL PRIMARY KEY,
	user_id     BIGINT NOT NULL,
	fingerprint TEXT NOT NULL UNIQUE,
	key         TEXT NOT NULL,          -- as in authorized_keys, without options
	label       TEXT NOT NULL,
	created     BIGINT NOT NULL
) STRICT;
CREATE INDEX ssh_keys_by_user ON ssh_keys (user_id);

CREATE TABLE s3_keys (
	id      TEXT NOT NULL PRIMARY KEY,  -- the access key
	user_id BIGINT NOT NULL,
	secret  BYTES NOT NULL,             -- sealed
	label   TEXT NOT NULL,
	created BIGINT NOT NULL,
	expires BIGINT NOT NULL             -- 0 never
) STRICT;
CREATE INDEX s3_keys_by_user ON s3_keys (user_id);

CREATE TABLE audit (
	seq    BIGINT NOT NULL PRIMARY KEY,
	time   BIGINT NOT NULL,
	actor  TEXT NOT NULL,
	action TEXT NOT NULL,
	place  TEXT NOT NULL,
	body   BYTES NOT NULL,              -- the whole record, canonically encoded: what the chain is computed over
	hash   BYTES NOT NULL               -- SHA-256 of the former hash and body
) STRICT;

CREATE TABLE audit_head (
	id   BIGINT NOT NULL PRIMARY KEY,
	seq  BIGINT NOT NULL,
	hash BYTES NOT NULL
) STRICT;

CREATE TABLE quotas (
	scope TEXT NOT NULL PRIMARY KEY,    -- 'workspace:docs', 'user:alice'
	used  BIGINT NOT NULL,
	most  BIGINT NOT NULL               -- -1 no limit
) STRICT;

-- +goose Down
DROP TABLE quotas;
DROP TABLE audit_head;
DROP TABLE audit;
DROP TABLE s3_keys;
DROP TABLE ssh_keys;
DROP TABLE app_passwords;
DROP TABLE user_roles;
DROP TABLE roles;
DROP TABLE user_groups;
DROP TABLE users;
DROP TABLE locations;
DROP TABLE guards;
DROP TABLE policies;
DROP TABLE grants;
DROP TABLE epochs;
