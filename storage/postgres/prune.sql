-- What keeps the tables from growing for ever. {table} is one partition of runs or ticks, the default one included.

-- name: partitions
-- With the times in their bounds; the default partition, and one whose bounds are not ours, have none.
SELECT parent, name, size, from_at, to_at FROM (
    SELECT p.relname::text AS parent, c.relname::text AS name, pg_relation_size(c.oid) AS size, c.relname::text = p.relname::text || '_default' AS is_default,
           CASE WHEN p.relname = 'ticks' THEN b[1]::timestamptz ELSE to_timestamp(('x' || left(replace(b[1], '-', ''), 12))::bit(48)::bigint / 1000.0) END AS from_at,
           CASE WHEN p.relname = 'ticks' THEN b[2]::timestamptz ELSE to_timestamp(('x' || left(replace(b[2], '-', ''), 12))::bit(48)::bigint / 1000.0) END AS to_at
    FROM pg_class p JOIN pg_inherits i ON i.inhparent = p.oid JOIN pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL regexp_match(pg_get_expr(c.relpartbound, c.oid), $re$^FOR VALUES FROM \('([^']+)'\) TO \('([^']+)'\)$$re$) AS b
    WHERE p.relnamespace = 'muster'::regnamespace AND p.relname IN ('runs', 'attempts', 'ticks')
) x ORDER BY parent, is_default DESC, from_at

-- name: edge
SELECT id FROM {table} WHERE id > $1 AND id < $2 ORDER BY id OFFSET $3 LIMIT 1

-- name: old runs
-- A task run stays as long as its root does: the root needs it while it is live, and a retry of it after that. A run that was
-- made for a task stays while that is live.
WITH old AS MATERIALIZED (
    SELECT r.id FROM {table} r
    WHERE r.id > $1 AND r.id < $2 AND r.state >= 6 AND coalesce(r.finished_at, '-infinity') < $3
      AND (r.root_id IS NULL OR NOT EXISTS (
          SELECT FROM muster.runs x WHERE x.id = r.root_id AND (x.state < 6 OR coalesce(x.finished_at, '-infinity') >= $3)))
      AND (r.parent_id IS NULL OR NOT EXISTS (SELECT FROM muster.runs x WHERE x.id = r.parent_id AND x.state < 6))
    ORDER BY r.id LIMIT $4
), gone AS (
    DELETE FROM {table} r USING old WHERE r.id = old.id AND r.state >= 6 RETURNING r.id
), attempts_gone AS (
    DELETE FROM muster.attempts a USING gone WHERE a.run_id = gone.id AND a.run_id BETWEEN $1 AND $2
)
SELECT count(*), (SELECT id FROM gone ORDER BY id DESC LIMIT 1) FROM gone

-- name: old ticks
WITH gone AS (
    DELETE FROM {table} WHERE ctid IN (
        SELECT ctid FROM {table} WHERE scheduled_at < $1 AND coalesce(until_at, scheduled_at) < $1 LIMIT $2
    ) RETURNING 1
)
SELECT count(*) FROM gone

-- name: kept runs
-- One step through a partition that is dropped whole: what of it must stay, and how far the step went.
WITH step AS MATERIALIZED (
    SELECT r.id, r.state < 6 OR coalesce(r.finished_at, '-infinity') >= $2
           OR r.root_id IS NOT NULL AND EXISTS (
               SELECT FROM muster.runs x WHERE x.id = r.root_id AND (x.state < 6 OR coalesce(x.finished_at, '-infinity') >= $2))
           OR r.parent_id IS NOT NULL AND EXISTS (SELECT FROM muster.runs x WHERE x.id = r.parent_id AND x.state < 6) AS stays
    FROM {table} r WHERE r.id > $1 ORDER BY r.id LIMIT $3
)
SELECT count(*), (SELECT id FROM step ORDER BY id DESC LIMIT 1), array_agg(id) FILTER (WHERE stays) FROM step

-- name: tasks kept
-- What was born and ended since that step below roots that stay, and for tasks that are live. {table} is no partition any more.
INSERT INTO muster.runs_default
SELECT r.* FROM {table} r
WHERE (r.root_id = ANY ($1) OR r.root_id IN (SELECT x.id FROM {table} x WHERE x.state <= 5 AND x.root_id IS NULL)
       OR r.parent_id IN (SELECT x.id FROM {table} x WHERE x.state <= 5))
  AND r.state >= 6 AND NOT r.id = ANY ($1)
LIMIT $2

-- name: old keys
-- Keys that a birth holds just now are left for the next time.
DELETE FROM muster.keys k
USING (SELECT namespace, key FROM muster.keys WHERE accepted_at <= $1 ORDER BY accepted_at LIMIT $2 FOR UPDATE SKIP LOCKED) old
WHERE k.namespace = old.namespace AND k.key = old.key

-- name: versions forgotten
-- Those of deleted jobs that no live run needs.
DELETE FROM muster.job_versions v
WHERE v.deleted_at < now() - interval '1 hour' AND NOT EXISTS (SELECT FROM muster.runs r WHERE r.job_id = v.job_id AND r.state < 6)

-- name: versions superseded
-- All but the newest $1 of a job, unless a live run needs one.
DELETE FROM muster.job_versions v USING muster.jobs j
WHERE v.job_id = j.id AND v.version + $1 <= j.version
  AND NOT EXISTS (SELECT FROM muster.runs r WHERE r.job_id = v.job_id AND r.state < 6 AND r.job_version = v.version)
