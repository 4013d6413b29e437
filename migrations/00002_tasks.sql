-- +goose Up
-- Tasks and dependencies: what the run of a task, of an item of its list, or of a job that depends on others says of itself,
-- and how the edges between jobs stand. Everybody waits while the tables are changed, which takes no time once nobody uses
-- them: so whoever holds them longer, as a dump does, is not waited for, and the migration is tried again.
SET LOCAL lock_timeout = '3s';

ALTER TABLE muster.runs
    ADD COLUMN item        integer,
    ADD COLUMN items       integer,
    ADD COLUMN parent_id   uuid,
    ADD COLUMN depth       smallint,
    ADD COLUMN reused_from uuid,
    ADD COLUMN upstreams   text;    -- JSON

-- The leader moves edges; who changes a job makes and drops them, and leaves those alone that stay.
ALTER TABLE muster.job_dependencies
    ADD COLUMN satisfied_by uuid,                       -- the last run that did; NULL: none since the job's last birth of it
    ADD COLUMN satisfied_at timestamptz,                -- when that run ended
    ADD COLUMN coalesced    integer NOT NULL DEFAULT 0, -- how many more did before it
    ADD COLUMN fresh        boolean NOT NULL DEFAULT true; -- not judged yet: it may start satisfied

-- Edges of jobs that may be due.
CREATE INDEX job_dependencies_open ON muster.job_dependencies (job_id) WHERE satisfied_by IS NOT NULL OR fresh;
