package job

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"
)

// How the scanner words what it refuses: which field, where, and what was found instead.

func (s *scanner) wrongType(start int, sh *shape) *Error {
	hint := ""
	if sh.kind == shapeText && s.data[start] != '{' && s.data[start] != '[' {
		hint = "; put it in quotes"
	}
	return s.fail(start, "invalid_field", "expected %s, found %s%s", sh.expected(), found(s.data[start:max(start+1, s.pos)]), hint)
}

// found describes a value for a message.
func found(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "the text " + abbreviate(raw)
	case 't', 'f', 'n':
		return string(raw)
	}
	return "the number " + abbreviate(raw)
}

func abbreviate(raw []byte) string {
	if len(raw) <= 64 {
		return string(raw)
	}
	n := 60
	for n > 0 && !utf8.RuneStart(raw[n]) {
		n--
	}
	return string(raw[:n]) + "..."
}

func (s *scanner) unexpected(wanted string) *Error {
	if s.pos >= len(s.data) {
		return s.truncated()
	}
	r, _ := utf8.DecodeRune(s.data[s.pos:])
	return s.fail(s.pos, "invalid_syntax", "this is not valid JSON: expected %s, found %q%s", wanted, r, s.where(s.pos))
}

func (s *scanner) truncated() *Error {
	return s.fail(len(s.data), "invalid_syntax", "this is not valid JSON: it ends in the middle%s", s.where(len(s.data)))
}

func (s *scanner) fail(at int, reason, format string, args ...any) *Error {
	s.errorAt = at
	e := Errorf(Invalid, reason, format, args...)
	e.Field = s.root
	if reason == "invalid_syntax" { // the path is a guess, line and column are in the message
		return e
	}
	for _, st := range s.path {
		switch {
		case st.to > 0:
			e.Field = joinField(e.Field, pathName(unquote(s.data[st.from:st.to])))
		case st.index != noKey:
			e.Field += "[" + strconv.Itoa(st.index) + "]"
		}
	}
	return e
}

// where says at which line and column of data an offset is.
func (s *scanner) where(at int) string {
	line, column := lineColumn(s.data, at)
	return " at line " + strconv.Itoa(line) + ", column " + strconv.Itoa(column)
}

func lineColumn(data []byte, at int) (line, column int) {
	before := data[:min(at, len(data))]
	return 1 + bytes.Count(before, []byte("\n")), utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
}

// unquote reads a JSON string that was scanned.
func unquote(quoted []byte) string {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1])
	}
	var v string
	if err := json.Unmarshal(quoted, &v); err != nil {
		return string(quoted)
	}
	return v
}

// joinField puts a path together: "tasks[2]" and "exec.command" are "tasks[2].exec.command".
func joinField(outer, inner string) string {
	switch {
	case outer == "":
		return inner
	case inner == "" || strings.HasPrefix(inner, "["):
		return outer + inner
	}
	return outer + "." + inner
}

// pathName is a name as a path shows it: plain, or quoted in brackets when it contains what separates.
func pathName(name string) string {
	plain := name != ""
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-' || c == '/') {
			plain = false
		}
	}
	if plain {
		return name
	}
	if len(name) > 128 {
		name = abbreviate([]byte(name))
	}
	return "[" + strconv.Quote(name) + "]"
}
