package job

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// CleanText makes text from outside safe for every store and screen: valid UTF-8, no control characters but newlines and
// tabs, at most limit bytes.
func CleanText(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, s)
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
