// Package gateway is where worker streams end on a node, and how the leader reaches workers.
//
// A Gateway serves the worker protocol (package workerpb) beside the API of its node. Towards the leader, which may be on
// this node or on another, it speaks through the interface Leader; the leader speaks to workers through the methods
// Assign, Stop and Acknowledge. Package relay carries both between nodes. The gateway owns no fact: what a worker says goes to the leader, what the leader says goes
// to the worker, and when either is away, the other is told so. It keeps run output in a store on this node (package
// output), because output is outside the never-lost promise.
//
// # Sessions
//
// A session is one understanding between a worker and a leader: it begins with a Hello, which lists all that the worker
// runs, and everything the leader sends is addressed to a session, never to a worker. Each Hello opens a new one, also on
// a stream that lives on: after a change of leader, for instance. So nothing that a leader sent before it heard a Hello
// can be written after that Hello, and a run that a Hello omits can be started elsewhere at once (L3).
//
// # What Assign promises
//
//   - false: the assignment was not written to a stream and will not be. It is undeliverable: back to the queue at once.
//   - true: it has been handed to the writer of an open stream. It may or may not arrive; the worker's next Hello, or the
//     end of the lease, will tell.
//
// An idle stream takes a message's worth of assignments at once. While a stream is busy with an earlier message, Assign
// waits until the writer takes what is queued, or at most AssignPatience, then withdraws the rest and answers false for
// it. A stream whose current message has been stuck for longer than that is refused without waiting. So one call of
// Assign takes at most one AssignPatience, however many workers hang.
//
// # Without a leader
//
// Streams stay. Hellos are answered with "wait", heartbeats with "not renewed", results and starts are dropped, because
// workers keep results until they are acknowledged and send them again after the next Welcome. So a gateway buffers
// nothing for a leader that is not there, and needs no bound for it.
package gateway
