-- +goose Up
-- append and append_one as before, with fewer and smaller statements: what an append costs beside the flush is mostly
-- their start. Arrays are read by subscript (PL/pgSQL keeps them unpacked): unnest of fifteen copies each one first.

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION pipeops.append(
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
    some_there boolean;
    switch text;
BEGIN
    PERFORM lock_log();
    -- actual: the newest version of each stream, 0 for a new one, in the order of the writes.
    SELECT (SELECT l.epoch FROM log_epochs l ORDER BY l.epoch DESC LIMIT 1),
           EXISTS (SELECT FROM events e WHERE e.id = ANY (event_id)),
           ARRAY(SELECT coalesce((SELECT e.version FROM events e WHERE e.stream = write_stream[i] ORDER BY e.version DESC LIMIT 1), 0)
                 FROM generate_series(1, cardinality(write_stream)) i),
           newest.position, newest.recorded_at
    INTO epoch, some_there, actual, base, latest
    FROM (VALUES (1)) one LEFT JOIN LATERAL (
        SELECT e.position, e.recorded_at FROM events e ORDER BY e.position DESC LIMIT 1
    ) newest ON true;
    base := coalesce(base, 0);
    latest := greatest(latest, clock_timestamp());

    -- Ids come before versions: a repeat is answered as the first time, whatever has happened since.
    IF some_there THEN
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

    IF EXISTS (SELECT FROM generate_series(1, cardinality(write_expected)) i
               WHERE write_expected[i] >= 0 AND write_expected[i] <> actual[i]) THEN
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
    SELECT base + i - coalesce(skipped[i], 0), epoch, event_stream[i], actual[event_write[i]] + event_offset[i], event_id[i],
           event_project[i], event_type[i], event_schema_version[i], event_body[i], event_occurred_at[i], latest,
           event_actor[i], event_correlation_id[i], event_causation_id[i], event_attempt[i], event_attempt_seq[i], event_trace[i]
    FROM generate_series(1, cardinality(event_id)) i
    WHERE coalesce(skipped[i], 0) >= 0;
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
CREATE OR REPLACE FUNCTION pipeops.append_one(
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
    SELECT coalesce((SELECT e.version FROM events e WHERE e.stream = append_one.stream ORDER BY e.version DESC LIMIT 1), 0),
           (SELECT l.epoch FROM log_epochs l ORDER BY l.epoch DESC LIMIT 1),
           coalesce(last.position, 0), last.recorded_at
    INTO newest, epoch, base, latest
    FROM (VALUES (1)) one LEFT JOIN LATERAL (
        SELECT e.position, e.recorded_at FROM events e ORDER BY e.position DESC LIMIT 1
    ) last ON true;
    IF expected < 0 OR expected = newest THEN
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
