-- What each key of a host may sign. `hosts.evidence_key` is the one with which it joined.
CREATE TABLE evidence_keys (
    host_id        TEXT   NOT NULL REFERENCES hosts (id),
    -- PKIX DER.
    key            BLOB   NOT NULL,
    -- NULL: named by the key before it, and has signed nothing yet.
    from_epoch     BIGINT,
    -- Positions of the log. NULL: from its beginning.
    from_index     BIGINT,
    -- NULL: in use.
    through_epoch  BIGINT,
    through_index  BIGINT,
    PRIMARY KEY (host_id, key)
);
INSERT INTO evidence_keys (host_id, key, from_epoch) SELECT id, evidence_key, 1 FROM hosts;

-- Keys of the console itself.
CREATE TABLE console_keys (
    -- `decision`: decisions and the console's own records; `log`: checkpoints.
    purpose        TEXT   NOT NULL,
    -- PKIX DER.
    key            BLOB   NOT NULL,
    from_epoch     BIGINT NOT NULL,
    from_index     BIGINT,
    through_epoch  BIGINT,
    through_index  BIGINT,
    -- The envelope in which the key before it named it; NULL: none did.
    statement      BLOB,
    PRIMARY KEY (purpose, key)
);
