-- The console has a chain of its own: changes of who may decide. Its records have no host, so the table is made anew.
CREATE TABLE records_2 (
    position      BIGINT PRIMARY KEY,
    digest        TEXT   NOT NULL,
    leaf_hash     BLOB   NOT NULL,
    envelope      BLOB   NOT NULL,
    -- `host:<id>` or `console:<origin>`.
    signer        TEXT   NOT NULL,
    host_id       TEXT   REFERENCES hosts (id),
    epoch         BIGINT NOT NULL,
    sequence      BIGINT NOT NULL,
    kind          TEXT   NOT NULL,
    request_id    TEXT,
    label         TEXT,
    -- Of changes: `user:bob`, `label:coder`, `token:…`, `host:…`.
    about         TEXT,
    at            BIGINT NOT NULL,
    stored_at     BIGINT NOT NULL,
    summary       TEXT   NOT NULL,
    UNIQUE (signer, epoch, sequence)
);
INSERT INTO records_2 (position, digest, leaf_hash, envelope, signer, host_id, epoch, sequence, kind, request_id, label,
                       at, stored_at, summary)
SELECT position, digest, leaf_hash, envelope, 'host:' || host_id, host_id, epoch, sequence, kind, request_id, label,
       at, stored_at, summary
FROM records;
DROP TABLE records;
ALTER TABLE records_2 RENAME TO records;
CREATE INDEX records_digest ON records (digest);
CREATE INDEX records_request ON records (request_id);
CREATE INDEX records_label ON records (label, position);
CREATE INDEX records_about ON records (about, position);
CREATE INDEX records_kind ON records (kind, position);
CREATE INDEX records_host ON records (host_id, kind, position);

-- The last change that was known when a request ended, as it went into the decision (JSON).
ALTER TABLE requests ADD COLUMN changes_then TEXT;
-- Why an answer no longer counts.
ALTER TABLE answers ADD COLUMN void_because TEXT;
