-- Times are Unix milliseconds, digests lower-case hex, lists JSON arrays. Types are those that SQLite and PostgreSQL
-- both know, but for BLOB.

CREATE TABLE users (
    id            TEXT   PRIMARY KEY,
    username      TEXT   NOT NULL UNIQUE,
    password      TEXT   NOT NULL,
    roles         TEXT   NOT NULL,
    user_groups   TEXT   NOT NULL,
    created_at    BIGINT NOT NULL,
    created_by    TEXT,
    disabled_at   BIGINT,
    disabled_by   TEXT
);

CREATE TABLE sessions (
    digest        TEXT   PRIMARY KEY,
    user_id       TEXT   NOT NULL REFERENCES users (id),
    kind          TEXT   NOT NULL,
    address       TEXT   NOT NULL,
    signed_in_at  BIGINT NOT NULL,
    last_used_at  BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_id);

-- At most one row: the set-up secret that makes the first administrator.
CREATE TABLE setup (
    digest        TEXT   PRIMARY KEY,
    expires_at    BIGINT NOT NULL
);

CREATE TABLE enrolment_tokens (
    digest        TEXT   PRIMARY KEY,
    description   TEXT   NOT NULL,
    created_by    TEXT   NOT NULL,
    created_at    BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL,
    used_at       BIGINT,
    used_by_host  TEXT
);

CREATE TABLE hosts (
    id                      TEXT   PRIMARY KEY,
    name                    TEXT   NOT NULL UNIQUE,
    machine_id              TEXT   NOT NULL,
    evidence_key            BLOB   NOT NULL,
    agent_version           TEXT   NOT NULL,
    kernel                  TEXT   NOT NULL DEFAULT '',
    boot_id                 TEXT   NOT NULL DEFAULT '',
    policy_digest           TEXT   NOT NULL DEFAULT '',
    labels                  TEXT   NOT NULL DEFAULT '[]',
    enforcing               BIGINT NOT NULL DEFAULT 0,
    enforcing_since         BIGINT,
    last_seen               BIGINT,
    lost_events             BIGINT NOT NULL DEFAULT 0,
    enrolled_at             BIGINT NOT NULL,
    enrolled_by             TEXT   NOT NULL,
    certificate_expires_at  BIGINT NOT NULL,
    revoked_at              BIGINT,
    revoked_by              TEXT
);

CREATE TABLE labels (
    name          TEXT   PRIMARY KEY,
    owner         TEXT   REFERENCES users (username),
    description   TEXT   NOT NULL,
    updated_at    BIGINT NOT NULL,
    updated_by    TEXT   NOT NULL
);

CREATE TABLE requests (
    id               TEXT   PRIMARY KEY,
    host_id          TEXT   NOT NULL REFERENCES hosts (id),
    label            TEXT   NOT NULL,
    action           TEXT   NOT NULL,
    -- What it would run and with which arguments, to count earlier ones.
    program_key      TEXT   NOT NULL,
    action_key       TEXT   NOT NULL,
    -- SHA-256 of the record's payload: what people are shown and decisions bind.
    digest           TEXT   NOT NULL,
    record           BLOB   NOT NULL,
    nonce            TEXT   NOT NULL,
    what             TEXT   NOT NULL,
    approver_groups  TEXT   NOT NULL,
    quorum           BIGINT NOT NULL,
    asked_at         BIGINT NOT NULL,
    expires_at       BIGINT,
    state            TEXT   NOT NULL,
    ended_at         BIGINT,
    ended_because    TEXT,
    -- The label's owner when the request ended, as it went into the decision.
    owner_then       TEXT,
    decision         BLOB,
    decision_expires_at   BIGINT,
    decision_received_at  BIGINT,
    decision_refused      TEXT,
    outcome          TEXT,
    outcome_detail   TEXT,
    outcome_at       BIGINT,
    -- Order of arrival: no host's clock decides what stands first.
    arrived          BIGINT NOT NULL UNIQUE,
    -- Grows with every change of any request: event ids and resynchronisation.
    seq              BIGINT NOT NULL UNIQUE
);
CREATE INDEX requests_state ON requests (state, arrived);
CREATE INDEX requests_host ON requests (host_id, state);
CREATE INDEX requests_label ON requests (label, arrived);
CREATE INDEX requests_action ON requests (action_key);
CREATE INDEX requests_program ON requests (program_key);

-- One per person and request: the key is what keeps a person from filling a quorum twice.
CREATE TABLE answers (
    request_id    TEXT   NOT NULL REFERENCES requests (id),
    user_id       TEXT   NOT NULL REFERENCES users (id),
    username      TEXT   NOT NULL,
    user_groups   TEXT   NOT NULL,
    roles         TEXT   NOT NULL,
    verdict       TEXT   NOT NULL,
    reason        TEXT   NOT NULL,
    at            BIGINT NOT NULL,
    channel       TEXT   NOT NULL,
    signed_in_at  BIGINT NOT NULL,
    shown_digest  TEXT   NOT NULL,
    PRIMARY KEY (request_id, user_id)
);

-- The log: append only. `position` counts from 0 without gaps.
CREATE TABLE records (
    position      BIGINT PRIMARY KEY,
    digest        TEXT   NOT NULL,
    leaf_hash     BLOB   NOT NULL,
    envelope      BLOB   NOT NULL,
    host_id       TEXT   NOT NULL REFERENCES hosts (id),
    epoch         BIGINT NOT NULL,
    sequence      BIGINT NOT NULL,
    kind          TEXT   NOT NULL,
    request_id    TEXT,
    label         TEXT,
    at            BIGINT NOT NULL,
    stored_at     BIGINT NOT NULL,
    summary       TEXT   NOT NULL,
    UNIQUE (host_id, epoch, sequence)
);
CREATE INDEX records_digest ON records (digest);
CREATE INDEX records_request ON records (request_id);
CREATE INDEX records_label ON records (label, position);

-- What does not fit: gaps, forks and refused records. Once each.
CREATE TABLE alarms (
    id            TEXT   PRIMARY KEY,
    at            BIGINT NOT NULL,
    host_id       TEXT   NOT NULL REFERENCES hosts (id),
    kind          TEXT   NOT NULL,
    detail        TEXT   NOT NULL,
    UNIQUE (host_id, kind, detail)
);
