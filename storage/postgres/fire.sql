-- Jobs that their dependencies give birth to. Edges are locked in the order of their keys, as moves do. Of a job's runs by
-- name the newest thousand are looked at, so that the many of a deleted job of that name hold up nobody.

-- name: may_be_due
-- Jobs after $1 of which all dependencies are satisfied and none of whose root runs is live, or of which one is to be judged:
-- that can wait while the newest run of its upstream is live, whose end will satisfy it by itself.
SELECT d.job_id FROM muster.job_dependencies d
WHERE (d.satisfied_by IS NOT NULL OR d.fresh) AND d.job_id > $1 AND {may be due}
GROUP BY d.job_id ORDER BY d.job_id LIMIT $2

-- name: may_be_due_of
SELECT DISTINCT d.job_id
FROM unnest($1::uuid[]) AS w (id) CROSS JOIN LATERAL (
    SELECT * FROM muster.job_dependencies d WHERE d.job_id = w.id AND (d.satisfied_by IS NOT NULL OR d.fresh) OFFSET 0
) d
WHERE {may be due}

-- name: may be due
(d.fresh AND (SELECT n.state < 6 FROM muster.jobs u CROSS JOIN LATERAL ({newest of u}) n WHERE u.id = d.upstream_id) IS NOT TRUE
 OR (SELECT true FROM muster.job_dependencies o WHERE o.job_id = d.job_id AND o.satisfied_by IS NULL LIMIT 1) IS NULL
    AND (SELECT true FROM muster.runs r WHERE r.job_id = d.job_id AND r.state < 6 AND r.root_id IS NULL LIMIT 1) IS NULL)

-- name: newest of
SELECT x.id, x.state, x.finished_at FROM (
    SELECT r.id, r.job_id, r.state, r.finished_at FROM muster.runs r
    WHERE r.namespace = {u}.namespace AND r.job = {u}.name AND r.root_id IS NULL ORDER BY r.id DESC LIMIT 1000
) x WHERE x.job_id = {u}.id ORDER BY x.id DESC LIMIT 1

-- name: lock_edges
-- While they are locked nobody deletes the job, and what they say is what it last was.
SELECT d.job_id, d.upstream_id, (SELECT u.name FROM muster.jobs u WHERE u.id = d.upstream_id), d.on_end, d.satisfied_by, d.satisfied_at, d.coalesced, d.fresh
FROM unnest($1::uuid[]) AS w (id) CROSS JOIN LATERAL (
    SELECT * FROM muster.job_dependencies d WHERE d.job_id = w.id ORDER BY d.upstream_id FOR NO KEY UPDATE
) d

-- name: jobs_due
SELECT j.id, j.namespace, j.name, j.version,
    (SELECT true FROM muster.runs r WHERE r.job_id = j.id AND r.state < 6 AND r.root_id IS NULL LIMIT 1) IS NOT NULL
FROM unnest($1::uuid[]) AS w (id) CROSS JOIN LATERAL (SELECT * FROM muster.jobs j WHERE j.id = w.id OFFSET 0) j

-- name: judge
-- For edges that are new: the newest run of the upstream, and whether the job has any.
SELECT d.job_id, d.upstream_id, n.id, n.state, n.finished_at, (SELECT true FROM ({newest of j}) x) IS NOT NULL
FROM unnest($1::uuid[], $2::uuid[]) AS d (job_id, upstream_id)
CROSS JOIN LATERAL (SELECT * FROM muster.jobs j WHERE j.id = d.job_id OFFSET 0) j
CROSS JOIN LATERAL (SELECT * FROM muster.jobs u WHERE u.id = d.upstream_id OFFSET 0) u
LEFT JOIN LATERAL ({newest of u}) n ON true

-- name: documents
SELECT v.job_id, v.version, v.document
FROM unnest($1::uuid[], $2::bigint[]) AS w (job_id, version)
CROSS JOIN LATERAL (SELECT * FROM muster.job_versions v WHERE v.job_id = w.job_id AND v.version = w.version OFFSET 0) v

-- name: write_edges
UPDATE muster.job_dependencies AS d SET satisfied_by = m.by, satisfied_at = m.at, coalesced = m.coalesced, fresh = m.fresh
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::integer[], $6::boolean[])
    AS m (job_id, upstream_id, by, at, coalesced, fresh)
WHERE (d.job_id, d.upstream_id) >= (m.job_id, m.upstream_id) AND (d.job_id, d.upstream_id) <= (m.job_id, m.upstream_id)
