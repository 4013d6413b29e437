package job

import (
	"encoding"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// A shape is what the strict decoder knows of a Go type: which JSON it takes, and under which names. encoding/json would
// find most mistakes too, but says neither where they are nor what was meant.
type shape struct {
	kind     shapeKind
	typ      reflect.Type // without pointers
	short    bool         // of an object: it may also be written as text
	fields   []field      // of an object
	byName   map[string]int
	elem     *shape // of a map or list
	elemNull bool   // null is an element like any other
}

type shapeKind uint8

const (
	shapeAny shapeKind = iota // free JSON, or a type that reads itself
	shapeText
	shapeBool
	shapeInt
	shapeFloat
	shapeObject
	shapeMap
	shapeList
)

type field struct {
	name  string
	shape *shape
}

// expected is how an error says what belongs here.
func (s *shape) expected() string {
	switch s.kind {
	case shapeText:
		return "text"
	case shapeBool:
		return "true or false"
	case shapeInt:
		return "a whole number"
	case shapeFloat:
		return "a number"
	case shapeList:
		return "a list"
	case shapeObject:
		if s.short {
			return "text or an object"
		}
	}
	return "an object"
}

// shapes memoises shapeOf. It only ever holds what the types themselves determine.
var shapes sync.Map // reflect.Type → *shape

func shapeOf(t reflect.Type) *shape {
	if s, ok := shapes.Load(t); ok {
		return s.(*shape)
	}
	// A type may contain itself, so a shape is entered before it is complete; it is published only afterwards.
	building := map[reflect.Type]*shape{}
	s := buildShape(t, building)
	shapes.Store(t, s)
	return s
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func buildShape(t reflect.Type, building map[reflect.Type]*shape) *shape {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if s, ok := building[t]; ok {
		return s
	}
	s := &shape{typ: t}
	building[t] = s
	switch t {
	case reflect.TypeFor[CatchUp](), reflect.TypeFor[Edge]():
		// They read themselves because of their short form, but the long form has fields like any other.
		s.short = true
		s.object(t, building)
		return s
	}
	switch {
	case reflect.PointerTo(t).Implements(jsonUnmarshaler):
		return s
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		s.kind = shapeText
		return s
	}
	switch t.Kind() {
	case reflect.String:
		s.kind = shapeText
	case reflect.Bool:
		s.kind = shapeBool
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		s.kind = shapeInt
	case reflect.Float32, reflect.Float64:
		s.kind = shapeFloat
	case reflect.Slice, reflect.Array:
		if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
			s.kind = shapeText // base64
			break
		}
		s.kind = shapeList
		s.element(t.Elem(), building)
	case reflect.Map:
		s.kind = shapeMap
		s.element(t.Elem(), building)
	case reflect.Struct:
		s.object(t, building)
	}
	return s
}

func (s *shape) element(t reflect.Type, building map[reflect.Type]*shape) {
	s.elem = buildShape(t, building)
	s.elemNull = t.Kind() == reflect.Pointer || s.elem.kind == shapeAny
}

func (s *shape) object(t reflect.Type, building map[reflect.Type]*shape) {
	s.kind = shapeObject
	s.byName = map[string]int{}
	for _, f := range jsonFields(t) {
		s.byName[f.name] = len(s.fields)
		s.fields = append(s.fields, field{f.name, nil})
		if f.quoted { // `,string`: a number within text, which encoding/json judges
			s.fields[len(s.fields)-1].shape = &shape{typ: f.typ}
			continue
		}
		s.fields[len(s.fields)-1].shape = buildShape(f.typ, building)
	}
}

type jsonField struct {
	name   string
	typ    reflect.Type
	tagged bool
	quoted bool
}

// jsonFields lists the fields that encoding/json would fill, by its rules: the shallowest of one name wins, at one depth
// a tagged one wins, otherwise none does.
func jsonFields(t reflect.Type) []jsonField {
	var found []jsonField
	level, seen := []reflect.Type{t}, map[reflect.Type]bool{}
	for len(level) > 0 {
		var here []jsonField
		var deeper []reflect.Type
		for _, t := range level {
			if seen[t] {
				continue
			}
			seen[t] = true
			for i := range t.NumField() {
				f := t.Field(i)
				tag := f.Tag.Get("json")
				if tag == "-" {
					continue
				}
				name, options, _ := strings.Cut(tag, ",")
				embedded := f.Type
				if embedded.Kind() == reflect.Pointer {
					embedded = embedded.Elem()
				}
				if f.Anonymous && name == "" && embedded.Kind() == reflect.Struct {
					deeper = append(deeper, embedded)
					continue
				}
				if !f.IsExported() {
					continue
				}
				jf := jsonField{name: name, typ: f.Type, tagged: name != ""}
				jf.quoted = slices.Contains(strings.Split(options, ","), "string")
				if name == "" {
					jf.name = f.Name
				}
				here = append(here, jf)
			}
		}
		taken := map[string]bool{}
		for _, f := range found {
			taken[f.name] = true
		}
		for i, f := range here {
			if taken[f.name] {
				continue
			}
			wins := true
			for j, g := range here {
				if j != i && g.name == f.name && (g.tagged || !f.tagged) {
					wins = false
				}
			}
			if wins {
				found = append(found, f)
			}
		}
		level = deeper
	}
	return found
}

// suggest ends the message about an unknown field: the name that was probably meant, or the names there are.
func (s *shape) suggest(unknown string) string {
	best, bestAt := "", max(1, len(unknown)/3)+1
	for _, f := range s.fields {
		if d := editDistance(strings.ToLower(unknown), f.name, bestAt); d < bestAt {
			best, bestAt = f.name, d
		}
	}
	for i := 0; best == "" && i < len(s.fields); i++ { // cmd is short for command
		if shortens(unknown, s.fields[i].name) {
			best = s.fields[i].name
		}
	}
	if best != "" {
		return `did you mean "` + best + `"?`
	}
	for _, f := range s.fields { // one that stands a level too high
		if f.shape.kind == shapeObject {
			if _, ok := f.shape.byName[unknown]; ok {
				return `did you mean "` + f.name + "." + unknown + `"?`
			}
		}
	}
	names := make([]string, len(s.fields))
	for i, f := range s.fields {
		names[i] = f.name
	}
	if len(names) == 0 {
		return "no fields are known here"
	}
	return "known here are " + strings.Join(names, ", ")
}

// shortens tells whether short is long with letters left out after the first.
func shortens(short, long string) bool {
	if len(short) < 2 || long == "" || short[0] != long[0] {
		return false
	}
	for i := range len(long) {
		if short != "" && long[i] == short[0] {
			short = short[1:]
		}
	}
	return short == ""
}

// editDistance counts the letters to insert, delete, replace or swap with a neighbour that make b of a. It gives up at
// limit, since a name that far away was not meant.
func editDistance(a, b string, limit int) int {
	if len(a) > 64 || len(b) > 64 || max(len(a)-len(b), len(b)-len(a)) >= limit {
		return limit
	}
	var rows [3][65]int
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		row, prev, before := &rows[i%3], &rows[(i+2)%3], &rows[(i+1)%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return min(rows[len(a)%3][len(b)], limit)
}

// complain puts what a type said about its own JSON into a message for the user.
func (s *shape) complain(raw []byte, err error) string {
	if string(raw) == "null" {
		return "has no value; give it one, or leave it out"
	}
	if e := new(Error); errors.As(err, &e) {
		return e.Message
	}
	switch {
	case s.typ == reflect.TypeFor[time.Time]():
		return "a time is written as RFC 3339, such as 2026-01-31T09:00:00Z"
	case s.kind == shapeInt:
		return "the number " + abbreviate(raw) + " is out of range"
	case s.kind == shapeText && s.typ.Kind() == reflect.Slice:
		return "expected bytes as base64 text"
	}
	return "expected " + s.expected() + ", found " + found(raw)
}
