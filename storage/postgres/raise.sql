-- name: hold_off
-- Everybody's transactions under the fence end before this is granted, and none begins.
SELECT pg_advisory_xact_lock($1)

-- name: raise
UPDATE muster.cluster SET epoch = $2 WHERE id = $1 AND epoch < $2

-- name: standing
SELECT id, epoch FROM muster.cluster

-- name: end_zombies
-- Sessions that have held the fence's lock since before a raise began to wait for it: their leader hangs within a
-- transaction. Locks of the advisory kind name their number in two halves.
SELECT a.pid, pg_terminate_backend(a.pid), coalesce(a.client_addr::text, ''), a.state,
       coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.classid = ($1::bigint >> 32)::bigint::oid AND l.objid = ($1::bigint & 4294967295)::bigint::oid
  AND a.xact_start < clock_timestamp() - $2::interval
