-- +goose Up
-- Which process uses which version of a read model: the tables of one that nobody uses any more are dropped.
CREATE TABLE pipeops.projection_uses (
    projection text COLLATE "C" NOT NULL, -- name with version: "builds_v1"
    process    text COLLATE "C" NOT NULL,
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (projection, process)
) WITH (fillfactor = 70);

-- Checkpoints say more than before: read models begin anew, from the log.
DROP SCHEMA projections CASCADE;
CREATE SCHEMA projections;
