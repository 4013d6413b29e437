-- Rows are looked up by their ids, in the order of the ids that are given, and each statement has one right plan: a probe of
-- the primary key for each id, in the one partition that may have it. What is planned while a table is empty, or was when it
-- was analysed, would be something else, and stay so while it grows: it would walk an index from end to end for each id. So
-- nothing else is left to the planner. "BETWEEN m.id AND m.id" is "= m.id" that can neither be merged nor hashed, for which
-- alone an index would be walked in order; "state + 0" keeps out the index of live rows, whose condition it would be; and
-- connections that write do without sequential scans (plansSQL). TestPlans looks.

-- name: edges
-- What the ends of root runs, in `ended`, do to the edges between jobs: an edge is satisfied by the last of the ends that are
-- to its liking (job.EdgeOn), and the others are counted. `due` are the edges that were, and the jobs with dependencies of
-- which a run ended. Edges are locked in the order of their keys, after all runs are, whoever moves them, so that nobody
-- waits in a circle. One that is being made is not seen: Fire judges it by the newest run (fresh). What is a subquery by
-- itself, or compares whole keys, can be nothing but one probe of the index for each.
--
-- n says of an end which it is in the order of the moves and, in its lower half, where it is among the arguments.
ends AS MATERIALIZED (
    SELECT e.job_id, e.state, count(*) AS times, max(e.n) AS last FROM ended e
    WHERE e.root_id IS NULL AND e.job_id IS NOT NULL GROUP BY e.job_id, e.state
), liked AS MATERIALIZED (
    SELECT d.job_id, d.upstream_id, sum(e.times)::integer AS times, (max(e.last) & 4294967295)::integer AS last
    FROM ends e CROSS JOIN LATERAL (SELECT * FROM muster.job_dependencies d WHERE d.upstream_id = e.job_id OFFSET 0) d
    WHERE e.state < 9 AND (d.on_end = 3 OR d.on_end = 1 AND e.state = 6 OR d.on_end = 2 AND e.state = 7)
    GROUP BY d.job_id, d.upstream_id ORDER BY d.job_id, d.upstream_id
), locked AS MATERIALIZED (
    SELECT d.job_id, d.upstream_id, l.times, l.last
    FROM liked l CROSS JOIN LATERAL (
        SELECT * FROM muster.job_dependencies d
        WHERE (d.job_id, d.upstream_id) >= (l.job_id, l.upstream_id) AND (d.job_id, d.upstream_id) <= (l.job_id, l.upstream_id)
        FOR NO KEY UPDATE
    ) d
), satisfied AS (
    UPDATE muster.job_dependencies AS d SET satisfied_by = ($1)[l.last], satisfied_at = ({finished})[l.last], fresh = false,
        coalesced = CASE WHEN d.satisfied_by IS NULL THEN l.times - 1 ELSE d.coalesced + l.times END
    FROM locked l
    WHERE (d.job_id, d.upstream_id) >= (l.job_id, l.upstream_id) AND (d.job_id, d.upstream_id) <= (l.job_id, l.upstream_id)
    RETURNING d.job_id, d.upstream_id, d.on_end
), due AS (
    SELECT job_id, upstream_id, on_end FROM satisfied
    UNION ALL
    SELECT e.job_id, NULL, NULL FROM (SELECT DISTINCT job_id FROM ends) e
    WHERE (SELECT true FROM muster.job_dependencies d WHERE d.job_id = e.job_id LIMIT 1)
)

-- name: end_attempts
-- Moves that end an attempt and the run with it, for rows on which job.Move.Apply makes them: see endsRun. It answers of
-- the runs what the moves do not say, and after them what is due.
WITH ended AS MATERIALIZED (
    UPDATE muster.runs AS r SET
        state = m.state,
        reason = CASE WHEN m.state = 8 AND r.cancel_at IS NOT NULL THEN coalesce(r.cancel_reason, 19) ELSE m.reason END,
        attempt = m.attempt, losses = m.losses, failures = m.failures, worker = m.worker, fence = m.fence,
        started_at = m.started_at, finished_at = m.finished_at, exit_code = m.exit_code, result = m.result, error = m.error
    FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::integer[], $5::integer[], $6::integer[], $7::text[], $8::bigint[],
        $9::timestamptz[], $10::timestamptz[], $11::integer[], $12::text[], $13::text[], $14::bigint[])
        AS m (id, state, reason, attempt, losses, failures, worker, fence, started_at, finished_at, exit_code, result, error, n)
    WHERE r.id BETWEEN m.id AND m.id AND r.state + 0 < 6 AND coalesce(r.fence, 0) <= m.fence
    RETURNING {told}, m.n
), {edges}
SELECT {told}, NULL::uuid, NULL::uuid, NULL::smallint FROM ended r
UNION ALL
SELECT {nothing}, d.job_id, d.upstream_id, d.on_end FROM due d

-- name: satisfy
-- The same for runs whose rows write_runs wrote.
WITH ended AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::timestamptz[], $5::bigint[]) AS m (id, job_id, state, finished_at, n)
    CROSS JOIN (SELECT NULL::uuid AS root_id) AS roots
), {edges}
SELECT d.job_id, d.upstream_id, d.on_end FROM due d

-- name: lock_runs
SELECT {full} FROM unnest($1::uuid[]) AS w (id) JOIN muster.runs r ON r.id BETWEEN w.id AND w.id FOR UPDATE OF r

-- name: write_runs
-- Rows that lock_runs locked, as job.Move.Apply made them.
UPDATE muster.runs AS r SET
    state = m.state, reason = m.reason, attempt = m.attempt, losses = m.losses, failures = m.failures, worker = m.worker,
    fence = m.fence, started_at = m.started_at, finished_at = m.finished_at, exit_code = m.exit_code, result = m.result,
    error = m.error, ready_at = m.ready_at, queued_at = m.queued_at, lane_order = m.lane_order
FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::integer[], $5::integer[], $6::integer[], $7::text[], $8::bigint[],
    $9::timestamptz[], $10::timestamptz[], $11::integer[], $12::text[], $13::text[], $14::timestamptz[], $15::timestamptz[], $16::bigint[])
    AS m (id, state, reason, attempt, losses, failures, worker, fence, started_at, finished_at, exit_code, result, error,
          ready_at, queued_at, lane_order)
WHERE r.id BETWEEN m.id AND m.id

-- name: keep_attempts
INSERT INTO muster.attempts (run_id, fence, attempt, worker, started_at, finished_at, state, reason, exit_code, error)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::integer[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::smallint[],
    $8::smallint[], $9::integer[], $10::text[])
ON CONFLICT (run_id, fence) DO UPDATE SET attempt = excluded.attempt, worker = excluded.worker, started_at = excluded.started_at,
    finished_at = excluded.finished_at, state = excluded.state, reason = excluded.reason, exit_code = excluded.exit_code,
    error = excluded.error

-- name: drop_attempts
-- Attempts that were given back count against nothing, so a run may have any number: the oldest go.
DELETE FROM muster.attempts AS a USING unnest($1::uuid[], $2::integer[]) AS w (run_id, attempt)
WHERE a.run_id BETWEEN w.run_id AND w.run_id AND a.attempt <= w.attempt

-- name: emit
-- In the order in which they are given: a run's events are numbered while its row is locked, so they come in order.
INSERT INTO muster.outbox (run_id, kind, at, body)
SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::timestamptz[], $4::text[])
