-- What people and the leader read.

-- name: run
SELECT {full} FROM muster.runs r WHERE r.id = $1

-- name: load
-- The range lets partitions be left out, which an array does not.
SELECT {full} FROM muster.runs r WHERE r.id = ANY ($1) AND r.id BETWEEN $2 AND $3

-- name: live
SELECT {narrow} FROM muster.runs r WHERE r.state <= 5 AND r.id > $1 ORDER BY r.id LIMIT $2

-- name: live of job
SELECT {narrow} FROM muster.runs r WHERE r.state < 6 AND r.job_id = $1 ORDER BY r.id LIMIT $2

-- name: backlog
-- Each lane is walked along runs_lane from its place on. What is not ready by $6 is passed over, and from $7 on there is
-- nothing else: see Backlog.
SELECT w.n, e.id, e.priority, e.ready_at
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::uuid[], $5::bigint[]) WITH ORDINALITY AS w (lane, hash, place, after, most, n)
CROSS JOIN LATERAL (
    SELECT r.id, r.priority, coalesce(r.ready_at, r.created_at) AS ready_at, r.lane_order
    FROM muster.runs r
    WHERE r.state IN (3, 4) AND r.lane_hash = w.hash AND (r.lane_order, r.id) > (w.place, w.after) AND r.lane_order <= $7
      AND coalesce(r.lane, '') = w.lane AND r.cancel_at IS NULL
      AND (r.state = 4 OR coalesce(r.ready_at, r.created_at) <= $6)
    ORDER BY r.lane_order, r.id
    LIMIT w.most
) e
ORDER BY w.n, e.lane_order, e.id

-- name: attempts
SELECT fence, attempt, worker, started_at, finished_at, state, coalesce(reason, 0), coalesce(exit_code, 0), coalesce(error, '')
FROM muster.attempts WHERE run_id = $1 ORDER BY fence

-- name: run exists
SELECT EXISTS (SELECT FROM muster.runs WHERE id = $1)

-- name: ticks
SELECT job_id, scheduled_at, until_at, coalesce(count, 0), job_version, disposition, coalesce(reason, 0), decided_at, waiting
FROM muster.ticks
WHERE job_id = $1 AND scheduled_at >= $2 AND scheduled_at < $3
ORDER BY scheduled_at DESC LIMIT $4

-- name: usage
-- Counts are exact up to $1, and what the last ANALYZE or VACUUM found beyond: nobody scans 100 million rows for a gauge.
WITH sizes AS (
    SELECT p.relname AS parent, sum(greatest(c.reltuples, 0))::bigint AS rows, sum(pg_total_relation_size(c.oid))::bigint AS bytes
    FROM pg_class p JOIN pg_inherits i ON i.inhparent = p.oid JOIN pg_class c ON c.oid = i.inhrelid
    WHERE p.relnamespace = 'muster'::regnamespace AND p.relname IN ('runs', 'attempts', 'ticks')
    GROUP BY p.relname
), live AS (
    SELECT sum(greatest(c.reltuples, 0))::bigint AS rows
    FROM pg_class p JOIN pg_inherits i ON i.inhparent = p.oid JOIN pg_class c ON c.oid = i.inhrelid
    WHERE p.relnamespace = 'muster'::regnamespace AND p.relname = 'runs_live'
)
SELECT (SELECT count(*) FROM (SELECT id FROM muster.runs ORDER BY id LIMIT $1) x), (SELECT rows FROM sizes WHERE parent = 'runs'),
       (SELECT count(*) FROM (SELECT id FROM muster.runs WHERE state <= 5 ORDER BY id LIMIT $1) x), (SELECT rows FROM live),
       (SELECT count(*) FROM (SELECT FROM muster.ticks LIMIT $1) x), (SELECT rows FROM sizes WHERE parent = 'ticks'),
       (SELECT sum(bytes)::bigint FROM sizes)
