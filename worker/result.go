package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxResult is how large a run's result may be (D6).
const MaxResult = 64 << 10

// maxResultDepth keeps a result readable by every store and client; Postgres parses JSON recursively.
const maxResultDepth = 512

var (
	errResultTooBig = errors.New("the result is larger than 64 KiB")
	errResultSyntax = errors.New("the result is not valid JSON")
	errResultUTF8   = errors.New("the result is not valid UTF-8")
	errResultNUL    = errors.New(`the result holds a NUL character (\u0000)`)
	errResultPair   = errors.New("the result holds half of a UTF-16 surrogate pair")
	errResultDepth  = errors.New("the result is nested deeper than 512 levels")
)

// checkResult trims b and tells whether it may become a run's result: JSON that every store can keep, since one result
// that Postgres refuses would fail the whole batch it settles in (S12). Empty means that there is no result.
func checkResult(b []byte) (json.RawMessage, error) {
	b = bytes.TrimSpace(b)
	switch {
	case len(b) == 0:
		return nil, nil
	case len(b) > MaxResult:
		return nil, errResultTooBig
	case !utf8.Valid(b):
		return nil, errResultUTF8
	case !json.Valid(b):
		return nil, errResultSyntax
	}
	return b, checkStorable(b)
}

// checkStorable refuses what JSON allows and Postgres does not: \u0000 and lone surrogates. b is valid JSON.
func checkStorable(b []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			inString = !inString
		case c == '\\': // only within a string; what follows is there, b being valid
			i++
			if b[i] != 'u' {
				continue
			}
			r := hex4(b[i+1:])
			i += 4
			if r == 0 {
				return errResultNUL
			}
			if !utf16.IsSurrogate(r) {
				continue
			}
			if i+6 >= len(b) || b[i+1] != '\\' || b[i+2] != 'u' || utf16.DecodeRune(r, hex4(b[i+3:])) == utf8.RuneError {
				return errResultPair
			}
			i += 6
		case inString:
		case c == '[' || c == '{':
			if depth++; depth > maxResultDepth {
				return errResultDepth
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return nil
}

func hex4(b []byte) (r rune) {
	for _, c := range b[:4] {
		r <<= 4
		switch {
		case c <= '9':
			r |= rune(c - '0')
		default:
			r |= rune(c|0x20-'a') + 10
		}
	}
	return r
}
