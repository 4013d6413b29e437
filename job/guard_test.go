package job

import "testing"

func TestAMoveFromAnOldRowDoesNotApply(t *testing.T) {
	t.Parallel()
	seen, row := Fence(0), &Run{State: Scheduled, Reason: RetryBackoff, Fence: 7, Attempt: 1}
	m := Move{State: Skipped, Reason: StartDeadline, FinishedAt: 9, IfFence: &seen}
	if _, ok := m.Apply(row); ok {
		t.Fatal("a run that has started since the row was read was skipped as never started")
	}
	row.Fence = 0
	if n, ok := m.Apply(row); !ok || n.State != Skipped {
		t.Fatal("the guard holds back a move from the row as it is")
	}
}
