-- On looking up rows by id see moves.sql.

-- name: lock_versions
-- Versions from which ticks are about to give birth: none of them goes before the births are there, and of a job that was
-- deleted none is answered. FOR SHARE, since deleting a job marks its versions. Documents are read where they are asked for.
SELECT v.job_id, v.version, CASE WHEN w.unread THEN v.document END
FROM unnest($1::uuid[], $2::bigint[], $3::boolean[]) AS w (job_id, version, unread)
JOIN muster.job_versions v ON v.job_id BETWEEN w.job_id AND w.job_id AND v.version BETWEEN w.version AND w.version
WHERE v.deleted_at IS NULL
FOR SHARE OF v

-- name: write_ticks
-- A tick that is in the ledger stays as it is, and is not answered.
INSERT INTO muster.ticks (job_id, scheduled_at, until_at, count, job_version, disposition, reason, decided_at, waiting)
SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::integer[], $5::bigint[], $6::smallint[], $7::smallint[],
    $8::timestamptz[], $9::boolean[])
ON CONFLICT (job_id, scheduled_at) DO NOTHING
RETURNING job_id, scheduled_at
