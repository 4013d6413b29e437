// Package dagtest proves what the scheduler makes of jobs with tasks. It makes random valid documents, says by a seed how
// each attempt of their work ends, and judges what happened by a slow interpreter of the rules T1 to T9 of its own: a loop
// over all tasks until nothing changes, which shares no decision with package job/dag. Where work ended as it liked (a
// worker died once too often) the interpreter takes that from the rows, and all else must follow from it.
package dagtest
