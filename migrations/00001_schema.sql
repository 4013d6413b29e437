-- +goose Up
-- Everything of Muster's is in the schema muster, which is there before the first migration runs. Times are timestamptz in
-- UTC with the precision of a microsecond; NULL is what has not happened. Words of closed lists are their numbers in package
-- job. Ids are UUIDs of version 7, so they sort by the time in them, and runs and attempts are partitioned by it. Names sort
-- byte by byte, as in Go (COLLATE "C").

-- One row: whose store this is (S11), and the epoch of the leader that may write (L1).
CREATE TABLE muster.cluster (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    id         text        NOT NULL,
    epoch      bigint      NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    claimed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE muster.jobs (
    id         uuid        PRIMARY KEY,
    namespace  text        NOT NULL COLLATE "C",
    name       text        NOT NULL COLLATE "C",
    version    bigint      NOT NULL CHECK (version > 0),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    labels     jsonb,
    UNIQUE (namespace, name)
);

-- A version is immutable but for from_at, and stays after its job while a live run needs it.
CREATE TABLE muster.job_versions (
    job_id     uuid        NOT NULL,
    version    bigint      NOT NULL,
    from_at    timestamptz NOT NULL, -- it owns the ticks after this (L7)
    created_at timestamptz NOT NULL,
    document   text        NOT NULL, -- JSON, as package job writes it
    deleted_at timestamptz,          -- of its job
    PRIMARY KEY (job_id, version)
);
CREATE INDEX job_versions_deleted ON muster.job_versions (deleted_at) WHERE deleted_at IS NOT NULL;

-- Edges between jobs of one namespace. They are changed under the lock of the namespace's graph, or two edges that close
-- a cycle together could both commit.
CREATE TABLE muster.job_dependencies (
    job_id      uuid     NOT NULL REFERENCES muster.jobs (id) ON DELETE CASCADE,
    upstream_id uuid     NOT NULL REFERENCES muster.jobs (id),
    on_end      smallint NOT NULL CHECK (on_end BETWEEN 1 AND 3), -- 1 success, 2 failure, 3 done
    PRIMARY KEY (job_id, upstream_id),
    CHECK (job_id <> upstream_id)
);
CREATE INDEX job_dependencies_upstream ON muster.job_dependencies (upstream_id);

CREATE TABLE muster.runs (
    id            uuid        NOT NULL,
    root_id       uuid,                 -- NULL: a root run
    namespace     text        NOT NULL COLLATE "C",
    job_id        uuid,                 -- NULL: an inline spec
    job           text        COLLATE "C",
    job_version   bigint,
    task          text,
    trigger       smallint    NOT NULL,
    state         smallint    NOT NULL CHECK (state BETWEEN 1 AND 9), -- 6 and above are final
    reason        smallint,
    priority      smallint    NOT NULL CHECK (priority BETWEEN 0 AND 9),
    attempt       integer,
    losses        integer,
    failures      integer,
    worker        text,
    fence         bigint,               -- of the last attempt that ended
    scheduled_at  timestamptz,
    created_at    timestamptz NOT NULL,
    ready_at      timestamptz,
    queued_at     timestamptz,
    started_at    timestamptz,
    finished_at   timestamptz,
    deadline_at   timestamptz,
    start_by      timestamptz,
    cancel_at     timestamptz,
    cancel_reason smallint,
    lane          text,
    lane_hash     bigint      NOT NULL, -- of lane
    lane_order    bigint      NOT NULL, -- ready time in microseconds - priority * 60 s
    retry_of      uuid,
    canonical_id  uuid,
    backfill_id   text,
    key           text,
    body_hash     bytea,
    exit_code     integer,
    labels        text,                 -- JSON
    payload       text,                 -- JSON, byte for byte as it came
    spec          text,                 -- JSON: the inline document
    result        text,                 -- JSON
    error         text,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE TABLE muster.runs_default PARTITION OF muster.runs DEFAULT;
-- Listing: newest first by job. Other root runs are listed by the primary key.
CREATE INDEX runs_of_job ON muster.runs (namespace, job, id) WHERE job IS NOT NULL AND root_id IS NULL;
CREATE INDEX runs_of_root ON muster.runs (root_id, id) WHERE root_id IS NOT NULL;
-- What the leader looks at: live rows by id, by job, and what may be queued in the order of its lane. A query says with
-- `state <= 5` or `state < 6` which of the first two it means: left to itself the planner walks all live rows for those of
-- one job, where the job has many.
CREATE INDEX runs_live ON muster.runs (id) WHERE state <= 5;
CREATE INDEX runs_live_of_job ON muster.runs (job_id, id) WHERE state < 6 AND job_id IS NOT NULL;
CREATE INDEX runs_lane ON muster.runs (lane_hash, lane_order, id) WHERE state IN (3, 4);

-- Attempts that a run went on after; the last one is in the run itself.
CREATE TABLE muster.attempts (
    run_id      uuid     NOT NULL,
    fence       bigint   NOT NULL,
    attempt     integer  NOT NULL,
    worker      text     NOT NULL,
    started_at  timestamptz,
    finished_at timestamptz,
    state       smallint NOT NULL,
    reason      smallint,
    exit_code   integer,
    error       text,
    PRIMARY KEY (run_id, fence)
) PARTITION BY RANGE (run_id);
CREATE TABLE muster.attempts_default PARTITION OF muster.attempts DEFAULT;

-- The ledger: what became of each tick (D2).
CREATE TABLE muster.ticks (
    job_id       uuid        NOT NULL,
    scheduled_at timestamptz NOT NULL,
    until_at     timestamptz,
    count        integer,
    job_version  bigint      NOT NULL,
    disposition  smallint    NOT NULL,
    reason       smallint,
    decided_at   timestamptz NOT NULL,
    waiting      boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (job_id, scheduled_at)
) PARTITION BY RANGE (scheduled_at);
CREATE TABLE muster.ticks_default PARTITION OF muster.ticks DEFAULT;
-- Few rows are ranges. One may have to stay when its partition goes.
CREATE INDEX ticks_ranges ON muster.ticks (until_at) WHERE until_at IS NOT NULL;

-- Idempotency keys live by time from acceptance and are never evicted early (S9).
CREATE TABLE muster.keys (
    namespace   text        NOT NULL COLLATE "C",
    key         text        NOT NULL COLLATE "C",
    run_id      uuid        NOT NULL,
    body_hash   bytea       NOT NULL,
    accepted_at timestamptz NOT NULL,
    PRIMARY KEY (namespace, key)
);
CREATE INDEX keys_accepted ON muster.keys (accepted_at);

-- What people see of workers that are gone.
CREATE TABLE muster.workers (
    name       text        PRIMARY KEY,
    node       text,
    version    text,
    slots      integer     NOT NULL,
    labels     text,       -- JSON
    first_seen timestamptz NOT NULL,
    last_seen  timestamptz NOT NULL
);

-- Events on their way to a sink; written only when one is configured. Numbers are given before the commit and become
-- visible out of order: read only below pg_snapshot_xmin(pg_current_snapshot()), by (xid, seq).
CREATE TABLE muster.outbox (
    seq    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid    xid8        NOT NULL DEFAULT pg_current_xact_id(),
    run_id uuid        NOT NULL,
    kind   smallint    NOT NULL,
    at     timestamptz NOT NULL,
    body   text        NOT NULL  -- JSON
);

-- The version of the schema that a release must know to use this database. A migration that takes away what older ones
-- use replaces it.
CREATE FUNCTION muster.oldest_schema() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 1::bigint';

-- +goose StatementBegin
-- The leader's fence (L1): every transaction of a leader begins with it. The lock is shared with other transactions of
-- leaders and excludes a raise, which waits for them; the epoch is read after the lock is held, by a snapshot of its own.
CREATE FUNCTION muster.fence(cluster_id text, leader_epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
DECLARE c muster.cluster%ROWTYPE;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7236829178463982);
    SELECT * INTO c FROM muster.cluster;
    IF c.id IS DISTINCT FROM cluster_id THEN
        RAISE EXCEPTION 'this store belongs to the cluster %', c.id USING ERRCODE = 'MU002';
    END IF;
    IF c.epoch <> leader_epoch THEN
        RAISE EXCEPTION 'epoch % was raised', c.epoch USING ERRCODE = 'MU001';
    END IF;
END $$;
-- +goose StatementEnd
