-- +goose Up
-- What is not an event: rows that change, expire or must be forgotten. The backup covers them with the log.

-- Data keys, wrapped by the master key. Rotation adds a number; the highest of a purpose seals, all of them open.
CREATE TABLE pipeops.keys (
    purpose    text COLLATE "C" NOT NULL,
    number     integer NOT NULL CHECK (number > 0),
    master_id  text COLLATE "C" NOT NULL,
    wrapped    bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (purpose, number)
);

-- One key per person whose data stands in events. Erasing empties the row; the number is never used again.
CREATE TABLE pipeops.subject_keys (
    subject    text COLLATE "C" NOT NULL,
    number     integer NOT NULL CHECK (number > 0),
    key_id     text COLLATE "C" NOT NULL,
    sealed     bytea,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    erased_at  timestamptz,
    PRIMARY KEY (subject, number),
    CHECK ((sealed IS NULL) = (erased_at IS NOT NULL))
);

-- Secrets by project ('' = of the installation) and name; a change adds a version.
CREATE TABLE pipeops.secrets (
    project_id text COLLATE "C" NOT NULL,
    name       text COLLATE "C" NOT NULL,
    version    integer NOT NULL CHECK (version > 0),
    key_id     text COLLATE "C" NOT NULL,
    sealed     bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, name, version)
);

-- Bearer tokens of the API: only their keyed hash is here.
CREATE TABLE pipeops.tokens (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,
    hash       bytea NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_used  timestamptz,
    revoked_at timestamptz
);

-- Output of builds, compressed (gzip), in pieces addressed by where they start.
CREATE TABLE pipeops.build_log_chunks (
    attempt     text COLLATE "C" NOT NULL,
    stream      text COLLATE "C" NOT NULL,
    start       bigint NOT NULL CHECK (start >= 0),
    length      integer NOT NULL CHECK (length > 0),
    packed      bytea NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (attempt, stream, start)
);
ALTER TABLE pipeops.build_log_chunks ALTER COLUMN packed SET STORAGE EXTERNAL;
CREATE INDEX build_log_chunks_by_age ON pipeops.build_log_chunks (received_at);

-- Workers as their heartbeats tell, one row per start (incarnation) of a worker. Times are the database's.
CREATE TABLE pipeops.claims (
    incarnation text COLLATE "C" PRIMARY KEY,
    worker      text COLLATE "C" NOT NULL,
    class       text COLLATE "C" NOT NULL,
    slots       integer NOT NULL CHECK (slots >= 0),
    stopping    boolean NOT NULL,
    since       timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen   timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);

-- Leases: who works on what since the grant. A heartbeat that names the attempt renews it. What a claim was granted
-- follows from its id in the log, so no answer is kept here.
CREATE TABLE pipeops.claim_attempts (
    attempt     text COLLATE "C" PRIMARY KEY,
    incarnation text COLLATE "C" NOT NULL, -- '' until its worker is heard of
    worker      text COLLATE "C" NOT NULL,
    granted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    renewed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);
CREATE INDEX claim_attempts_by_worker ON pipeops.claim_attempts (worker);

-- Where the process is reached that leads in a name now; a hint for the others, rewritten by each new leader.
CREATE TABLE pipeops.leaders (
    name    text COLLATE "C" PRIMARY KEY,
    address text NOT NULL,
    since   timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Read models: their tables are made at run time, one set per version of a projection, and can be dropped and rebuilt.
CREATE SCHEMA IF NOT EXISTS projections;
