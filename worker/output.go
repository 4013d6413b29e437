package worker

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"
)

// MaxOutput is how much output of one attempt is kept (D6).
const MaxOutput = 1 << 20

// LimitWriter passes on the first bytes of an attempt's output, then one line that says so, and swallows the rest: work
// that talks too much is neither blocked nor failed. It is safe for concurrent use.
type LimitWriter struct {
	mu    sync.Mutex
	w     io.Writer
	limit int
	left  int
	last  byte // of what went through
	full  bool
}

// NewLimitWriter limits w to limit bytes; 0 means MaxOutput.
func NewLimitWriter(w io.Writer, limit int) *LimitWriter {
	if limit <= 0 {
		limit = MaxOutput
	}
	return &LimitWriter{w: w, limit: limit, left: limit, last: '\n'}
}

// Write never reports a short write: what is swallowed counts as written.
func (l *LimitWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full || len(p) == 0 {
		return len(p), nil
	}
	keep := p[:min(len(p), l.left)]
	if len(keep) > 0 {
		if _, err := l.w.Write(keep); err != nil {
			return 0, err
		}
		l.left -= len(keep)
		l.last = keep[len(keep)-1]
	}
	if len(keep) < len(p) {
		l.full = true
		notice := "[output truncated at " + sizeText(l.limit) + "]\n"
		if l.last != '\n' {
			notice = "\n" + notice
		}
		if _, err := io.WriteString(l.w, notice); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func sizeText(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

// maxErrorText bounds Outcome.Error: it is a sentence in a row, not a log.
const maxErrorText = 2 << 10

// cleanText makes a text fit for every store (S12): valid UTF-8, no NUL, bounded. Error texts quote what strangers wrote.
func cleanText(s string) string {
	clean := utf8.ValidString(s)
	if clean && len(s) <= maxErrorText && strings.IndexByte(s, 0) < 0 {
		return s
	}
	if len(s) > maxErrorText {
		s = s[:maxErrorText] + "..."
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
