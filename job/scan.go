package job

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// MaxDepth is how deep objects and lists may nest in any document, body, payload or result.
	MaxDepth = 64
	// MaxNumberBytes is how long a number may be written. Stores keep free JSON as it is, and a number of thousands of
	// digits is one that some of them refuse.
	MaxNumberBytes = 1000
)

// scanner reads JSON once, before anything is decoded, against the shape that is wanted. It is stricter than
// encoding/json: names are spelt exactly, nothing is said twice, and no text is one that a store would refuse (NUL, half
// a surrogate pair).
type scanner struct {
	data  []byte
	pos   int
	depth int
	root  string // the field that data as a whole is
	path  []step
	keys  [][]byte // of the open objects whose keys are free
	// probe also lets every leaf decode itself: the second pass that finds out which value encoding/json refused.
	probe   bool
	spaced  bool // there was white space between tokens
	errorAt int  // where in data the error is
}

// step is one part of the path to a value: a key of data (with its quotes), or an index; noKey while a key is being read.
type step struct {
	from, to int
	index    int
}

const noKey = -1

// whole scans data as one value with nothing after it.
func (s *scanner) whole(sh *shape) *Error {
	if err := s.first(sh); err != nil {
		return err
	}
	if s.space(); s.pos < len(s.data) {
		return s.fail(s.pos, "invalid_syntax", "more data follows after the end of the JSON%s; send one value only", s.where(s.pos))
	}
	return nil
}

// first scans the first value of data.
func (s *scanner) first(sh *shape) *Error {
	if err := checkUTF8(s.data[s.pos:]); err != nil {
		err.Field = s.root
		return err
	}
	if s.space(); s.pos == len(s.data) {
		return s.fail(s.pos, "invalid_syntax", "expected %s, found nothing", sh.expected())
	}
	start := s.pos
	if err := s.value(sh); err != nil {
		return err
	}
	if sh.kind != shapeAny && string(s.data[start:s.pos]) == "null" {
		return s.fail(start, "invalid_field", "expected %s, found null", sh.expected())
	}
	return nil
}

func checkUTF8(data []byte) *Error {
	if utf8.Valid(data) {
		return nil
	}
	at := 0
	for at < len(data) {
		r, n := utf8.DecodeRune(data[at:])
		if r == utf8.RuneError && n == 1 {
			break
		}
		at += n
	}
	return Errorf(Invalid, "invalid_text", "byte %d is not valid UTF-8; save the text as UTF-8", at+1)
}

func (s *scanner) value(sh *shape) *Error {
	s.space()
	if s.pos >= len(s.data) {
		return s.truncated()
	}
	start := s.pos
	var err *Error
	fits := sh.kind == shapeAny
	switch c := s.data[s.pos]; c {
	case '{':
		if !fits && sh.kind != shapeObject && sh.kind != shapeMap {
			return s.wrongType(start, sh)
		}
		fits = true
		err = s.object(sh)
	case '[':
		if !fits && sh.kind != shapeList {
			return s.wrongType(start, sh)
		}
		fits = true
		err = s.list(sh)
	case '"':
		fits = fits || sh.kind == shapeText || sh.short
		_, err = s.text()
	case 't':
		fits = fits || sh.kind == shapeBool
		err = s.literal("true")
	case 'f':
		fits = fits || sh.kind == shapeBool
		err = s.literal("false")
	case 'n':
		fits = true // of a field it means "not set"; list and map refuse it themselves
		err = s.literal("null")
	default:
		var whole bool
		whole, err = s.number()
		fits = fits || sh.kind == shapeFloat || sh.kind == shapeInt && whole
	}
	if err != nil {
		return err
	}
	if !fits {
		return s.wrongType(start, sh)
	}
	if s.probe {
		return s.probeLeaf(start, sh)
	}
	return nil
}

func (s *scanner) object(sh *shape) *Error {
	if err := s.enter(); err != nil {
		return err
	}
	var seen [1]uint64 // which fields of a struct were there, of the first ones
	known := sh.kind == shapeObject
	keys := len(s.keys)
	var many map[string]struct{} // takes over from keys when there are many
	for more := s.begins('}'); more; more = s.goesOn() {
		start := s.pos
		s.path[len(s.path)-1] = step{index: noKey}
		if s.peek() != '"' {
			return s.unexpected("a field name in double quotes")
		}
		plain, err := s.text()
		if err != nil {
			return err
		}
		s.path[len(s.path)-1] = step{from: start, to: s.pos}
		key := s.data[start+1 : s.pos-1]
		if !plain {
			key = []byte(unquote(s.data[start:s.pos]))
		}
		elem, null := &freeShape, true
		twice := false
		switch {
		case known:
			i, ok := sh.byName[string(key)]
			if !ok {
				return s.fail(start, "unknown_field", "unknown field %s; %s", abbreviate(s.data[start:s.pos]), sh.suggest(string(key)))
			}
			elem = sh.fields[i].shape
			if i >= 64*len(seen) {
				twice, many = s.seenKey(keys, key, many)
				break
			}
			twice = seen[i/64]&(1<<(i%64)) != 0
			seen[i/64] |= 1 << (i % 64)
		default:
			if sh.kind == shapeMap {
				elem, null = sh.elem, sh.elemNull
			}
			twice, many = s.seenKey(keys, key, many)
		}
		if twice {
			return s.fail(start, "duplicate_field", "the field %s is there twice; keep one of them", abbreviate(s.data[start:s.pos]))
		}
		if s.space(); s.peek() != ':' {
			return s.unexpected("a colon after the field name")
		}
		s.pos++
		if err := s.element(elem, null); err != nil {
			return err
		}
	}
	if s.peek() != '}' {
		return s.unexpected("a comma or the end of the object")
	}
	s.keys = s.keys[:keys]
	s.leave()
	return nil
}

// freeShape takes any JSON.
var freeShape = shape{typ: reflect.TypeFor[json.RawMessage]()}

// seenKey tells whether the object whose keys start at from has the key already, and notes it.
func (s *scanner) seenKey(from int, key []byte, many map[string]struct{}) (bool, map[string]struct{}) {
	if many == nil {
		for _, k := range s.keys[from:] {
			if bytes.Equal(k, key) {
				return true, nil
			}
		}
		s.keys = append(s.keys, key)
		if len(s.keys)-from < 16 {
			return false, nil
		}
		many = make(map[string]struct{}, 64)
		for _, k := range s.keys[from:] {
			many[string(k)] = struct{}{}
		}
		return false, many
	}
	if _, ok := many[string(key)]; ok {
		return true, many
	}
	many[string(key)] = struct{}{}
	return false, many
}

func (s *scanner) list(sh *shape) *Error {
	if err := s.enter(); err != nil {
		return err
	}
	elem, null := &freeShape, true
	if sh.kind == shapeList {
		elem, null = sh.elem, sh.elemNull
	}
	for more := s.begins(']'); more; more = s.goesOn() {
		if err := s.element(elem, null); err != nil {
			return err
		}
		s.path[len(s.path)-1].index++
	}
	if s.peek() != ']' {
		return s.unexpected("a comma or the end of the list")
	}
	s.leave()
	return nil
}

// begins tells whether a first element follows; otherwise the end does.
func (s *scanner) begins(end byte) bool {
	s.space()
	return s.peek() != end
}

// goesOn passes over the comma before another element; without one the end must follow. What comes after a comma is an
// element, so a trailing comma is refused where that is read.
func (s *scanner) goesOn() bool {
	if s.space(); s.peek() != ',' {
		return false
	}
	s.pos++
	s.space()
	return true
}

func (s *scanner) element(sh *shape, null bool) *Error {
	s.space()
	start := s.pos
	if err := s.value(sh); err != nil {
		return err
	}
	if !null && string(s.data[start:s.pos]) == "null" {
		return s.fail(start, "invalid_field", "expected %s, found null", sh.expected())
	}
	return nil
}

func (s *scanner) enter() *Error {
	s.pos++
	if s.depth++; s.depth > MaxDepth {
		return s.fail(s.pos-1, "too_deep", "objects and lists are nested more than %d deep; flatten them", MaxDepth)
	}
	s.path = append(s.path, step{})
	return nil
}

func (s *scanner) leave() {
	s.pos++
	s.depth--
	s.path = s.path[:len(s.path)-1]
}

// text passes over a string and tells whether it was free of escapes.
func (s *scanner) text() (plain bool, err *Error) {
	plain = true
	start := s.pos
	for i := s.pos + 1; i < len(s.data); i++ {
		switch c := s.data[i]; {
		case c == '"':
			s.pos = i + 1
			return plain, nil
		case c == '\\':
			plain = false
			n, problem := escape(s.data[i:])
			if problem != "" {
				return plain, s.fail(i, "invalid_text", "%s%s", problem, s.where(i))
			}
			i += n - 1
		case c < ' ':
			if c == 0 {
				return plain, s.fail(i, "invalid_text", "the text contains a NUL character%s; remove it", s.where(i))
			}
			return plain, s.fail(i, "invalid_syntax", `the text contains a raw control character%s; escape it, as in "\n"`, s.where(i))
		}
	}
	return plain, s.fail(start, "invalid_syntax", "the text that begins%s has no closing quote", s.where(start))
}

// escape measures the escape sequence at the start of b; a surrogate pair is one.
func escape(b []byte) (n int, problem string) {
	if len(b) < 2 {
		return 0, "the text ends within an escape"
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2, ""
	case 'u':
	default:
		return 0, `a backslash is followed by something that is no escape; write "\\" for a backslash`
	}
	r, ok := hex4(b)
	switch {
	case !ok:
		return 0, `"\u" needs four hexadecimal digits`
	case r == 0:
		return 0, `the text contains a NUL character (\u0000); remove it`
	case !utf16.IsSurrogate(r):
		return 6, ""
	}
	low, ok := hex4(b[6:])
	if !ok || utf16.DecodeRune(r, low) == utf8.RuneError {
		return 0, "the text contains half a surrogate pair; write both halves or neither"
	}
	return 12, ""
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range b[2:6] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// number passes over a number and tells whether it is written as a whole one.
func (s *scanner) number() (whole bool, err *Error) {
	start := s.pos
	i, whole := numberEnd(s.data, s.pos)
	if i < 0 {
		return false, s.unexpected("a value")
	}
	s.pos = i
	lit := s.data[start:i]
	if len(lit) > MaxNumberBytes {
		return whole, s.fail(start, "invalid_field", "a number is longer than %d characters; shorten it or write it as text", MaxNumberBytes)
	}
	if whole && len(lit) < 300 {
		return true, nil
	}
	if v, err := strconv.ParseFloat(string(lit), 64); err != nil || v == 0 && !zero(lit) {
		return whole, s.fail(start, "invalid_field", "the number %s is beyond the range of a double (about 1e308); write it as text", abbreviate(lit))
	}
	return whole, nil
}

// numberEnd is where the JSON number at i ends, or -1 if none stands there.
func numberEnd(b []byte, i int) (end int, whole bool) {
	digits := func() bool {
		from := i
		for i < len(b) && '0' <= b[i] && b[i] <= '9' {
			i++
		}
		return i > from
	}
	if i < len(b) && b[i] == '-' {
		i++
	}
	if from := i; !digits() || b[from] == '0' && i > from+1 {
		return -1, false
	}
	whole = true
	if i < len(b) && b[i] == '.' {
		i++
		if whole = false; !digits() {
			return -1, false
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if whole = false; !digits() {
			return -1, false
		}
	}
	return i, whole
}

func zero(lit []byte) bool {
	for _, c := range lit {
		if c == 'e' || c == 'E' {
			break
		}
		if '1' <= c && c <= '9' {
			return false
		}
	}
	return true
}

func (s *scanner) literal(word string) *Error {
	if len(s.data)-s.pos < len(word) || string(s.data[s.pos:s.pos+len(word)]) != word {
		return s.unexpected("a value")
	}
	s.pos += len(word)
	return nil
}

func (s *scanner) space() {
	for ; s.pos < len(s.data); s.pos++ {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.spaced = true
		default:
			return
		}
	}
}

// peek is the next byte, or 0 at the end (a NUL is no token either).
func (s *scanner) peek() byte {
	if s.pos < len(s.data) {
		return s.data[s.pos]
	}
	return 0
}

// probeLeaf decodes one value alone, so that the error of a type that reads itself gets a field.
func (s *scanner) probeLeaf(start int, sh *shape) *Error {
	raw := s.data[start:s.pos]
	switch sh.kind {
	case shapeObject, shapeMap, shapeList:
		if !sh.short {
			return nil // its parts were probed
		}
	}
	err := json.Unmarshal(raw, reflect.New(sh.typ).Interface())
	if err == nil {
		return nil
	}
	e := s.fail(start, "invalid_field", "%s", sh.complain(raw, err))
	if inner := new(Error); errors.As(err, &inner) {
		e.Reason = cmpOr(inner.Reason, e.Reason)
		e.Field = joinField(e.Field, inner.Field)
	}
	return e
}
