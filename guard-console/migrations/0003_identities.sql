-- Accounts by issuer and subject: `local`, or that of an identity provider. `username` stays what everything here is
-- called by; nobody signs in by an e-mail address or a display name.
ALTER TABLE users ADD COLUMN issuer TEXT NOT NULL DEFAULT 'local';
ALTER TABLE users ADD COLUMN subject TEXT NOT NULL DEFAULT '';
-- `person` or `service`.
ALTER TABLE users ADD COLUMN kind TEXT NOT NULL DEFAULT 'person';
ALTER TABLE users ADD COLUMN display_name TEXT NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN email TEXT NOT NULL DEFAULT '';
UPDATE users SET subject = username;
CREATE UNIQUE INDEX users_identity ON users (issuer, subject);

-- By which provider, how (JSON), and what it is shown at sign-out.
ALTER TABLE sessions ADD COLUMN provider TEXT;
ALTER TABLE sessions ADD COLUMN authentication TEXT;
ALTER TABLE sessions ADD COLUMN id_token TEXT;

ALTER TABLE answers ADD COLUMN issuer TEXT NOT NULL DEFAULT 'local';
ALTER TABLE answers ADD COLUMN subject TEXT NOT NULL DEFAULT '';
ALTER TABLE answers ADD COLUMN authentication TEXT;
UPDATE answers SET subject = username;

-- Identity providers as they were last recorded (JSON).
CREATE TABLE providers (
    name          TEXT   PRIMARY KEY,
    facts         TEXT   NOT NULL
);

-- Keys of service accounts.
CREATE TABLE api_keys (
    digest        TEXT   PRIMARY KEY,
    -- Names it, opens nothing.
    id            TEXT   NOT NULL UNIQUE,
    user_id       TEXT   NOT NULL REFERENCES users (id),
    roles         TEXT   NOT NULL,
    description   TEXT   NOT NULL,
    created_at    BIGINT NOT NULL,
    created_by    TEXT   NOT NULL,
    expires_at    BIGINT NOT NULL,
    last_used_at  BIGINT,
    revoked_at    BIGINT,
    revoked_by    TEXT
);
CREATE INDEX api_keys_user ON api_keys (user_id);
