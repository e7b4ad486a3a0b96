-- How far each output for another system has come.
CREATE TABLE siem_outputs (
    name          TEXT   PRIMARY KEY,
    -- Index of the first record that the other side does not have.
    position      BIGINT NOT NULL,
    -- Events that it took, and that it refused for good.
    delivered     BIGINT NOT NULL,
    refused       BIGINT NOT NULL,
    -- When it last took something; 0: never.
    at            BIGINT NOT NULL
);
