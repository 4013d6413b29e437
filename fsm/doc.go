// Package fsm is the replicated state: its tables and each command with its number on disk. Promise: same log, same
// state.
//
// Every node applies the same log, so a command may know nothing but its own fields and Meta: its place in the log and
// the time that its proposer wrote into the entry. What varies (time, ids, jitter) comes in with the command; a test
// parses this package for clocks, randomness and goroutines. A command validates wholly before its first write (S12),
// so one that fails leaves the others of its entry untouched, and an entry, kind or version that cannot be read stops
// the replica: to skip it would be to diverge in silence.
//
// What commands call of package job (Move.Apply, BirthOfTick, the decoding of documents) is part of that promise: while
// nodes of two versions share a log, a change of what it answers needs a new version of the command.
//
// The tables are copy-on-write B-trees (docs/adr/001-embedded-store-figures.md says why not go-memdb), and a row that is
// in one is never changed again; a change is a copy. So a frozen view of everything costs next to nothing: readers share
// one until the next entry, and a snapshot is written while applies go on. Two tables hold runs, live ones and, once they
// are terminal, history, so that the reads of the leader, births and pruning each walk one that holds nothing else.
//
// Besides the state, a State has what belongs to its node alone: expectations (the answers to commands that this node
// proposed through another one, by their tags), checkpoints waiting for their digest, and which schedules changed. None of
// it is in a snapshot or a hash.
//
// Reads go through State.View, a frozen view of one moment; those of the cluster's directory, asked with
// every request, take neither lock nor view. Package cluster proposes; storage/replicated is the store
// contract over this state.
package fsm
