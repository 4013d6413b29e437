package pace

import (
	"log/slog"
	"time"
)

// Trouble is a part's own while what it works with is away: it spaces the tries, and says one line when that begins and one
// when it is over, however long it takes. It is not for several goroutines.
type Trouble struct {
	Logger *slog.Logger
	What   string // the part, or what it does

	failed int
}

const (
	firstPause = 100 * time.Millisecond
	// longestPause bounds how long a part is late when what it needs is back.
	longestPause = time.Second
)

// Failed notes a try that failed and answers how long to wait before the next.
func (t *Trouble) Failed(err error) time.Duration {
	if t.failed++; t.failed == 1 {
		t.Logger.Warn("a part of the scheduler fails and is retried", "part", t.What, "err", err)
	}
	return min(longestPause, firstPause<<min(t.failed-1, 10))
}

// Over notes a try that did not fail.
func (t *Trouble) Over() {
	if t.failed > 1 {
		t.Logger.Info("a part of the scheduler goes on", "part", t.What, "failed_tries", t.failed)
	}
	t.failed = 0
}
