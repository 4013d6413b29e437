package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-isatty"
	"golang.org/x/text/width"
)

// Text that others wrote (names, labels, errors, output) must not move the cursor, change colours or turn lines around.

// clean makes text safe for one line of a terminal: no escape sequences, no control or bidirectional characters, line
// breaks as blanks.
func clean(s string) string {
	if plain(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if n := escapeLength(s[i:]); n > 0 {
			i += n
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		switch {
		case r == utf8.RuneError && n == 1:
			b.WriteRune(utf8.RuneError)
		case r == '\n' || r == '\t' || r == '\r':
			b.WriteByte(' ')
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029':
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// escapeLength is how long the escape sequence at the start of s is; 0 if there is none.
func escapeLength(s string) int {
	if len(s) < 2 || s[0] != 0x1b {
		return 0
	}
	switch s[1] {
	case '[': // CSI: up to the final byte
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
		}
		return len(s)
	case ']', 'P', 'X', '^', '_': // a string, such as a title or the clipboard: up to BEL or ST
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\' {
				return i + 2
			}
		}
		return len(s)
	}
	return 2
}

// clip shortens text to a number of columns.
func clip(s string, columns int) string {
	if columnsOf(s) <= columns {
		return s
	}
	used := 0
	for i, r := range s {
		w := runeColumns(r)
		if used+w > columns-1 {
			return s[:i] + "…"
		}
		used += w
	}
	return s
}

// columnsOf is how wide text is on a terminal.
func columnsOf(s string) int {
	n := 0
	for _, r := range s {
		n += runeColumns(r)
	}
	return n
}

func runeColumns(r rune) int {
	switch {
	case r < 0x7f:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// isTerminal tells whether a person reads along.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && (isatty.IsTerminal(f.Fd()) || isatty.IsCygwinTerminal(f.Fd()))
}

// terminalFilter passes on what a run wrote without what could harm the reader's terminal: of the escape sequences only
// colours stay. It works on a stream, so a sequence may come in pieces.
type terminalFilter struct {
	to       io.Writer
	held     []byte // the beginning of a sequence whose end is still to come
	coloured bool
}

// maxHeld bounds a sequence that never ends.
const maxHeld = 4096

func (t *terminalFilter) Write(p []byte) (int, error) {
	in := append(t.held, p...)
	t.held = nil
	out := make([]byte, 0, len(in))
	for i := 0; i < len(in); {
		switch c := in[i]; {
		case c == 0x1b:
			n, whole := t.sequence(in[i:])
			if !whole && len(in)-i < maxHeld {
				t.held = append(t.held, in[i:]...)
				i = len(in)
				continue
			}
			if whole && in[i+1] == '[' && in[i+n-1] == 'm' {
				out = append(out, in[i:i+n]...)
				t.coloured = true
			}
			i += n
		case c < ' ' && c != '\n' && c != '\t' && c != '\r', c == 0x7f:
			i++
		case c < utf8.RuneSelf:
			out = append(out, c)
			i++
		default:
			if !utf8.FullRune(in[i:]) {
				t.held = append(t.held, in[i:]...)
				i = len(in)
				continue
			}
			r, n := utf8.DecodeRune(in[i:])
			if !unicode.IsControl(r) && !unicode.Is(unicode.Bidi_Control, r) { // C1 controls are sequences too
				out = utf8.AppendRune(out, r)
			}
			i += n
		}
	}
	if _, err := t.to.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// sequence measures the escape sequence at the start of b, and tells whether its end is there.
func (t *terminalFilter) sequence(b []byte) (n int, whole bool) {
	if len(b) < 2 {
		return len(b), false
	}
	n = escapeLength(string(b))
	switch b[1] {
	case '[':
		return n, n > 2 && b[n-1] >= 0x40 && b[n-1] <= 0x7e
	case ']', 'P', 'X', '^', '_':
		return n, n > 2 && (b[n-1] == 0x07 || b[n-2] == 0x1b && b[n-1] == '\\')
	}
	return n, true
}

// Close ends colours that the output left on.
func (t *terminalFilter) Close() error {
	if !t.coloured {
		return nil
	}
	_, err := io.WriteString(t.to, "\x1b[0m")
	return err
}

// count writes "1 job" or "3 jobs".
func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
