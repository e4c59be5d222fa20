-- +goose Up
-- Which blocks of 256 positions hold events of a project, a type or a correlation. It stands for three indexes on
-- events, which cost more than all the rest of an append (13 of 20 µs an event), and follows behind the log: readers
-- look into what it doesn't reach yet. It says nothing that the log doesn't: emptied, with next = 0, it fills again.

DROP INDEX pipeops.events_by_project, pipeops.events_by_type, pipeops.events_by_correlation;

CREATE TABLE pipeops.event_blocks (
    key   text COLLATE "C" NOT NULL, -- 'p' and the project's id, 't' and the type, 'c' and the correlation's id
    block bigint NOT NULL,           -- of the positions 256 × block + 1 to 256 × block + 256
    PRIMARY KEY (key, block)
);

CREATE TABLE pipeops.event_blocks_head (
    next bigint NOT NULL, -- first block that isn't in event_blocks
    one  boolean PRIMARY KEY DEFAULT true CHECK (one)
);
INSERT INTO pipeops.event_blocks_head (next) VALUES (0);

-- +goose StatementBegin
-- index_blocks takes in the next full blocks, at most so many, and answers how many; 0 also while another call is at it.
CREATE FUNCTION pipeops.index_blocks(at_most integer) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pipeops, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    first bigint;
    blocks bigint;
BEGIN
    SELECT h.next INTO first FROM event_blocks_head h FOR UPDATE SKIP LOCKED;
    SELECT least(max(e.position) / 256 - first, at_most) INTO blocks FROM events e;
    IF coalesce(blocks, 0) <= 0 THEN
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

REVOKE ALL ON FUNCTION pipeops.index_blocks FROM PUBLIC;
