// Package worker is the agent: it joins a machine to the cluster, runs what it is assigned, and reports. It is also the
// SDK for handlers: functions of a Go program that jobs call by name (Run, Register).
//
// # What a handler may rely on, and must provide
//
// A run is executed at least once (design rule D3). It is started a second time only after a failure that its retry
// policy covers, or when its worker was lost; never merely because a scheduler node failed. A handler that sends mail or
// moves money must make itself idempotent. Info, which InfoFrom takes from the context, gives it the means:
//
//   - RunID is the same for every attempt of a run: use it as the key under which the effect is recorded.
//   - Fence is higher for every later attempt, of all runs. A store that keeps the highest fence it has seen for a thing,
//     and refuses lower ones, cannot be written to by an attempt that was given up, however late that attempt wakes.
//
// Two attempts of a run overlap only while a worker is cut off from all nodes and the job says on_lease_lost: finish.
//
// The context of an attempt is cancelled, with a *Stop as its cause, when the run is cancelled, its timeout or deadline
// is over, its lease is lost, or the worker stops. A handler must return soon after that. A run's payload and result are
// JSON of up to 64 KiB; what is written to Info.Output, up to 1 MiB, becomes the run's output.
//
// An error makes the attempt fail and is retried as the job says; Permanent marks one that no retry can mend. A panic is
// an error.
//
// # How the agent keeps its word
//
// The agent holds one stream to one node, speaking the protocol of package workerpb, and attaches to another node when it
// breaks. Its parts:
//
//   - The roster (addresses.go) is the nodes that it knows and which of them failed of late: the next stream goes to another
//     one, after a random wait that grows with the number of workers that may be on the same way.
//   - The desk (desk.go) is what it has in hand: attempts that run, and results that wait for an acknowledgement. Every
//     Hello and heartbeat lists both, so that the leader never has to guess.
//   - A stream (stream.go) has a reader, a writer, and a watch for silence. Assignments are taken only while the stream's
//     last Hello is accepted: what arrives between a Hello and its Welcome was omitted by the Hello and may run elsewhere
//     (L3). An assignment whose fence is not above all that were seen for its run is dropped.
//   - The lease (attempts.go) counts from before the last acknowledged heartbeat was sent, on a clock that runs while the
//     machine sleeps (L4). When it ends, the work is stopped, unless its job lets it finish.
//   - The spool (spool.go) keeps results on disk until they are acknowledged; after every Welcome all of them are sent
//     again. The output tail (tail.go) is kept in memory only: output is outside the never-lost promise.
//
// The data directory is locked while the agent lives, and its id is part of every Hello: a second agent of the same name is
// refused unless it has the same directory, and then the first must have gone. A restarted agent kills the process
// groups that its predecessor left before it says Hello.
package worker
