package dag

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/musterhq/muster/job"
)

// piece is literal text, or the source of an expression.
type piece struct {
	text string
	expr bool
}

// cut takes a text apart at its templates. $${{ stands for ${{ itself. The error is one clause for a user.
func cut(text string) ([]piece, error) {
	var pieces []piece
	var literal strings.Builder
	flush := func() {
		if literal.Len() > 0 {
			pieces = append(pieces, piece{text: literal.String()})
			literal.Reset()
		}
	}
	for {
		at := strings.Index(text, job.TemplateMark)
		switch {
		case at < 0:
			literal.WriteString(text)
			flush()
			return pieces, nil
		case at > 0 && text[at-1] == '$':
			literal.WriteString(text[:at-1])
			literal.WriteString(job.TemplateMark)
			text = text[at+len(job.TemplateMark):]
			continue
		}
		literal.WriteString(text[:at])
		flush()
		text = text[at+len(job.TemplateMark):]
		end := closing(text)
		if end < 0 {
			return nil, errors.New("there is a ${{ without its }}; close it, or write $${{ for the characters themselves")
		}
		src := strings.TrimSpace(text[:end])
		if src == "" {
			return nil, errors.New("there is nothing between ${{ and }}; write an expression, or $${{ for the characters themselves")
		}
		pieces = append(pieces, piece{src, true})
		text = text[end+2:]
	}
}

// closing finds the }} that ends an expression: outside of its texts, its comments and its braces. It is -1 if there is
// none.
func closing(src string) int {
	depth := 0
	for i := 0; i < len(src); {
		switch c := src[i]; {
		case c == '"' || c == '\'':
			raw := i > 0 && (src[i-1]|0x20 == 'r' || i > 1 && src[i-1]|0x20 == 'b' && src[i-2]|0x20 == 'r')
			n := literalEnd(src[i:], raw)
			if n < 0 {
				return -1
			}
			i += n
			continue
		case strings.HasPrefix(src[i:], "//"):
			n := strings.IndexByte(src[i:], '\n')
			if n < 0 {
				return -1
			}
			i += n
		case c == '{':
			depth++
		case c == '}' && depth > 0:
			depth--
		case strings.HasPrefix(src[i:], "}}"):
			return i
		}
		i++
	}
	return -1
}

// literalEnd is the length of the text literal with which s begins, or -1 if it does not end. A raw one has no escapes.
func literalEnd(s string, raw bool) int {
	quote := s[:1]
	if long := strings.Repeat(quote, 3); strings.HasPrefix(s, long) {
		quote = long
	}
	for i := len(quote); i < len(s); i++ {
		switch {
		case s[i] == '\\' && !raw:
			i++
		case strings.HasPrefix(s[i:], quote):
			return i + len(quote)
		case s[i] == '\n' && len(quote) == 1:
			return -1
		}
	}
	return -1
}

// template is a text with expressions in it.
type template []segment

// segment is literal text, or an expression.
type segment struct {
	text string
	expr *expr
}

// text fills the template in, with at most MaxTextBytes.
func (t template) text(s *scene) (string, error) {
	var b strings.Builder
	for _, g := range t {
		add := g.text
		if g.expr != nil {
			v, err := g.expr.eval(s)
			if err != nil {
				return "", err
			}
			if add, err = textOf(v); err != nil {
				return "", err
			}
		}
		if b.Len()+len(add) > MaxTextBytes {
			return "", tooLarge(MaxTextBytes)
		}
		b.WriteString(add)
	}
	return b.String(), nil
}

// textOf is how a value stands in a text: a text as it is, null as nothing, all else as JSON.
func textOf(v ref.Val) (string, error) {
	switch v := v.(type) {
	case types.String:
		return string(v), nil
	case types.Null:
		return "", nil
	case types.Timestamp, types.Duration:
		b, err := encode(v, job.MaxPayloadBytes)
		return strings.Trim(string(b), `"`), err
	}
	b, err := encode(v, MaxTextBytes)
	return string(b), err
}

// payload is a JSON value with templates in its texts.
type payload struct {
	field  string
	chunks []chunk
}

// chunk is JSON as it was written or, in its place, a text with templates.
type chunk struct {
	json  []byte
	text  template
	field string
}

// cutPayload finds the texts in valid JSON that hold templates; nil if there are none. parse compiles one of them.
func cutPayload(field string, raw json.RawMessage, parse func(field, text string) (template, error)) (*payload, error) {
	if !bytes.Contains(raw, []byte("{{")) && !bytes.Contains(raw, []byte(`\u`)) {
		return nil, nil
	}
	s := payloadScanner{raw: raw, parse: parse}
	if err := s.value(field); err != nil {
		return nil, err
	}
	if len(s.out) == 0 {
		return nil, nil
	}
	return &payload{field, append(s.out, chunk{json: raw[s.copied:]})}, nil
}

// payloadScanner walks JSON that is known to be valid.
type payloadScanner struct {
	raw    []byte
	pos    int
	copied int // so much of raw is in out
	parse  func(field, text string) (template, error)
	out    []chunk
}

func (s *payloadScanner) value(field string) error {
	switch s.next() {
	case '"':
		return s.text(field)
	case '{':
		return s.object(field)
	case '[':
		s.pos++
		for i := 0; s.next() != ']' && s.pos < len(s.raw); i++ {
			if err := s.value(field + "[" + strconv.Itoa(i) + "]"); err != nil {
				return err
			}
			if s.next() == ',' {
				s.pos++
			}
		}
		s.pos++
		return nil
	}
	for s.pos < len(s.raw) && strings.IndexByte(",]} \t\r\n", s.raw[s.pos]) < 0 {
		s.pos++
	}
	return nil
}

func (s *payloadScanner) object(field string) error {
	for s.pos++; s.next() == '"'; {
		var name string
		if err := json.Unmarshal(s.quoted(), &name); err != nil {
			return err
		}
		if strings.Contains(name, job.TemplateMark) {
			return job.InvalidField(field, "a template cannot stand in the name of a field; put it into a value")
		}
		s.next()
		s.pos++ // the colon
		if err := s.value(field + "." + name); err != nil {
			return err
		}
		if s.next() == ',' {
			s.pos++
		}
	}
	s.pos++
	return nil
}

func (s *payloadScanner) text(field string) error {
	from := s.pos
	var text string
	if err := json.Unmarshal(s.quoted(), &text); err != nil {
		return err
	}
	if !strings.Contains(text, job.TemplateMark) {
		return nil
	}
	t, err := s.parse(field, text)
	if err != nil {
		return err
	}
	s.out = append(s.out, chunk{json: s.raw[s.copied:from]}, chunk{text: t, field: field})
	s.copied = s.pos
	return nil
}

// quoted takes the text at which the scanner stands.
func (s *payloadScanner) quoted() []byte {
	from := s.pos
	for s.pos++; s.pos < len(s.raw); s.pos++ {
		switch s.raw[s.pos] {
		case '\\':
			s.pos++
		case '"':
			s.pos++
			return s.raw[from:s.pos]
		}
	}
	return s.raw[from:]
}

// next is the byte that comes after white space, 0 at the end.
func (s *payloadScanner) next() byte {
	for ; s.pos < len(s.raw); s.pos++ {
		if c := s.raw[s.pos]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return c
		}
	}
	return 0
}

// fill puts the values in. The result is a payload that every store can keep.
func (p *payload) fill(s *scene) (json.RawMessage, error) {
	var out []byte
	for _, c := range p.chunks {
		b := json.RawMessage(c.json)
		if c.text != nil {
			var err error
			if b, err = c.text.json(s); err != nil {
				return nil, failed(c.field, err)
			}
		}
		if out = append(out, b...); len(out) > 2*job.MaxPayloadBytes { // white space does not count in the end
			return nil, failed(p.field, tooLarge(job.MaxPayloadBytes))
		}
	}
	valid, err := job.ValidatePayload(p.field, out, 0)
	if err != nil {
		return nil, failed("", err)
	}
	return valid, nil
}

// json fills in a text of a payload: the value itself if the text is nothing but one template.
func (t template) json(s *scene) (json.RawMessage, error) {
	if len(t) == 1 && t[0].expr != nil {
		v, err := t[0].expr.eval(s)
		if err != nil {
			return nil, err
		}
		return encode(v, job.MaxPayloadBytes)
	}
	text, err := t.text(s)
	if err != nil {
		return nil, err
	}
	return encode(types.String(text), job.MaxPayloadBytes)
}

// failed is the error of an expression that was right and could not be evaluated.
func failed(field string, err error) error {
	e := &job.Error{Code: job.Invalid, Reason: job.ExpressionFailed.String(), Field: field, Message: err.Error()}
	if from := new(job.Error); errors.As(err, &from) {
		e.Message = from.Message
		e.Field = field + from.Field
	}
	return e
}
