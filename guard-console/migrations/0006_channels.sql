-- Channels by which people hear of requests outside the page: how far each has read, and how it goes.
CREATE TABLE channels (
    name            TEXT   PRIMARY KEY,
    -- The last change of a request that it was told of (`requests.seq`).
    seq             BIGINT NOT NULL,
    -- Requests that had arrived when it was set up; of those that were over by then it is told nothing.
    arrived         BIGINT NOT NULL,
    delivered_at    BIGINT,
    failed_at       BIGINT,
    failed_because  TEXT
);

-- What a channel last heard of a request, so that what looks the same is not told again.
CREATE TABLE told (
    channel       TEXT   NOT NULL,
    request_id    TEXT   NOT NULL REFERENCES requests (id),
    version       TEXT   NOT NULL,
    PRIMARY KEY (channel, request_id)
);

-- Messages on their way out, and those that were given up.
CREATE TABLE outbox (
    id            TEXT   PRIMARY KEY,
    -- Of one request, the lower one goes first.
    position      BIGINT NOT NULL UNIQUE,
    channel       TEXT   NOT NULL,
    request_id    TEXT   NOT NULL REFERENCES requests (id),
    event         TEXT   NOT NULL,
    body          TEXT   NOT NULL,
    made_at       BIGINT NOT NULL,
    attempts      BIGINT NOT NULL DEFAULT 0,
    due_at        BIGINT NOT NULL,
    -- Given up: nobody tries again.
    dead_at       BIGINT,
    why           TEXT
);
CREATE INDEX outbox_due ON outbox (channel, dead_at, position);
CREATE INDEX outbox_request ON outbox (channel, request_id, position);
