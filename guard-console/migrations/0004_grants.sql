-- One approval that covers later actions too.
CREATE TABLE grants (
    id            TEXT   PRIMARY KEY,
    host_id       TEXT   NOT NULL REFERENCES hosts (id),
    label         TEXT   NOT NULL,
    -- As records say it (JSON).
    facts         TEXT   NOT NULL,
    user_id       TEXT   NOT NULL REFERENCES users (id),
    granted_at    BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL,
    times         BIGINT,
    used          BIGINT NOT NULL DEFAULT 0,
    last_used_at  BIGINT,
    revoked_at    BIGINT,
    revoked_by    TEXT
);
CREATE INDEX grants_host ON grants (host_id, label, expires_at);
CREATE INDEX grants_granted ON grants (granted_at);

-- The grant that answered it, and for the how manieth time (JSON).
ALTER TABLE requests ADD COLUMN grant_use TEXT;
