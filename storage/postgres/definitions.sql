-- Jobs and their versions. Names are compared byte by byte (COLLATE "C" in the schema), as everywhere in Muster.

-- name: lock graph
-- Edges of one namespace are changed one after the other: the next transaction reads what this one committed.
SELECT pg_advisory_xact_lock(hashtextextended('muster.graph ' || $1::text, 0))

-- name: lock job
-- FOR NO KEY UPDATE, which edges that refer to the job do not wait for.
SELECT id, version, created_at, updated_at FROM muster.jobs WHERE namespace = $1 AND name = $2 FOR NO KEY UPDATE

-- name: document
SELECT document FROM muster.job_versions WHERE job_id = $1 AND version = $2

-- name: upstreams there
SELECT name FROM muster.jobs WHERE namespace = $1 AND name = ANY ($2)

-- name: edges above
-- All edges of what these jobs depend on, however far off.
WITH RECURSIVE above (id) AS (
    SELECT id FROM muster.jobs WHERE namespace = $1 AND name = ANY ($2)
    UNION
    SELECT d.upstream_id FROM above a JOIN muster.job_dependencies d ON d.job_id = a.id
)
SELECT j.name, u.name
FROM above a
JOIN muster.job_dependencies d ON d.job_id = a.id
JOIN muster.jobs j ON j.id = d.job_id
JOIN muster.jobs u ON u.id = d.upstream_id
ORDER BY j.name, u.name

-- name: create job
INSERT INTO muster.jobs (id, namespace, name, version, created_at, updated_at, labels) VALUES ($1, $2, $3, 1, $4, $4, $5::text::jsonb)

-- name: change job
UPDATE muster.jobs SET version = $2, updated_at = $3, labels = $4::text::jsonb WHERE id = $1

-- name: create version
INSERT INTO muster.job_versions (job_id, version, from_at, created_at, document) VALUES ($1, $2, $3, $3, $4)

-- name: drop edges
-- Those that the job does not have any more: no other is touched, since the leader moves them meanwhile. They are locked in
-- the order in which it locks them.
WITH gone AS MATERIALIZED (
    SELECT d.upstream_id FROM muster.job_dependencies d
    WHERE d.job_id = $1 AND NOT EXISTS (
        SELECT FROM unnest($3::text[], $4::smallint[]) AS e (name, on_end) JOIN muster.jobs u ON u.namespace = $2 AND u.name = e.name
        WHERE u.id = d.upstream_id AND e.on_end = d.on_end)
    ORDER BY d.upstream_id FOR UPDATE OF d
)
DELETE FROM muster.job_dependencies d USING gone WHERE d.job_id = $1 AND d.upstream_id = gone.upstream_id

-- name: create edges
-- Those that are not there. Nobody else makes any of this job's meanwhile.
INSERT INTO muster.job_dependencies (job_id, upstream_id, on_end)
SELECT DISTINCT ON (u.id) $1::uuid, u.id, e.on_end
FROM unnest($3::text[], $4::smallint[]) AS e (name, on_end)
JOIN muster.jobs u ON u.namespace = $2 AND u.name = e.name
WHERE NOT EXISTS (SELECT FROM muster.job_dependencies d WHERE d.job_id = $1 AND d.upstream_id = u.id)

-- name: dependents
SELECT j.name, count(*) OVER ()
FROM muster.job_dependencies d JOIN muster.jobs j ON j.id = d.job_id
WHERE d.upstream_id = $1 ORDER BY j.name LIMIT $2

-- name: delete job
DELETE FROM muster.jobs WHERE id = $1

-- name: bury versions
-- They stay until no live run can need them (versions forgotten, in prune.sql): a birth may be on its way.
UPDATE muster.job_versions SET deleted_at = now() WHERE job_id = $1

-- name: job
-- Without the document if its version is the one that is known.
SELECT j.id, j.name, j.version, j.created_at, j.updated_at, CASE WHEN j.id = $3 AND j.version = $4 THEN NULL
    ELSE (SELECT v.document FROM muster.job_versions v WHERE v.job_id = j.id AND v.version = j.version) END
FROM muster.jobs j
WHERE j.namespace = $1 AND j.name = $2

-- name: jobs
SELECT j.id, j.name, j.version, j.created_at, j.updated_at, v.document
FROM muster.jobs j JOIN muster.job_versions v ON v.job_id = j.id AND v.version = j.version
WHERE j.namespace = $1 AND j.name > $2 AND ($3::jsonb IS NULL OR j.labels @> $3::jsonb)
ORDER BY j.name LIMIT $4

-- name: heads
SELECT j.id, j.namespace, j.name, j.version, v.from_at
FROM muster.jobs j LEFT JOIN muster.job_versions v ON v.job_id = j.id AND v.version = j.version
WHERE (j.namespace, j.name) > ($1, $2)
ORDER BY j.namespace, j.name LIMIT $3

-- name: version
SELECT job_id, version, from_at, created_at, document FROM muster.job_versions
WHERE job_id = $1 AND version = $2
  AND (deleted_at IS NULL OR EXISTS (SELECT FROM muster.runs r WHERE r.job_id = $1 AND r.state < 6))

-- name: versions
SELECT v.job_id, v.version, v.from_at, v.created_at, v.document
FROM muster.jobs j JOIN muster.job_versions v ON v.job_id = j.id
WHERE j.namespace = $1 AND j.name = $2 ORDER BY v.version DESC LIMIT $3

-- name: start version
UPDATE muster.job_versions SET from_at = $3 WHERE job_id = $1 AND version = $2 AND from_at <> $3

-- name: dependencies
-- From a job to its upstreams, and then from its dependents to it, each by name.
SELECT j.name, u.name, d.on_end, d.satisfied_by, d.satisfied_at, d.coalesced
FROM (
    SELECT d.*, 1 AS side FROM muster.jobs me JOIN muster.job_dependencies d ON d.job_id = me.id WHERE me.namespace = $1 AND me.name = $2
    UNION ALL
    SELECT d.*, 2 FROM muster.jobs me JOIN muster.job_dependencies d ON d.upstream_id = me.id WHERE me.namespace = $1 AND me.name = $2
) d
JOIN muster.jobs j ON j.id = d.job_id
JOIN muster.jobs u ON u.id = d.upstream_id
ORDER BY d.side, u.name, j.name
