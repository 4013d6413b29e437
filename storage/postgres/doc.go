// Package postgres is the store over Postgres 14 or newer: jobs, runs, attempts, the tick ledger and idempotency keys.
// The contract is storage.Store; storage/storagetest judges it. Rules named S1.. and L1.. are in docs/design.md.
//
// A Store is made by New, which does no I/O, and lives while Serve runs: it connects, brings the schema up to date or
// checks it, claims the database for its cluster (S11), and then watches. While Postgres is away every call answers
// Unavailable, reason store_unavailable, at once: only Serve dials.
//
// Connections come from three pools, so that the leader's moves, births and what people read never wait for each other.
// Births and cancel intents may be written by any node; whatever else changes a run begins with muster.fence in the same
// transaction, which refuses an older epoch than the one that was raised (L1).
//
// Edges between jobs are moved by the leader alone: the statement that ends runs satisfies them, so that neither is without
// the other, and Fire clears them with the birth. Who changes a job touches those alone that come or go, in its last round
// trip. Whoever locks several does so in the order of their keys, and of runs and edges the runs first.
//
// A pooler between may hand a connection to somebody else only when it is closed (session pooling): sessions have
// settings, prepared statements and locks of their own.
//
// Runs and attempts are partitioned by the time in the run's id, the ledger by the tick's: a partition is dropped whole
// once all of it is older than history, after what is live in it moved to the default partition in the same transaction.
//
// SQL is in the .sql files beside the code that uses it; package migrations builds the schema. rows.go alone knows the
// columns of a run.
package postgres
