-- Listings of runs. Each kind has its candidates, which an index has in the order of ids; {filter} is looked at row by row.
-- $1 is the id before which and $2 from which on rows are looked at, newest first; $3 is how many.

-- name: filter
($4::text IS NULL OR r.namespace = $4) AND ($5::smallint[] IS NULL OR r.state = ANY ($5))
  AND ($6::text IS NULL OR r.worker = $6)
  AND ($7::text[] IS NULL OR (SELECT bool_and(strpos(r.labels, l) > 0) FROM unnest($7) AS l))

-- name: all
SELECT {full} FROM muster.runs r
WHERE r.root_id IS NULL AND r.id < $1 AND r.id >= $2 AND {filter}
ORDER BY r.id DESC LIMIT $3

-- name: all, edge
SELECT r.id FROM muster.runs r
WHERE r.root_id IS NULL AND r.id < $1 AND r.id >= $2
ORDER BY r.id DESC OFFSET $3 LIMIT 1

-- name: live
SELECT {full} FROM muster.runs r
WHERE r.state <= 5 AND r.root_id IS NULL AND r.id < $1 AND r.id >= $2 AND {filter}
ORDER BY r.id DESC LIMIT $3

-- name: live, edge
SELECT r.id FROM muster.runs r
WHERE r.state <= 5 AND r.root_id IS NULL AND r.id < $1 AND r.id >= $2
ORDER BY r.id DESC OFFSET $3 LIMIT 1

-- name: task runs
SELECT {full} FROM muster.runs r
WHERE r.root_id = $8 AND r.id < $1 AND r.id >= $2 AND ($9::text IS NULL OR r.task = $9) AND {filter}
ORDER BY r.id DESC LIMIT $3

-- name: task runs, edge
SELECT r.id FROM muster.runs r
WHERE r.root_id = $4 AND r.id < $1 AND r.id >= $2
ORDER BY r.id DESC OFFSET $3 LIMIT 1

-- name: of job
SELECT {full} FROM muster.runs r
WHERE r.namespace = $8 AND r.job = $9 AND r.root_id IS NULL AND r.id < $1 AND r.id >= $2 AND {filter}
ORDER BY r.id DESC LIMIT $3

-- name: of job, edge
SELECT r.id FROM muster.runs r
WHERE r.namespace = $4 AND r.job = $5 AND r.root_id IS NULL AND r.id < $1 AND r.id >= $2
ORDER BY r.id DESC OFFSET $3 LIMIT 1

-- name: live of job
-- $8 are the ids of all jobs that had the name: runs_live_of_job has them in the order of ids each.
SELECT {full} FROM unnest($8::uuid[]) AS j (id)
CROSS JOIN LATERAL (
    SELECT r.* FROM muster.runs r
    WHERE r.state < 6 AND r.job_id = j.id AND r.root_id IS NULL AND r.id < $1 AND r.id >= $2 AND {filter}
    ORDER BY r.id DESC LIMIT $3
) r
ORDER BY r.id DESC LIMIT $3

-- name: live of job, edge
SELECT r.id FROM unnest($4::uuid[]) AS j (id)
CROSS JOIN LATERAL (
    SELECT r.id FROM muster.runs r
    WHERE r.state < 6 AND r.job_id = j.id AND r.root_id IS NULL AND r.id < $1 AND r.id >= $2
    ORDER BY r.id DESC LIMIT $3 + 1
) r
ORDER BY r.id DESC OFFSET $3 LIMIT 1

-- name: ids of name
-- Of the job that has a name now, and of deleted ones of that name which live runs may need.
SELECT id FROM muster.jobs WHERE namespace = $1 AND name = $2
UNION
SELECT job_id FROM muster.job_versions
WHERE deleted_at IS NOT NULL AND document::json ->> 'namespace' = $1 AND document::json ->> 'name' = $2
