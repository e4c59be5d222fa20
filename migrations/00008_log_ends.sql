-- +goose Up
-- A chunk without bytes says that the output ends where it starts.
ALTER TABLE pipeops.build_log_chunks
    DROP CONSTRAINT build_log_chunks_length_check,
    ADD CONSTRAINT build_log_chunks_length_check CHECK (length >= 0) NOT VALID;
CREATE UNIQUE INDEX build_log_chunks_end ON pipeops.build_log_chunks (attempt, stream) WHERE length = 0;
