-- +goose Up
-- What an append costs beside the flush, less: the epoch is looked up in a sequence instead of by a query, and no trigger
-- looks whether it is append that inserts. That one only stood in the way of an owner who inserts by hand, who has to take
-- lock_log() first, and cost a single append a twentieth of its time.

-- The newest epoch of log_epochs, or one that was about to be: it is set before its row is committed, and never set back. So
-- whoever knows an epoch from log_epochs, and finds it here within the lock, knows that none has begun since. One that was
-- rolled back leaves it ahead, and appends slower, until the next.
CREATE SEQUENCE pipeops.newest_epoch;

-- +goose StatementBegin
CREATE FUNCTION pipeops.note_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.setval('pipeops.newest_epoch', greatest(NEW.epoch, n.last_value)) FROM pipeops.newest_epoch n;
    RETURN NULL;
END $$;
-- +goose StatementEnd

SELECT pipeops.lock_log(); -- nobody begins one meanwhile
CREATE TRIGGER is_newest AFTER INSERT ON pipeops.log_epochs FOR EACH ROW EXECUTE FUNCTION pipeops.note_epoch();
ALTER TABLE pipeops.log_epochs ENABLE ALWAYS TRIGGER is_newest;
SELECT setval('pipeops.newest_epoch', (SELECT max(epoch) FROM pipeops.log_epochs));

-- As before, but never with the number of one that was rolled back.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION pipeops.raise_log_epoch(at_least bigint DEFAULT 0) RETURNS bigint LANGUAGE plpgsql
SET search_path = pg_catalog, pipeops, pg_temp
AS $$
DECLARE
    raised bigint;
BEGIN
    PERFORM lock_log();
    INSERT INTO log_epochs (epoch, first_position)
    SELECT greatest(max(l.epoch) + 1, at_least, (SELECT n.last_value + 1 FROM newest_epoch n)),
           coalesce((SELECT max(e.position) FROM events e), 0) + 1
    FROM log_epochs l
    RETURNING log_epochs.epoch INTO raised;
    RETURN raised;
END $$;
-- +goose StatementEnd

-- Not dropped: that would wait for all who read, with everybody waiting behind. Idle, too, for who enables all triggers.
ALTER TABLE pipeops.events DISABLE TRIGGER only_by_append;
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION pipeops.refuse_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END $$;
-- +goose StatementEnd

-- append_known and append_known_one are append_next and append_next_one, which stay for the release before, for who also
-- knows the newest epoch. They answer with the position of the last event, or null: append decides.

-- +goose StatementBegin
CREATE FUNCTION pipeops.append_known(
    server_since timestamptz, epoch bigint, stream text[], version bigint[], id uuid[], project text[], type text[],
    schema_version integer[], body bytea[], occurred_at timestamptz[], actor text[], correlation_id text[], causation_id text[],
    attempt text[], attempt_seq bigint[], trace text[]
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pipeops, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    base bigint;
    latest timestamptz;
BEGIN
    IF pg_advisory_xact_lock(7021798406534587747) IS NULL THEN END IF; -- as PERFORM lock_log(), without a query
    IF server_since IS DISTINCT FROM pg_postmaster_start_time() OR epoch IS DISTINCT FROM pg_sequence_last_value('newest_epoch')
       OR 1 > ANY (version) THEN
        RETURN NULL;
    END IF;
    SELECT e.position, greatest(e.recorded_at, clock_timestamp()) INTO base, latest
    FROM events e ORDER BY e.position DESC LIMIT 1;
    BEGIN
        INSERT INTO events (position, log_epoch, stream, version, id, project_id, type, schema_version, body, occurred_at,
                            recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
        SELECT base + i, epoch, stream[i], version[i], id[i], project[i], type[i], schema_version[i], body[i], occurred_at[i],
               latest, actor[i], correlation_id[i], causation_id[i], attempt[i], attempt_seq[i], trace[i]
        FROM generate_series(1, cardinality(id)) i
        WHERE base IS NOT NULL; -- an empty log is append's
    EXCEPTION WHEN unique_violation THEN
        RETURN NULL;
    END;
    RETURN base + cardinality(id);
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION pipeops.append_known_one(
    server_since timestamptz, epoch bigint, stream text, version bigint, id uuid, project text, type text, schema_version integer,
    body bytea, occurred_at timestamptz, actor text, correlation_id text, causation_id text, attempt text, attempt_seq bigint,
    trace text
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pipeops, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    last bigint;
BEGIN
    IF pg_advisory_xact_lock(7021798406534587747) IS NULL THEN END IF;
    IF server_since IS DISTINCT FROM pg_postmaster_start_time() OR epoch IS DISTINCT FROM pg_sequence_last_value('newest_epoch')
       OR version < 1 THEN
        RETURN NULL;
    END IF;
    INSERT INTO events AS n (position, log_epoch, stream, version, id, project_id, type, schema_version, body, occurred_at,
                             recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
    SELECT e.position + 1, epoch, stream, version, id, project, type, schema_version, body, occurred_at,
           greatest(e.recorded_at, clock_timestamp()), actor, correlation_id, causation_id, attempt, attempt_seq, trace
    FROM (SELECT e.position, e.recorded_at FROM events e ORDER BY e.position DESC LIMIT 1) e
    ON CONFLICT DO NOTHING -- no EXCEPTION: it would take a transaction id of its own
    RETURNING n.position INTO last;
    RETURN last;
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION pipeops.append_known, pipeops.append_known_one FROM PUBLIC;
