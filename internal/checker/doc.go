// Package checker judges a saved history against the promises of the design (section 7, D1 to D6; section 5, T1 to T9 and
// edges between jobs). It is pure: it reads what was written down, asks nobody, and says which promise was broken, by what,
// and how it shows.
//
// A history (History, one JSON line per fact) has three sources, so that no party is judged by its own word alone:
//
//   - the clients: what they asked and what they were told (Op), when the processes lived and died (Life), and what was
//     done to them besides (Fault);
//   - the work itself: each command writes down its start and its end in a file of its own (Work), which never goes
//     through the system that is judged;
//   - the system: what it answers in the end, when it has been left alone and drained (Job, Run), its replicas' hashes
//     (Digest), what it counted (Refusal) and who says to have led (Lead).
//
// What an answer means: ok is a promise, refused is the promise that nothing happened, unknown promises nothing, but not
// twice either.
//
// A saved history can be judged again: go test ./internal/checker -run Replay -history DIR.
//
// All is on one machine: moments are of its clock that runs since boot and through suspend, so they can be compared
// whoever wrote them down. Each rule has a name (Rule), and a test that breaks it on purpose.
package checker
