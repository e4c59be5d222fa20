-- +goose Up
-- What proves the log: the tree of hashes over it, and the heads that were signed. Neither ever changes.

-- The log's own name, made once. It stands in every checkpoint, and comes along with a backup.
CREATE TABLE pipeops.log_identity (
    id   uuid NOT NULL,
    single boolean PRIMARY KEY DEFAULT true CHECK (single)
);
INSERT INTO pipeops.log_identity (id) VALUES (gen_random_uuid());

-- Complete tiles of an RFC 6962 tree whose leaf n is that of position n+1: 256 hashes of level 8*level from number
-- index*256 on. A tile counts for what was recorded before the next log epoch began: after a fork the ones beyond it
-- are made anew, in the new epoch.
CREATE TABLE pipeops.tree_tiles (
    level     smallint NOT NULL CHECK (level BETWEEN 0 AND 7),
    index     bigint NOT NULL CHECK (index >= 0),
    log_epoch bigint NOT NULL,
    hashes    bytea NOT NULL CHECK (octet_length(hashes) = 8192),
    PRIMARY KEY (level, index, log_epoch)
);
ALTER TABLE pipeops.tree_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL; -- hashes do not compress

-- Signed tree heads, C2SP checkpoints.
CREATE TABLE pipeops.tree_heads (
    log_epoch  bigint NOT NULL,
    size       bigint NOT NULL CHECK (size > 0),
    root       bytea NOT NULL CHECK (octet_length(root) = 32),
    checkpoint text NOT NULL, -- the signed note, whole
    signed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log_epoch, size)
);

CREATE VIEW pipeops.valid_tiles AS
SELECT t.level, t.index, t.log_epoch, t.hashes FROM pipeops.tree_tiles t
WHERE NOT EXISTS (SELECT FROM pipeops.log_epochs l
                  WHERE l.epoch > t.log_epoch AND l.first_position <= (t.index + 1) << (8 * (t.level + 1)));

CREATE TRIGGER never_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON pipeops.log_identity
    FOR EACH STATEMENT EXECUTE FUNCTION pipeops.refuse_change();
CREATE TRIGGER never_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON pipeops.tree_tiles
    FOR EACH STATEMENT EXECUTE FUNCTION pipeops.refuse_change();
CREATE TRIGGER never_changes BEFORE UPDATE OR DELETE OR TRUNCATE ON pipeops.tree_heads
    FOR EACH STATEMENT EXECUTE FUNCTION pipeops.refuse_change();
ALTER TABLE pipeops.log_identity ENABLE ALWAYS TRIGGER never_changes;
ALTER TABLE pipeops.tree_tiles ENABLE ALWAYS TRIGGER never_changes;
ALTER TABLE pipeops.tree_heads ENABLE ALWAYS TRIGGER never_changes;

-- +goose StatementBegin
-- add_tiles keeps complete tiles of what is recorded. A tile that is there already stays: it must be the same.
CREATE FUNCTION pipeops.add_tiles(epoch bigint, tile_level smallint[], tile_index bigint[], tile_hashes bytea[])
RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pipeops, pg_temp
AS $$
DECLARE
    bad record;
BEGIN
    IF epoch IS DISTINCT FROM (SELECT max(l.epoch) FROM log_epochs l) THEN
        RAISE EXCEPTION 'tiles of log epoch %, which is not the newest', epoch USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- A tile of level l spans 256^(l+1) positions.
    SELECT t.level, t.index INTO bad FROM unnest(tile_level, tile_index) AS t (level, index)
    WHERE (t.index + 1) << (8 * (t.level + 1)) > coalesce((SELECT max(e.position) FROM events e), 0);
    IF FOUND THEN
        RAISE EXCEPTION 'tile %/% is ahead of the log', bad.level, bad.index USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO tree_tiles (level, index, log_epoch, hashes)
    SELECT t.level, t.index, epoch, t.hashes FROM unnest(tile_level, tile_index, tile_hashes) AS t (level, index, hashes)
    ON CONFLICT DO NOTHING;
    SELECT t.level, t.index INTO bad FROM unnest(tile_level, tile_index, tile_hashes) AS t (level, index, hashes)
    JOIN tree_tiles k ON k.level = t.level AND k.index = t.index AND k.log_epoch = epoch AND k.hashes <> t.hashes;
    IF FOUND THEN
        RAISE EXCEPTION 'tile %/% of log epoch % is there with other hashes', bad.level, bad.index, epoch
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
-- add_head keeps a signed head. It is never ahead of the log or of its tiles, and never goes back: false says that a
-- newer one, or this one, is there already.
CREATE FUNCTION pipeops.add_head(epoch bigint, head_size bigint, head_root bytea, head_checkpoint text)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pipeops, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7021798406534587749); -- of one head at a time; any number
    IF epoch IS DISTINCT FROM (SELECT max(l.epoch) FROM log_epochs l) THEN
        RAISE EXCEPTION 'head of log epoch %, which is not the newest', epoch USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF head_size > coalesce((SELECT max(e.position) FROM events e), 0)
        OR head_size >= 256 AND NOT EXISTS (SELECT FROM valid_tiles t WHERE t.level = 0 AND t.index = head_size / 256 - 1) THEN
        RAISE EXCEPTION 'head of % events is ahead of the log or of its tiles', head_size USING ERRCODE = 'check_violation';
    END IF;
    IF head_size <= (SELECT max(h.size) FROM tree_heads h WHERE h.log_epoch = epoch) THEN
        RETURN false;
    END IF;
    INSERT INTO tree_heads (log_epoch, size, root, checkpoint) VALUES (epoch, head_size, head_root, head_checkpoint);
    RETURN true;
END $$;
-- +goose StatementEnd

REVOKE ALL ON FUNCTION pipeops.add_tiles, pipeops.add_head FROM PUBLIC;
