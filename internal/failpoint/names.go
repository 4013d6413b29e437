// Package failpoint ends or stops the own process at a named place, so that trials see what is left when a crash comes
// exactly there. In a normal build Hit is empty and costs nothing; only a binary built with the tag failpoints, on Linux,
// has them, and only trials build that one.
//
// There the variable MUSTER_FAILPOINT arms one place, once, when the process starts:
//
//	dispatch/granted=kill@3     SIGKILL at the third hit
//	births/stored=stop@1        SIGSTOP at the first hit; whoever resumes it is past the place
//	settle/ended=stop@2/10      SIGSTOP at the second hit and every tenth after it
package failpoint

// Point is one place where a process may end.
type Point struct {
	Name string
	// Left is what has happened when the process gets there, and what has not.
	Left string
}

// Points answers the closed list: Hit with another name is a defect, and so is a point that nobody hits.
func Points() []Point {
	return []Point{
		{"clock/decided", "Raft has the decisions of due ticks and moved their marks; no store has their rows and runs."},
		{"clock/stored", "The store has the ticks' rows and runs; nothing is queued, and Raft holds the decisions as not stored yet."},
		{"clock/acknowledged", "Raft was told which ticks are stored, in the entry with the next decisions; those are not stored yet."},
		{"dispatch/popped", "A batch has left the queue; nobody holds it but this process."},
		{"dispatch/read", "The popped runs were read from the store; nothing is granted."},
		{"dispatch/granted", "Raft has the grants; no worker was told of them."},
		{"dispatch/told", "The gateways were told; what they answered was not looked at."},
		{"settle/moved", "The store has the ends of attempts; their leases stand, nobody else was told."},
		{"settle/ended", "The leases of settled attempts have ended here; Raft was not told, nor was the worker."},
		{"settle/queued", "Retries of settled runs are queued; runs that waited for them are not released yet."},
		{"settle/acknowledged", "The workers were told that their results are kept; what follows from the ends has not happened."},
		{"reap/requeued", "Attempts whose leases ran out are recorded as lost, or about to be; Raft still has their leases."},
		{"resolve/opened", "The store says that roots with tasks, or run_job tasks, are running; nothing below them is born."},
		{"resolve/released", "The store has task runs that what ended lets run; they are not queued."},
		{"resolve/ended", "The store has the ends of roots and of tasks with for_each; what follows from them has not happened."},
		{"fire/fired", "The store has runs of jobs whose dependencies were satisfied, and has cleared those; they are not queued."},
		{"births/stored", "The store has submitted runs; neither the client nor the leader was told."},
	}
}
