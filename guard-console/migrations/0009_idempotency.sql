-- Calls under an Idempotency-Key, for a day.
CREATE TABLE idempotency (
    user_id      TEXT   NOT NULL REFERENCES users (id),
    -- SHA-256 of account and key, hex.
    key_digest   TEXT   NOT NULL,
    -- SHA-256 of method, path and body, hex.
    fingerprint  TEXT   NOT NULL,
    at           BIGINT NOT NULL,
    -- NULL while the call runs, and for ever if it was interrupted.
    status       BIGINT,
    kind         TEXT,
    -- The answer's body, encrypted under a key that only the caller has.
    sealed       BLOB,
    PRIMARY KEY (user_id, key_digest)
);
CREATE INDEX idempotency_at ON idempotency (at);
