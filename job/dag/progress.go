package dag

import "github.com/musterhq/muster/job"

// Progress is one root run's state of play: which of its tasks have a row, which have ended, and what follows. It can be
// made anew from the rows at any time. It is not safe for concurrent use.
type Progress struct{}

// NewProgress begins with a root as it was opened, none of its task runs known. Whoever makes it for a root that was open
// before notes all rows there are before asking Next.
func NewProgress(p *Plan, root *job.Run) *Progress { return &Progress{} }

// Reuse takes over what succeeded in the retried root (T8): it is given that root's task runs and items, before the first
// Next.
func (g *Progress) Reuse(old []*job.Run) {}

// Note takes in a task run, an item's run or the root as the store has it, in any order and any number of times.
func (g *Progress) Note(r *job.Run) {}

// Step is what follows, to be done in this order. Each part may be repeated.
type Step struct {
	// Births are complete rows. They count as stored once they are noted as the store has them.
	Births []*job.Run
	// Moves end the rows of tasks with for_each.
	Moves []job.Move
	// End ends the root. Its fence is left for the caller to fill in; everything else is there.
	End *job.Move
}

// Empty tells that nothing follows by now.
func (s *Step) Empty() bool { return len(s.Births) == 0 && len(s.Moves) == 0 && s.End == nil }

// Next answers what follows from what was noted, once: what it has answered it answers again only after Again.
func (g *Progress) Next(now job.Instant) Step { return Step{} }

// Again has Next answer once more what it answered and what was not noted since, because it was not stored. Where that is
// unknown, the caller reads the rows and notes those that are there first.
func (g *Progress) Again() {}

// Cancel says that the root has a cancel intent (T6): nothing more is born, and when what is live has ended, so does the
// root.
func (g *Progress) Cancel() {}

// Cancelled tells whether Cancel was called, or the root's row had an intent.
func (g *Progress) Cancelled() bool { return false }

// Live lists the task runs and items that were noted or answered and are not terminal.
func (g *Progress) Live() []job.RunID { return nil }

// LiveItems is Live for the items of one task.
func (g *Progress) LiveItems(task string) []job.RunID { return nil }
