// Package dag decides what follows in a run of a job with tasks. It is pure: what a document says, the root's row and the
// rows of the task runs go in, and the rows to be born and the moves to be made come out. It does no I/O and asks no
// clock, and whoever asks it again after a crash is told the same.
//
// Compile makes a Plan of a document: its graph, its expressions and its templates; a plan never changes and is shared by
// all runs of a version. Progress is one root run's state of play: whoever opens a root makes one, notes in it each task
// run that the store has, and does what Next answers, over and over, until the end of the root is among it. Plan.Render
// puts values into the templates of a task whose run is about to start.
//
// The rules, which the tests and the design name:
//
//   - T1: a task is decided once, when all its upstreams are terminal. The decision is the birth of its run. It rests on the
//     document, the root's row and the final rows of the tasks before it alone, and the run's id is derived: deciding again
//     is deciding the same. (What T7 says needs the time: so a birth that was answered is kept, not decided anew.)
//   - T2: run_if looks at how the upstreams ended: all_succeeded (a failed or cancelled one skips the task as
//     upstream_failed, else a skipped one as upstream_skipped), all_done, any_succeeded and any_failed (else run_if_false),
//     none_failed (else upstream_failed).
//   - T3: when is judged after that: false skips the task (when_false), an error fails it (expression_failed).
//   - T4: for_each makes a list. The task's own run is running while each item has a run, max_parallel of them at a time,
//     and fails (task_failed) if one of them did not succeed. Its result is the list of theirs. An empty list succeeds.
//   - T5: the root ends when every task has: failed (task_failed) if one failed or was cancelled that does not say
//     allow_failure, else succeeded, with the value of result.
//   - T6: a cancelled root releases nothing more, and is cancelled when what is live has ended.
//   - T7: what would be released after the root's deadline is born failed (deadline_exceeded), and the root fails so.
//   - T8: a retry takes over what succeeded and comes after nothing that runs again; items likewise, one by one.
//   - T9: a task with run_job has a run like others, in the lane of the leader, which makes the other job's run.
//
// Expressions are CEL over tasks (those before their own), run and, in a task with for_each, item and index. There is no
// clock, no randomness, no network and no file in the language, and what evaluating one may cost and make is bounded by
// numbers, never by time, so that the same evaluation ends the same everywhere.
package dag
