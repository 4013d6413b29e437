package job

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Reading what users wrote. Every error here is an *Error with the code Invalid, the field as the user wrote it, and one
// of these reasons:
//
//	invalid_syntax      not JSON or YAML; the message has the line
//	invalid_text        not UTF-8, or a text that no store can keep (NUL, half a surrogate pair)
//	invalid_field       of the wrong type, or a value outside its rules
//	unknown_field       with the nearest field that is known
//	duplicate_field     the same field twice in one object
//	too_large, too_deep beyond a limit, which the message names
const (
	// MaxDocumentBytes bounds one document, and the JSON that it amounts to once YAML aliases are followed.
	MaxDocumentBytes = 1 << 20
	// MaxDocumentsBytes bounds a stream of documents.
	MaxDocumentsBytes = 16 << 20
	// MaxDocuments bounds how many documents a stream holds.
	MaxDocuments = 10_000
)

// DecodeStrict reads one JSON value into what into points to. Beyond encoding/json it refuses unknown fields (names are
// compared exactly), fields given twice at any level, text that is not UTF-8 or contains NUL, numbers outside the range
// of a double, nesting beyond MaxDepth, and anything after the value. null means "not set" for a field and is refused as
// an element of a list or map. rootField is the name of the whole in errors; "" for a body. Custom UnmarshalJSON and
// UnmarshalText methods are honoured; an *Error of theirs keeps its message and reason. The caller bounds len(data). After
// an error what into points to is undefined.
func DecodeStrict(data []byte, into any, rootField string) error {
	s := scanner{data: data, root: rootField}
	if err := s.decode(into); err != nil {
		return err
	}
	return nil
}

func (s *scanner) decode(into any) *Error {
	sh := shapeOf(reflect.TypeOf(into))
	if err := s.whole(sh); err != nil {
		return err
	}
	err := json.Unmarshal(s.data, into)
	if err == nil {
		return nil
	}
	// Rare, so it may be slow: decode every value by itself to find out which one was refused.
	s.pos, s.path, s.keys, s.probe = 0, nil, nil, true
	if err := s.whole(sh); err != nil {
		return err
	}
	return &Error{Code: Invalid, Reason: "invalid_field", Field: s.root, Message: "the JSON does not have the expected form", Cause: err}
}

// ParseDocument reads one job document, YAML or JSON, strictly: see DecodeStrict. Then it fills in the defaults and
// validates. Whether the cron expression and the time zone mean anything is for job/timetable to say, and
// whether expressions and templates do for job/dag; callers ask both.
func ParseDocument(data []byte) (*Document, error) { return ParseDocumentIn("", data) }

// ParseDocumentIn is ParseDocument for a request that names the namespace: a document that names none gets it, and one
// that names another is refused.
func ParseDocumentIn(namespace string, data []byte) (*Document, error) {
	src, err := parseOne(data)
	if err != nil {
		return nil, err
	}
	if err := src.finish(namespace, (*Document).Validate); err != nil {
		return nil, err
	}
	return src.doc, nil
}

// ParseSpec reads an inline spec: a document without name, schedule and depends_on, for a run of its own. Its namespace
// stays empty if it names none: the request decides, and refuses another.
func ParseSpec(data []byte) (*Document, error) {
	src, err := parseOne(data)
	if err != nil {
		return nil, err
	}
	if err := src.finish("", (*Document).ValidateSpec); err != nil {
		return nil, err
	}
	return src.doc, nil
}

// ParseDocuments reads a stream of documents: YAML separated by "---", or JSON values one after the other. Empty
// documents are passed over. An error says which document of several it is about, counted from 1.
func ParseDocuments(data []byte) ([]*Document, error) { return ParseDocumentsIn("", data) }

// ParseDocumentsIn is ParseDocuments for a caller who names the namespace, as ParseDocumentIn is for one document.
func ParseDocumentsIn(namespace string, data []byte) ([]*Document, error) {
	data, err := checkStream(data, MaxDocumentsBytes)
	if err != nil {
		return nil, err
	}
	next := yamlDocuments(data)
	if looksLikeJSON(data) {
		next = jsonDocuments(data)
	}
	var docs []*Document
	named := map[string]int{}
	for n := 1; ; n++ {
		src, err := next()
		if err == nil && src != nil {
			if n > MaxDocuments {
				return nil, Errorf(Invalid, "too_large", "there are more than %d documents; split the file", MaxDocuments)
			}
			err = src.finish(namespace, (*Document).Validate)
		}
		if err != nil {
			if other, _ := next(); n > 1 || other != nil { // a file of one document needs no numbers
				err.Message = fmt.Sprintf("document %d: %s", n, err.Message)
			}
			return nil, err
		}
		if src == nil {
			break
		}
		who := src.doc.Namespace + "/" + src.doc.Name
		if first, ok := named[who]; ok {
			return nil, InvalidField("name", "document %d: document %d is the job %s too; keep one of them", n, first, src.doc.Name)
		}
		named[who] = n
		docs = append(docs, src.doc)
	}
	if len(docs) == 0 {
		return nil, Errorf(Invalid, "invalid_syntax", "there is no document; a job document has at least a name and one of exec, http, handler or tasks")
	}
	return docs, nil
}

// Within prefixes the field of an error about a part with the field that the part is: Within("runs[3].spec", err).
func Within(field string, err error) error {
	if err == nil {
		return nil
	}
	e := *AsError(err)
	e.Field = joinField(field, e.Field)
	return &e
}

// source is a decoded document with what is needed to say at which line a field stands.
type source struct {
	doc    *Document
	lineOf func(field string) int // 0: unknown
}

// finish fills in the defaults and validates.
func (src *source) finish(namespace string, validate func(*Document) error) *Error {
	d := src.doc
	err := d.readPayload()
	if err == nil && namespace != "" {
		if d.Namespace != "" && d.Namespace != namespace {
			err = InvalidField("namespace", "the document says %q but the request is for %q; leave one of them out", abbreviate([]byte(d.Namespace)), namespace)
		}
		d.Namespace = namespace
	}
	if err == nil {
		d.Normalize()
		if e := validate(d); e != nil {
			err = AsError(e)
		}
	}
	return src.locate(err)
}

// locate adds the line of the field to an error that has none: those about syntax and text have theirs.
func (src *source) locate(err *Error) *Error {
	if err == nil || err.Field == "" || err.Reason == "invalid_syntax" || err.Reason == "invalid_text" {
		return err
	}
	if line := src.lineOf(err.Field); line > 0 {
		err.Message += fmt.Sprintf(" (line %d)", line)
	}
	return err
}

// readPayload checks the document's payload and drops its white space. A null is none.
func (d *Document) readPayload() *Error {
	if string(d.Payload) == "null" {
		d.Payload = nil
	}
	p, err := ValidatePayload("payload", d.Payload, MaxPayloadBytes)
	if err != nil {
		return AsError(err)
	}
	d.Payload = p
	return nil
}

// parseOne decodes the only document of data.
func parseOne(data []byte) (*source, *Error) {
	data, err := checkStream(data, MaxDocumentBytes)
	if err != nil {
		return nil, err
	}
	if looksLikeJSON(data) {
		return jsonDocument(&scanner{data: data}, true)
	}
	next := yamlDocuments(data)
	src, err := next()
	switch {
	case err != nil:
		return nil, err
	case src == nil:
		return nil, Errorf(Invalid, "invalid_syntax", "the document is empty; a job document has at least a name and one of exec, http, handler or tasks")
	}
	more, err := next()
	if err != nil {
		return nil, err
	}
	if more != nil {
		return nil, Errorf(Invalid, "invalid_syntax", `another document follows after "---"; send one document only`)
	}
	return src, nil
}

func checkStream(data []byte, limit int) ([]byte, *Error) {
	if len(data) > limit {
		return nil, Errorf(Invalid, "too_large", "the document has %d bytes; the limit is %d", len(data), limit)
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if i := bytes.IndexByte(data, 0); i >= 0 {
		line, _ := lineColumn(data, i)
		return nil, Errorf(Invalid, "invalid_text", "the document contains a NUL character at line %d; remove it, and save the text as UTF-8", line)
	}
	if err := checkUTF8(data); err != nil {
		return nil, err
	}
	return data, nil
}

// looksLikeJSON tells JSON from YAML, of which it is nearly a part, so that each gets errors in its own words: an object
// whose first name is in quotes, or an empty one.
func looksLikeJSON(data []byte) bool {
	rest, ok := bytes.CutPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{"))
	rest = bytes.TrimLeft(rest, " \t\r\n")
	return ok && len(rest) > 0 && (rest[0] == '"' || rest[0] == '}')
}

// jsonDocument decodes the document that starts at the scanner's position; with alone nothing may follow it.
func jsonDocument(s *scanner, alone bool) (*source, *Error) {
	start := s.pos
	if !alone {
		// Where it ends, first, so that the document can be treated as data of its own.
		if err := s.first(&freeShape); err != nil {
			return nil, err
		}
	} else {
		s.pos = len(s.data)
	}
	one := &scanner{data: s.data[start:s.pos]}
	src := &source{doc: new(Document)}
	before, _ := lineColumn(s.data, start)
	lineAt := func(at int) int {
		line, _ := lineColumn(one.data, at)
		return before - 1 + line
	}
	src.lineOf = func(string) int { return lineAt(one.errorAt) }
	if len(one.data) > MaxDocumentBytes {
		return nil, Errorf(Invalid, "too_large", "the document has %d bytes; the limit is %d", len(one.data), MaxDocumentBytes)
	}
	if err := one.decode(src.doc); err != nil {
		return nil, src.locate(err)
	}
	src.lineOf = func(field string) int {
		if at := findField(one.data, field); at >= 0 {
			return lineAt(at)
		}
		return 0
	}
	return src, nil
}

func jsonDocuments(data []byte) func() (*source, *Error) {
	s := &scanner{data: data}
	return func() (*source, *Error) {
		s.path, s.depth, s.keys = nil, 0, nil
		if s.space(); s.pos == len(s.data) {
			return nil, nil
		}
		return jsonDocument(s, false)
	}
}

// findField is where the value of a field begins in JSON that was scanned, or of the nearest field around it that is
// there; -1 if there is none.
func findField(data []byte, name string) int {
	dec := json.NewDecoder(bytes.NewReader(data))
	best := -1
	var walk func(path string) bool
	walk = func(path string) bool {
		t, err := dec.Token()
		if err != nil {
			return false
		}
		if path == name || path != "" && strings.HasPrefix(name, path) && strings.ContainsAny(name[len(path):][:1], ".[") {
			best = int(dec.InputOffset()) - 1
		}
		if path == name {
			return false
		}
		switch t {
		case json.Delim('{'):
			for dec.More() {
				k, err := dec.Token()
				if err != nil || !walk(joinField(path, pathName(fmt.Sprint(k)))) {
					return false
				}
			}
		case json.Delim('['):
			for i := 0; dec.More(); i++ {
				if !walk(fmt.Sprintf("%s[%d]", path, i)) {
					return false
				}
			}
		default:
			return true
		}
		_, err = dec.Token() // the end
		return err == nil
	}
	walk("")
	return best
}
