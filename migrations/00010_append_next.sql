-- +goose Up
-- append_next and append_next_one append events whose versions are the next ones of their streams for certain, as who
-- appended the ones before them knows: no stream and no id is looked up, the unique indexes tell when somebody else was
-- faster. Then, and on another server process than server_since names (a failover may have lost the ones before), they
-- write nothing and answer null: append decides. Else they answer with the cursor of the last event, "epoch.position".
-- That there is a version before the one given is the caller's word. The owner's guard stays open until the transaction ends.

-- +goose StatementBegin
CREATE FUNCTION pipeops.append_next(
    server_since timestamptz, stream text[], version bigint[], id uuid[], project text[], type text[], schema_version integer[], body bytea[],
    occurred_at timestamptz[], actor text[], correlation_id text[], causation_id text[], attempt text[], attempt_seq bigint[],
    trace text[]
) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pipeops, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    epoch bigint;
    base bigint;
    latest timestamptz;
    switch text;
BEGIN
    IF pg_advisory_xact_lock(7021798406534587747) IS NULL THEN END IF; -- as PERFORM lock_log(), without a query
    IF server_since IS DISTINCT FROM pg_postmaster_start_time() OR 1 > ANY (version) THEN
        RETURN NULL;
    END IF;
    SELECT e.position, e.recorded_at, (SELECT l.epoch FROM log_epochs l ORDER BY l.epoch DESC LIMIT 1)
    INTO base, latest, epoch
    FROM events e ORDER BY e.position DESC LIMIT 1;
    IF base IS NULL THEN -- the log is empty
        base := 0;
        epoch := (SELECT l.epoch FROM log_epochs l ORDER BY l.epoch DESC LIMIT 1);
    END IF;
    latest := greatest(latest, clock_timestamp());
    switch := set_config('pipeops.appending', 'yes', true);
    BEGIN
        INSERT INTO events (position, log_epoch, stream, version, id, project_id, type, schema_version, body, occurred_at,
                            recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
        SELECT base + i, epoch, stream[i], version[i], id[i], project[i], type[i], schema_version[i], body[i], occurred_at[i],
               latest, actor[i], correlation_id[i], causation_id[i], attempt[i], attempt_seq[i], trace[i]
        FROM generate_series(1, cardinality(id)) i;
    EXCEPTION WHEN unique_violation THEN
        RETURN NULL;
    END;
    RETURN concat(epoch, '.', base + cardinality(id));
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION pipeops.append_next_one(
    server_since timestamptz, stream text, version bigint, id uuid, project text, type text, schema_version integer, body bytea,
    occurred_at timestamptz, actor text, correlation_id text, causation_id text, attempt text, attempt_seq bigint,
    trace text
) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pipeops, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    epoch bigint;
    base bigint;
    latest timestamptz;
    switch text;
BEGIN
    IF pg_advisory_xact_lock(7021798406534587747) IS NULL THEN END IF;
    IF server_since IS DISTINCT FROM pg_postmaster_start_time() OR version < 1 THEN
        RETURN NULL;
    END IF;
    SELECT e.position, e.recorded_at, (SELECT l.epoch FROM log_epochs l ORDER BY l.epoch DESC LIMIT 1)
    INTO base, latest, epoch
    FROM events e ORDER BY e.position DESC LIMIT 1;
    IF base IS NULL THEN
        base := 0;
        epoch := (SELECT l.epoch FROM log_epochs l ORDER BY l.epoch DESC LIMIT 1);
    END IF;
    switch := set_config('pipeops.appending', 'yes', true);
    BEGIN
        INSERT INTO events (position, log_epoch, stream, version, id, project_id, type, schema_version, body, occurred_at,
                            recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
        VALUES (base + 1, epoch, stream, version, id, project, type, schema_version, body, occurred_at,
                greatest(latest, clock_timestamp()), actor, correlation_id, causation_id, attempt, attempt_seq, trace);
    EXCEPTION WHEN unique_violation THEN
        RETURN NULL;
    END;
    RETURN concat(epoch, '.', base + 1);
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION pipeops.append_next, pipeops.append_next_one FROM PUBLIC;
