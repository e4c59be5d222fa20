-- +goose Up
-- The log: every position once, in commit order, without a gap, for ever.

CREATE TABLE pipeops.log_epochs (
    epoch          bigint PRIMARY KEY CHECK (epoch > 0),
    first_position bigint NOT NULL CHECK (first_position > 0)
);
INSERT INTO pipeops.log_epochs (epoch, first_position) VALUES (1, 1);

-- Column order is the order of the leaf's fields; body comes last there, as its hash.
-- Empty text, or 0, says "none": a field of a leaf has exactly one form.
-- One CHECK only: PostgreSQL reads the text of each one anew for every statement.
CREATE TABLE pipeops.events (
    position       bigint PRIMARY KEY,
    log_epoch      bigint NOT NULL,
    stream         text COLLATE "C" NOT NULL,
    version        bigint NOT NULL,
    id             uuid NOT NULL,
    project_id     text COLLATE "C" NOT NULL,
    type           text COLLATE "C" NOT NULL,
    schema_version integer NOT NULL,
    body           bytea NOT NULL CHECK (octet_length(body) <= 262144),
    occurred_at    timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL,
    actor          text COLLATE "C" NOT NULL,
    correlation_id text COLLATE "C" NOT NULL,
    causation_id   text COLLATE "C" NOT NULL,
    attempt        text COLLATE "C" NOT NULL,
    attempt_seq    bigint NOT NULL,
    trace          text COLLATE "C" NOT NULL,
    CONSTRAINT events_id_once UNIQUE (id),
    -- The compare-and-set of a stream's version: its newest version is read here, under the append lock, and this
    -- refuses a second one. A table of streams beside it would be a second truth, and one more write per append.
    CONSTRAINT events_version_once UNIQUE (stream, version)
);
CREATE INDEX events_by_project ON pipeops.events (project_id, position) WHERE project_id <> '';
CREATE INDEX events_by_type ON pipeops.events (type, position);
CREATE INDEX events_by_correlation ON pipeops.events (correlation_id, position) WHERE correlation_id <> '';

-- Where readers of the log stand whose progress is committed together with what they append.
CREATE TABLE pipeops.cursors (
    name     text COLLATE "C" PRIMARY KEY,
    epoch    bigint NOT NULL,
    position bigint NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What came in from outside, byte for byte, sealed; in the same transaction as the event that it led to.
CREATE TABLE pipeops.deliveries (
    id           text COLLATE "C" PRIMARY KEY,
    event_id     uuid NOT NULL,
    project_id   text COLLATE "C" NOT NULL,
    content_type text NOT NULL,
    key_id       text COLLATE "C" NOT NULL,
    sealed       bytea NOT NULL,
    received_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE pipeops.deliveries ALTER COLUMN sealed SET STORAGE EXTERNAL; -- ciphertext does not compress
CREATE INDEX deliveries_by_event ON pipeops.deliveries (event_id);
CREATE INDEX deliveries_by_age ON pipeops.deliveries (received_at);

-- +goose StatementBegin
CREATE FUNCTION pipeops.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %.% is refused: what is recorded never changes; a correction is a new event',
        TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION pipeops.refuse_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'INSERT into %.% is refused: only pipeops.append keeps the order; call that',
        TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;
-- +goose StatementEnd

CREATE TRIGGER never_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON pipeops.events
    FOR EACH STATEMENT EXECUTE FUNCTION pipeops.refuse_change();
-- A guard against accidents of the owner's. The application has no right to INSERT, whatever it sets.
CREATE TRIGGER only_by_append BEFORE INSERT ON pipeops.events
    FOR EACH STATEMENT WHEN (current_setting('pipeops.appending', true) IS DISTINCT FROM 'yes')
    EXECUTE FUNCTION pipeops.refuse_insert();
CREATE TRIGGER never_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON pipeops.log_epochs
    FOR EACH STATEMENT EXECUTE FUNCTION pipeops.refuse_change();
-- ALWAYS: session_replication_role = replica does not get round them either.
ALTER TABLE pipeops.events ENABLE ALWAYS TRIGGER never_changes;
ALTER TABLE pipeops.events ENABLE ALWAYS TRIGGER only_by_append;
ALTER TABLE pipeops.log_epochs ENABLE ALWAYS TRIGGER never_changes;

-- +goose StatementBegin
-- The one lock of the log, held until the transaction ends. Whoever takes it first takes nothing else before, so
-- nothing can deadlock, and every statement after it sees all that was appended.
CREATE FUNCTION pipeops.lock_log() RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(7021798406534587747) -- any number; "append" is this one
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- append writes what many callers want, each whole or not at all, as if one after the other in the order given.
-- The client sees to it that no two callers of a call share a stream, an id or a cursor. Callers are numbered from 1.
--
-- Three sets of parallel arrays: the streams that callers write to, each with the version that it must have
-- (-1: any); the events, each with the number of its write and its offset within it, both from 1, and the stream of
-- that write; cursor moves; and attachments.
--
-- It answers with the epoch and the position that the first new event follows. New events of the callers that
-- are not in exceptions (null: none) have the positions after it, in order. Each exception is an object with the caller
-- and its code:
--   known     its events were there already: first and last position and epoch
--   mismatch  an id is taken by something else, or only some of its ids are there: id, reason
--   conflict  a stream has another version: stream, expected, actual
--   cursor    a cursor stands elsewhere: name, epoch, position
CREATE FUNCTION pipeops.append(
    write_caller integer[], write_stream text[], write_expected bigint[],
    event_write integer[], event_offset integer[], event_stream text[], event_id uuid[], event_project text[],
    event_type text[], event_schema_version integer[], event_body bytea[], event_occurred_at timestamptz[], event_actor text[],
    event_correlation_id text[], event_causation_id text[], event_attempt text[], event_attempt_seq bigint[],
    event_trace text[],
    move_caller integer[], move_name text[], move_from_epoch bigint[], move_from_position bigint[],
    move_to_epoch bigint[], move_to_position bigint[],
    attachment_caller integer[], attachment_id text[], attachment_event uuid[], attachment_project text[],
    attachment_content_type text[], attachment_key_id text[], attachment_sealed bytea[],
    OUT epoch bigint, OUT base bigint, OUT exceptions jsonb
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pipeops, pg_temp
SET enable_seqscan = off -- a plan made while the log was empty must not stay a scan
AS $$
DECLARE
    latest timestamptz;
    actual bigint[];
    refused integer[] := '{}'; -- callers that write nothing, known ones among them
    known integer[] := '{}';   -- callers whose events are all there already
    skipped integer[];         -- how many events before each one are not written, -1 for one of these; null: all are
    more jsonb;
    switch text;
BEGIN
    PERFORM lock_log();
    SELECT e.position, e.recorded_at INTO base, latest FROM events e ORDER BY e.position DESC LIMIT 1;
    SELECT max(l.epoch) INTO epoch FROM log_epochs l;
    base := coalesce(base, 0);
    latest := greatest(latest, clock_timestamp());

    -- Ids come before versions: a repeat is answered as the first time, whatever has happened since.
    IF EXISTS (SELECT FROM unnest(event_id) AS i (id) JOIN events e ON e.id = i.id) THEN
        WITH wanted AS (
            SELECT write_caller[i.write] AS caller, i.id, e.position, e.log_epoch, e.id IS NOT NULL AS is_there,
                   e.stream = i.stream AND e.type = i.type AND sha256(e.body) = sha256(i.body) AS is_same
            FROM unnest(event_write, event_stream, event_id, event_type, event_body) AS i (write, stream, id, type, body)
            LEFT JOIN events e ON e.id = i.id
        ), judged AS (
            SELECT w.caller, bool_and(w.is_there AND w.is_same) AS is_known,
                   min(w.position) AS first, min(w.log_epoch) AS first_epoch,
                   max(w.position) AS last, max(w.log_epoch) AS last_epoch,
                   min(w.id::text) FILTER (WHERE w.is_there AND NOT w.is_same) AS other,
                   min(w.id::text) FILTER (WHERE NOT w.is_there) AS missing
            FROM wanted w GROUP BY w.caller HAVING bool_or(w.is_there)
        )
        SELECT array_agg(j.caller), coalesce(array_agg(j.caller) FILTER (WHERE j.is_known), '{}'),
               jsonb_agg(CASE WHEN j.is_known
                   THEN jsonb_build_object('caller', j.caller, 'code', 'known', 'first', j.first, 'last', j.last,
                                           'firstEpoch', j.first_epoch, 'lastEpoch', j.last_epoch)
                   ELSE jsonb_build_object('caller', j.caller, 'code', 'mismatch', 'id', coalesce(j.other, j.missing),
                                           'reason', CASE WHEN j.other IS NULL THEN 'missing' ELSE 'different' END)
                   END)
        INTO refused, known, exceptions
        FROM judged j;
    END IF;

    -- The newest version of each stream, 0 for a new one, in the order of the writes.
    SELECT coalesce(array_agg(coalesce(newest.version, 0) ORDER BY w.number), '{}') INTO actual
    FROM unnest(write_stream) WITH ORDINALITY AS w (stream, number)
    LEFT JOIN LATERAL (
        SELECT e.version FROM events e WHERE e.stream = w.stream ORDER BY e.version DESC LIMIT 1
    ) newest ON true;
    IF EXISTS (SELECT FROM unnest(write_expected, actual) AS w (expected, actual)
               WHERE w.expected >= 0 AND w.expected <> w.actual) THEN
        SELECT refused || coalesce(array_agg(c.caller), '{}'),
               coalesce(exceptions, '[]') || coalesce(jsonb_agg(jsonb_build_object('caller', c.caller,
                   'code', 'conflict', 'stream', c.stream, 'expected', c.expected, 'actual', c.actual)), '[]')
        INTO refused, exceptions
        FROM (
            SELECT DISTINCT ON (w.caller) w.caller, w.stream, w.expected, w.actual
            FROM unnest(write_caller, write_stream, write_expected, actual) WITH ORDINALITY
                AS w (caller, stream, expected, actual, number)
            WHERE w.expected >= 0 AND w.expected <> w.actual AND w.caller <> ALL (refused)
            ORDER BY w.caller, w.number
        ) c;
    END IF;

    -- A cursor fences: who doesn't stand where it says may not write. A repeat may find its own move done.
    IF cardinality(move_caller) > 0 THEN
        WITH moves AS (
            SELECT m.*, coalesce(c.epoch, 0) AS epoch, coalesce(c.position, 0) AS position,
                   (coalesce(c.epoch, 0), coalesce(c.position, 0)) = (m.from_epoch, m.from_position) AS at_start,
                   (coalesce(c.epoch, 0), coalesce(c.position, 0)) = (m.to_epoch, m.to_position)
                       AND (m.caller = ANY (known) OR m.caller <> ALL (coalesce(write_caller, '{}'))) AS at_end
            FROM unnest(move_caller, move_name, move_from_epoch, move_from_position, move_to_epoch, move_to_position)
                AS m (caller, name, from_epoch, from_position, to_epoch, to_position)
            LEFT JOIN cursors c ON c.name = m.name
            WHERE m.caller <> ALL (refused) OR m.caller = ANY (known)
        ), elsewhere AS (
            SELECT m.* FROM moves m WHERE NOT m.at_start AND NOT m.at_end
        ), moved AS (
            INSERT INTO cursors AS c (name, epoch, position)
            SELECT m.name, m.to_epoch, m.to_position FROM moves m WHERE m.at_start
            ON CONFLICT (name) DO UPDATE
                SET epoch = excluded.epoch, position = excluded.position, moved_at = excluded.moved_at
        )
        SELECT array_agg(m.caller),
               jsonb_agg(jsonb_build_object('caller', m.caller, 'code', 'cursor', 'name', m.name,
                   'epoch', m.epoch, 'position', m.position))
        INTO known, more -- known is done with: it now holds the fenced ones
        FROM elsewhere m;
        IF more IS NOT NULL THEN
            refused := refused || known;
            -- A known caller that was fenced gets only this answer.
            SELECT coalesce(jsonb_agg(x), '[]') || more INTO exceptions
            FROM jsonb_array_elements(coalesce(exceptions, '[]')) x WHERE (x ->> 'caller')::integer <> ALL (known);
        END IF;
    END IF;

    IF cardinality(refused) > 0 THEN
        SELECT array_agg(CASE WHEN e.is_out THEN -1 ELSE e.out_before END ORDER BY e.number) INTO skipped
        FROM (
            SELECT i.number, write_caller[i.write] = ANY (refused) AS is_out,
                   count(*) FILTER (WHERE write_caller[i.write] = ANY (refused)) OVER (ORDER BY i.number) AS out_before
            FROM unnest(event_write) WITH ORDINALITY AS i (write, number)
        ) e;
    END IF;
    switch := set_config('pipeops.appending', 'yes', true);
    INSERT INTO events (position, log_epoch, stream, version, id, project_id, type, schema_version, body, occurred_at,
                        recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
    SELECT base + i.number - coalesce(skipped[i.number], 0), epoch, i.stream, actual[i.write] + i.ofs, i.id, i.project_id,
           i.type, i.schema_version, i.body, i.occurred_at, latest, i.actor, i.correlation_id, i.causation_id, i.attempt,
           i.attempt_seq, i.trace
    FROM unnest(event_write, event_offset, event_stream, event_id, event_project, event_type, event_schema_version,
                event_body, event_occurred_at, event_actor, event_correlation_id, event_causation_id, event_attempt,
                event_attempt_seq, event_trace) WITH ORDINALITY
         AS i (write, ofs, stream, id, project_id, type, schema_version, body, occurred_at, actor, correlation_id,
               causation_id, attempt, attempt_seq, trace, number)
    WHERE coalesce(skipped[i.number], 0) >= 0;
    switch := set_config('pipeops.appending', 'no', true);

    IF cardinality(attachment_caller) > 0 THEN
        INSERT INTO deliveries (id, event_id, project_id, content_type, key_id, sealed)
        SELECT a.id, a.event_id, a.project_id, a.content_type, a.key_id, a.sealed
        FROM unnest(attachment_caller, attachment_id, attachment_event, attachment_project, attachment_content_type,
                    attachment_key_id, attachment_sealed)
             AS a (caller, id, event_id, project_id, content_type, key_id, sealed)
        WHERE a.caller <> ALL (refused);
    END IF;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- append_one is append for one event of one caller: plain statements when nothing is unusual (one large statement takes
-- longer to start), else append decides.
CREATE FUNCTION pipeops.append_one(
    stream text, expected bigint, id uuid, project text, type text, schema_version integer, body bytea,
    occurred_at timestamptz, actor text, correlation_id text, causation_id text, attempt text, attempt_seq bigint,
    trace text, OUT epoch bigint, OUT base bigint, OUT exceptions jsonb
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pipeops, pg_temp
SET enable_seqscan = off
AS $$
#variable_conflict use_variable
DECLARE
    latest timestamptz;
    newest bigint;
    switch text;
BEGIN
    PERFORM lock_log();
    SELECT e.version INTO newest FROM events e WHERE e.stream = append_one.stream ORDER BY e.version DESC LIMIT 1;
    newest := coalesce(newest, 0);
    IF expected < 0 OR expected = newest THEN
        SELECT e.position, e.recorded_at INTO base, latest FROM events e ORDER BY e.position DESC LIMIT 1;
        SELECT max(l.epoch) INTO epoch FROM log_epochs l;
        base := coalesce(base, 0);
        switch := set_config('pipeops.appending', 'yes', true);
        INSERT INTO events (position, log_epoch, stream, version, id, project_id, type, schema_version, body,
                            occurred_at, recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace)
        VALUES (base + 1, epoch, stream, newest + 1, id, project, type, schema_version, body, occurred_at,
                greatest(latest, clock_timestamp()), actor, correlation_id, causation_id, attempt, attempt_seq, trace)
        ON CONFLICT ON CONSTRAINT events_id_once DO NOTHING;
        IF FOUND THEN
            switch := set_config('pipeops.appending', 'no', true);
            RETURN;
        END IF;
    END IF;
    SELECT a.epoch, a.base, a.exceptions INTO epoch, base, exceptions
    FROM append('{1}', ARRAY[stream], ARRAY[expected],
                '{1}', '{1}', ARRAY[stream], ARRAY[id], ARRAY[project], ARRAY[type], ARRAY[schema_version], ARRAY[body],
                ARRAY[occurred_at], ARRAY[actor], ARRAY[correlation_id], ARRAY[causation_id], ARRAY[attempt],
                ARRAY[attempt_seq], ARRAY[trace],
                '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}') a;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- raise_log_epoch is called by the owner after a restore or failover that may have lost the tail: readers that had
-- seen more then learn that the log has forked. It answers with the new epoch. Where the backup may be older than
-- the last raise, give an epoch above all that cursors and tree heads kept elsewhere name.
CREATE FUNCTION pipeops.raise_log_epoch(at_least bigint DEFAULT 0) RETURNS bigint LANGUAGE plpgsql
SET search_path = pg_catalog, pipeops, pg_temp
AS $$
DECLARE
    raised bigint;
BEGIN
    PERFORM lock_log();
    INSERT INTO log_epochs (epoch, first_position)
    SELECT greatest(max(l.epoch) + 1, at_least), coalesce((SELECT max(e.position) FROM events e), 0) + 1
    FROM log_epochs l
    RETURNING log_epochs.epoch INTO raised;
    RETURN raised;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- A body that jsonb cannot hold (a NUL in a string) is shown as a string, so that one event never breaks a query.
CREATE FUNCTION pipeops.body_json(body bytea) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN convert_from(body, 'UTF8')::jsonb;
EXCEPTION WHEN data_exception THEN
    RETURN to_jsonb(convert_from(body, 'UTF8'));
END $$;
-- +goose StatementEnd

CREATE VIEW pipeops.events_json AS
SELECT position, log_epoch, stream, version, id, project_id, type, schema_version, pipeops.body_json(body) AS body,
       occurred_at, recorded_at, actor, correlation_id, causation_id, attempt, attempt_seq, trace
FROM pipeops.events;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pipeops FROM PUBLIC;
