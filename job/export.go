package job

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// YAML writes the document as a person would: fields in the order of Document, defaults left out, short forms used.
// ParseDocument reads back an equal document (ParseSpec, for one without a name).
func (d *Document) YAML() ([]byte, error) {
	c, err := d.clone()
	if err != nil {
		return nil, fmt.Errorf("write the document as JSON: %w", err)
	}
	c.Normalize()
	c.dropDefaults()
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("write the document as JSON: %w", err)
	}
	w := yamlWriter{json.NewDecoder(bytes.NewReader(raw))}
	w.UseNumber()
	node, err := w.node(shapeOf(reflect.TypeFor[Document]()))
	if err != nil {
		return nil, fmt.Errorf("write the document as YAML: %w", err)
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(node); err != nil {
		return nil, fmt.Errorf("write the document as YAML: %w", err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("write the document as YAML: %w", err)
	}
	return out.Bytes(), nil
}

// dropDefaults undoes Normalize: what it would fill in again becomes unset.
func (d *Document) dropDefaults() {
	drop(&d.Namespace, DefaultNamespace)
	if s := d.Schedule; s != nil {
		drop(&s.TimeZone, DefaultTimeZone)
		drop(&s.CatchUp, CatchUp{Policy: CatchUpLatest})
		drop(&d.Overlap, OverlapSkipTick)
	}
	for i := range d.DependsOn {
		drop(&d.DependsOn[i].On, OnSuccess)
	}
	if d.Priority != nil && *d.Priority == DefaultPriority {
		d.Priority = nil
	}
	inherited := d.Retry
	d.Retry.drop(Retry{MaxAttempts: 1, Backoff: ExponentialBackoff})
	drop(&d.Slots, 1)
	drop(&d.OnWorkerLost, RequeueOnLoss)
	drop(&d.OnLeaseLost, KillOnLeaseLost)
	dropExecutorDefaults(d.Exec, d.HTTP)
	for i := range d.Tasks {
		t := &d.Tasks[i]
		drop(&t.RunIf, AllSucceeded)
		if t.Retry != nil {
			t.Retry.drop(inherited)
		}
		dropExecutorDefaults(t.Exec, t.HTTP)
	}
}

func drop[T comparable](v *T, def T) {
	if *v == def {
		var zero T
		*v = zero
	}
}

// drop unsets what fill(from) would set again.
func (p *Retry) drop(from Retry) {
	full := *p
	for _, unset := range []func(*Retry){
		func(r *Retry) { r.MaxAttempts = 0 },
		func(r *Retry) { r.Backoff = "" },
		func(r *Retry) { r.Max = 0 },
		func(r *Retry) { r.Initial = 0 },
	} {
		try := *p
		unset(&try)
		again := try
		if again.fill(from); again == full {
			*p = try
		}
	}
}

func dropExecutorDefaults(e *Exec, h *HTTP) {
	if e != nil && len(e.SuccessExitCodes) == 1 && e.SuccessExitCodes[0] == 0 {
		e.SuccessExitCodes = nil
	}
	if h != nil {
		drop(&h.Method, "POST")
	}
}

// yamlWriter turns JSON, which keeps the order of its fields, into a YAML tree.
type yamlWriter struct{ *json.Decoder }

func (w yamlWriter) node(sh *shape) (*yaml.Node, error) {
	t, err := w.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '{' {
			return w.object(sh)
		}
		return w.list(sh)
	case string:
		if sh.typ == reflect.TypeFor[Duration]() {
			t = shortSpan(t)
		}
		n := textNode(t)
		if ambiguous(t) {
			n.Style = yaml.DoubleQuotedStyle
		}
		return n, nil
	case nil:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: "null"}, nil
	default: // a number keeps its text
		return &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(t)}, nil
	}
}

func (w yamlWriter) object(sh *shape) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for w.More() {
		t, err := w.Token()
		if err != nil {
			return nil, err
		}
		name := fmt.Sprint(t)
		elem := &freeShape
		if i, ok := sh.byName[name]; ok {
			elem = sh.fields[i].shape
		} else if sh.elem != nil {
			elem = sh.elem
		}
		v, err := w.node(elem)
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, textNode(name), v)
	}
	if _, err := w.Token(); err != nil {
		return nil, err
	}
	switch {
	case len(n.Content) == 0:
		n.Style = yaml.FlowStyle
	case sh.short && len(n.Content) == 2 && n.Content[0].Value == sh.fields[0].name:
		return n.Content[1], nil // catch_up: latest
	}
	return n, nil
}

// list writes what fits on a line on one.
func (w yamlWriter) list(sh *shape) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.SequenceNode}
	elem := &freeShape
	if sh.elem != nil {
		elem = sh.elem
	}
	width := 0
	for w.More() {
		v, err := w.node(elem)
		if err != nil {
			return nil, err
		}
		if width += len(v.Value) + 2; v.Kind != yaml.ScalarNode || v.Style == yaml.LiteralStyle {
			width += 1000
		}
		n.Content = append(n.Content, v)
	}
	if _, err := w.Token(); err != nil {
		return nil, err
	}
	if width < 80 {
		n.Style = yaml.FlowStyle
	}
	return n, nil
}

// textNode writes text plainly where YAML reads it back as it was, and in double quotes otherwise.
func textNode(text string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
	odd := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && (!unicode.IsPrint(r) || r > 0xffff) }) >= 0
	_, number := wholeNumber(text)
	switch {
	case odd, number, text == "<<", text == "=":
		n.Style = yaml.DoubleQuotedStyle
	case strings.Contains(text, "\n"):
		n.Style = yaml.LiteralStyle
		// The literal style has traps at both ends of a text and of its lines.
		if strings.TrimSpace(text) != strings.TrimSuffix(text, "\n") || strings.Contains(text, " \n") {
			n.Style = yaml.DoubleQuotedStyle
		}
	}
	return n
}

// ambiguous tells whether other readers of YAML take the text for a truth value or a number in base 60; ours do not.
func ambiguous(text string) bool {
	switch strings.ToLower(text) {
	case "y", "n", "yes", "no", "on", "off":
		return true
	}
	return strings.Contains(text, ":") && strings.Trim(text, "+-0123456789:._") == ""
}

// shortSpan leaves out the zeros that time.Duration writes: 10m0s is 10m.
func shortSpan(s string) string {
	if t, ok := strings.CutSuffix(s, "m0s"); ok {
		s = t + "m"
	}
	if t, ok := strings.CutSuffix(s, "h0m"); ok {
		s = t + "h"
	}
	return s
}
