// Package dag decides what follows in a run of a job with tasks. It is pure: what a document says, the root's row and the
// rows of the task runs go in, and the rows to be born and the moves to be made come out. It does no I/O, asks no clock,
// and whoever asks it again after a crash is told the same.
//
// Compile makes a Plan of a document: its graph, its expressions (CEL) and its templates; a plan never changes and is
// shared by all runs of a version. Progress is one root run's state of play, fed with task runs as the store has them.
// Plan.Render puts values into the templates of a task whose run is about to start.
//
// The rules, which tests and the design name:
//
//   - T1: a task is decided once, when all its upstreams are terminal; the decision is its row, and depends on nothing but
//     the document, the root's row and the rows of the tasks before it.
//   - T2: run_if looks at how the upstreams ended: the task runs, or is skipped.
//   - T3: when is judged after that: false skips the task, an error fails it.
//   - T4: for_each makes a list; the task has one run for each item of it, and ends when they have.
//   - T5: the root ends when every task is terminal: failed, if one failed that may not; else with its result.
//   - T6: a cancelled root releases nothing more, and is cancelled when what runs has ended.
//   - T7: what would be released after the root's deadline is born failed.
//   - T8: a retry takes over what succeeded, up to the first task of each path that did not.
//   - T9: a task may run another job; whoever opens its run sees to that.
//
// An expression sees tasks (those before its own), run and, in a task with for_each, item and index; never a clock, a
// random number or a network. What evaluating one may cost and make is bounded.
package dag
