-- +goose Up
-- index_blocks took an empty log for one of many blocks, and then never looked at the first events. It fills anew.

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION pipeops.index_blocks(at_most integer) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pipeops, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    first bigint;
    blocks bigint;
BEGIN
    SELECT h.next INTO first FROM event_blocks_head h FOR UPDATE SKIP LOCKED;
    SELECT least(coalesce(max(e.position), 0) / 256 - first, at_most) INTO blocks FROM events e;
    IF first IS NULL OR blocks <= 0 THEN
        RETURN 0;
    END IF;
    INSERT INTO event_blocks (key, block)
    SELECT DISTINCT k.key, (e.position - 1) / 256
    FROM events e, LATERAL (VALUES ('t' || e.type), ('p' || e.project_id), ('c' || e.correlation_id)) AS k (key)
    WHERE e.position > first * 256 AND e.position <= (first + blocks) * 256 AND k.key NOT IN ('p', 'c')
    ORDER BY 1, 2;
    UPDATE event_blocks_head SET next = first + blocks;
    RETURN blocks;
END $$;
-- +goose StatementEnd

DELETE FROM pipeops.event_blocks;
UPDATE pipeops.event_blocks_head SET next = 0;
