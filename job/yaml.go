package job

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// MaxYAMLNodes bounds the values of one YAML document, aliases followed.
	MaxYAMLNodes = 100_000
	// maxYAMLMarks bounds what could begin a value, before anything is parsed: the parser needs about 300 bytes of memory
	// for each of them, so a hostile document could otherwise cost hundreds of times its size.
	maxYAMLMarks = 3 * MaxYAMLNodes
)

// yamlDocuments gives the documents of a YAML stream one by one, each turned into JSON and decoded as that, so that both
// languages have one set of rules. It ends with nil.
func yamlDocuments(data []byte) func() (*source, *Error) {
	if len(data) <= MaxDocumentBytes && yamlMarks(data) > maxYAMLMarks {
		return func() (*source, *Error) { return nil, tooManyNodes() }
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	return func() (*source, *Error) {
		for {
			var root yaml.Node
			if err := decodeYAML(dec, &root); errors.Is(err, io.EOF) {
				return nil, nil
			} else if err != nil {
				return nil, yamlSyntax(data, err)
			}
			if len(root.Content) == 0 || root.Content[0].ShortTag() == "!!null" {
				continue
			}
			return yamlDocument(root.Content[0])
		}
	}
}

func yamlMarks(data []byte) int {
	n := 0
	for _, c := range data {
		switch c {
		case ',', '[', '{', ':', '-', '?', '*', '\n':
			n++
		}
	}
	return n
}

func tooManyNodes() *Error {
	return Errorf(Invalid, "too_large", "the document has more than %d values; split it", MaxYAMLNodes)
}

// decodeYAML shields us from the parser, which answers some input with a panic instead of an error.
func decodeYAML(dec *yaml.Decoder, into *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the parser gave up: %v", r)
		}
	}()
	return dec.Decode(into)
}

func yamlSyntax(data []byte, err error) *Error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	hint := ""
	if strings.Contains(text, "cannot start any token") && bytes.Contains(data, []byte("\t")) {
		hint = "; indent with spaces, not with tabs"
	}
	return Errorf(Invalid, "invalid_syntax", "this is not valid YAML: %.200s%s", text, hint)
}

func yamlDocument(root *yaml.Node) (*source, *Error) {
	src := &source{doc: new(Document), lineOf: func(field string) int { return lineOfNode(root, field) }}
	y := yamlReader{}
	if err := y.value(root, "", 1); err != nil {
		return nil, err
	}
	s := scanner{data: y.out}
	if err := s.decode(src.doc); err != nil {
		return nil, src.locate(err)
	}
	return src, nil
}

// yamlReader writes a YAML tree as JSON.
type yamlReader struct {
	out   []byte
	nodes int
}

func yamlError(n *yaml.Node, reason, field, format string, args ...any) *Error {
	e := Errorf(Invalid, reason, format+" (line %d)", append(args, n.Line)...)
	e.Field = field
	return e
}

func (y *yamlReader) value(n *yaml.Node, path string, depth int) *Error {
	for n.Kind == yaml.AliasNode { // an alias within its own anchor ends at the depth
		n = n.Alias
	}
	if y.nodes++; y.nodes > MaxYAMLNodes {
		return tooManyNodes()
	}
	if len(y.out) > 2*MaxDocumentBytes {
		return Errorf(Invalid, "too_large", "the document with its aliases followed has more than %d bytes; the limit is %d", len(y.out), MaxDocumentBytes)
	}
	if n.Kind != yaml.ScalarNode && depth > MaxDepth {
		return yamlError(n, "too_deep", path, "objects and lists are nested more than %d deep; flatten them", MaxDepth)
	}
	switch n.Kind {
	case yaml.MappingNode:
		if tag := n.ShortTag(); tag != "!!map" {
			return yamlError(n, "invalid_field", path, "the YAML tag %.32s is not supported; leave it out", tag)
		}
		y.out = append(y.out, '{')
		if err := y.mapping(n, path, depth, map[string]bool{}); err != nil {
			return err
		}
		y.out = append(y.out, '}')
	case yaml.SequenceNode:
		if tag := n.ShortTag(); tag != "!!seq" {
			return yamlError(n, "invalid_field", path, "the YAML tag %.32s is not supported; leave it out", tag)
		}
		y.out = append(y.out, '[')
		for i, item := range n.Content {
			if i > 0 {
				y.out = append(y.out, ',')
			}
			if err := y.value(item, fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
				return err
			}
		}
		y.out = append(y.out, ']')
	default:
		return y.scalar(n, path)
	}
	return nil
}

// mapping writes the fields of an object, and after them those of merged ones ("<<") that are not there yet.
func (y *yamlReader) mapping(n *yaml.Node, path string, depth int, seen map[string]bool) *Error {
	var merged []*yaml.Node
	own := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		for k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		if k.Kind != yaml.ScalarNode || k.ShortTag() == "!!null" {
			return yamlError(k, "invalid_syntax", path, "a field name is missing or is not plain text")
		}
		if k.ShortTag() == "!!merge" {
			merged = append(merged, v)
			continue
		}
		field := joinField(path, pathName(k.Value))
		if own[k.Value] {
			return yamlError(k, "duplicate_field", field, "the field %q is there twice; keep one of them", abbreviate([]byte(k.Value)))
		}
		own[k.Value] = true
		if seen[k.Value] {
			continue // merged, and set where it is merged into
		}
		seen[k.Value] = true
		if last := y.out[len(y.out)-1]; last != '{' {
			y.out = append(y.out, ',')
		}
		if err := y.text(k, field); err != nil {
			return err
		}
		y.out = append(y.out, ':')
		if err := y.value(v, field, depth+1); err != nil {
			return err
		}
	}
	for i := 0; i < len(merged); i++ {
		m := merged[i]
		for m.Kind == yaml.AliasNode {
			m = m.Alias
		}
		if m.Kind == yaml.SequenceNode && depth < MaxDepth {
			depth++
			merged = append(merged, m.Content...)
			continue
		}
		if y.nodes++; y.nodes > MaxYAMLNodes || len(merged) > MaxYAMLNodes {
			return tooManyNodes()
		}
		if m.Kind != yaml.MappingNode || depth >= MaxDepth {
			return yamlError(m, "invalid_field", path, `"<<" takes an object or a list of objects`)
		}
		if err := y.mapping(m, path, depth+1, seen); err != nil {
			return err
		}
	}
	return nil
}

func (y *yamlReader) scalar(n *yaml.Node, path string) *Error {
	_, isNumber := wholeNumber(n.Value)
	switch tag := n.ShortTag(); tag {
	case "!!null":
		y.out = append(y.out, "null"...)
	case "!!bool":
		v, err := strconv.ParseBool(strings.ToLower(n.Value))
		if err != nil {
			return yamlError(n, "invalid_field", path, "%.64q is not true or false", n.Value)
		}
		y.out = strconv.AppendBool(y.out, v)
	case "!!int", "!!float":
		// 0644, 0x1f, 1_000 and .5 mean different numbers to different readers of YAML, or none.
		if !isNumber {
			return yamlError(n, "invalid_field", path, "the number %.64s can be read in more than one way; write it in plain decimal, or in quotes if it is text", n.Value)
		}
		y.out = append(y.out, n.Value...)
	case "!!str", "!!timestamp":
		// A number beyond a double is text to the parser; whoever wrote it meant a number.
		if isNumber && n.Style == 0 && tag == "!!str" {
			y.out = append(y.out, n.Value...)
			return nil
		}
		return y.text(n, path)
	default:
		return yamlError(n, "invalid_field", path, "the YAML tag %.32s is not supported; leave it out", tag)
	}
	return nil
}

func wholeNumber(text string) (integer, ok bool) {
	end, integer := numberEnd([]byte(text), 0)
	return integer, end >= 0 && end == len(text)
}

func (y *yamlReader) text(n *yaml.Node, path string) *Error {
	if strings.IndexByte(n.Value, 0) >= 0 {
		return yamlError(n, "invalid_text", path, "the text contains a NUL character; remove it")
	}
	y.out = appendQuoted(y.out, n.Value)
	return nil
}

// appendQuoted writes text, which is valid UTF-8, as JSON.
func appendQuoted(out []byte, text string) []byte {
	out = append(out, '"')
	for _, c := range []byte(text) {
		switch {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c == '\n':
			out = append(out, `\n`...)
		case c == '\t':
			out = append(out, `\t`...)
		case c < ' ':
			out = fmt.Appendf(out, `\u%04x`, c)
		default:
			out = append(out, c)
		}
	}
	return append(out, '"')
}

// lineOfNode is the line at which a field stands, or the nearest thing around it that is there.
func lineOfNode(root *yaml.Node, name string) int {
	line, n, path := root.Line, root, ""
descend:
	for path != name {
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		leadsOn := func(to string) bool {
			return name == to || strings.HasPrefix(name, to) && (name[len(to)] == '.' || name[len(to)] == '[')
		}
		for i, c := range n.Content {
			switch {
			case n.Kind == yaml.SequenceNode:
				if to := fmt.Sprintf("%s[%d]", path, i); leadsOn(to) {
					line, n, path = c.Line, c, to
					continue descend
				}
			case i%2 == 0 && i+1 < len(n.Content):
				if to := joinField(path, pathName(c.Value)); leadsOn(to) {
					line, n, path = c.Line, n.Content[i+1], to
					continue descend
				}
			}
		}
		break
	}
	return line
}
