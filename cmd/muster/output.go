package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/musterhq/muster/job"
)

const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatName  = "name"
)

var formats = []string{formatTable, formatJSON, formatYAML, formatName}

// answer is what a command has to say, in every form.
type answer struct {
	value any                              // for json and yaml: exact, as the API has it
	names func() []string                  // for name: one a line
	table func(b *strings.Builder, c bool) // for people; c: with colours
	note  string                           // for people, on stderr behind it
}

// list is the form that lists have in the API too.
type list[T any] struct {
	Items []T `json:"items"`
}

func listOf[T any](items []T) list[T] {
	if items == nil {
		items = []T{}
	}
	return list[T]{items}
}

// print writes an answer in the form that was asked for, in one go.
func (c *cli) print(a answer) error {
	var b strings.Builder
	switch c.format {
	case formatJSON:
		text, err := indentedJSON(a.value)
		if err != nil {
			return err
		}
		b.Write(text)
	case formatYAML:
		text, err := asYAML(a.value)
		if err != nil {
			return err
		}
		b.Write(text)
	case formatName:
		for _, n := range a.names() {
			b.WriteString(clean(n))
			b.WriteByte('\n')
		}
	default:
		a.table(&b, c.color)
	}
	if _, err := io.WriteString(c.stdout, b.String()); err != nil {
		return err
	}
	if c.human() && a.note != "" {
		c.say("%s", a.note)
	}
	return nil
}

// when is a note for a case.
func when(yes bool, format string, args ...any) string {
	if !yes {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

// changed prints what became of several things, each of which was changed by itself. One that was asked for alone answers as
// itself, so that a script need not unpack a list of one.
func changed[T any](ctx context.Context, c *cli, args []string, do func(arg string) (T, error), name, line func(T) string) error {
	var items []T
	failed := c.each(ctx, args, func(arg string) error {
		item, err := do(arg)
		if err == nil {
			items = append(items, item)
		}
		return err
	})
	if len(items) == 0 {
		return failed
	}
	var value any = listOf(items)
	if len(args) == 1 {
		value = items[0]
	}
	if err := c.print(answer{
		value: value,
		names: func() (names []string) {
			for _, item := range items {
				names = append(names, name(item))
			}
			return names
		},
		table: func(b *strings.Builder, _ bool) {
			for _, item := range items {
				b.WriteString(clean(line(item)) + "\n")
			}
		},
	}); err != nil {
		return err
	}
	return failed
}

// human tells whether the answer is for people: then progress and hints may stand beside it.
func (c *cli) human() bool { return c.format == formatTable }

func (c *cli) say(format string, args ...any) {
	fmt.Fprintf(c.stderr, "%s\n", clean(fmt.Sprintf(format, args...)))
}

func indentedJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // a command line with && should look like one
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("write the answer as JSON: %w", err)
	}
	return b.Bytes(), nil
}

// asYAML writes the same names and values as JSON, in the same order. JSON is YAML, so reading it as that keeps both;
// what is left to do is to choose YAML's style.
func asYAML(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write the answer as YAML: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	node, err := yamlNode(d)
	if err != nil {
		return nil, fmt.Errorf("write the answer as YAML: %w", err)
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(node); err != nil {
		return nil, fmt.Errorf("write the answer as YAML: %w", err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("write the answer as YAML: %w", err)
	}
	return b.Bytes(), nil
}

func yamlNode(d *json.Decoder) (*yaml.Node, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		if t == '{' {
			n.Kind = yaml.MappingNode
		}
		for d.More() { // in a mapping, keys come as values of their own
			child, err := yamlNode(d)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		if len(n.Content) == 0 {
			n.Style = yaml.FlowStyle
		}
		_, err := d.Token()
		return n, err
	case string:
		n := new(yaml.Node)
		return n, n.Encode(t) // in quotes where a reader of YAML 1.1 would see something else
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: t.String()}, nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(t)}, nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: "null"}, nil
}

// The colours of states: what is over well, what went wrong, what moves, what waits.
func stateCell(s job.State) cell {
	colors := map[job.State]string{job.Succeeded: "32", job.Failed: "31", job.Running: "36", job.Cancelled: "33", job.Skipped: "33", job.Held: "33"}
	return cell{s.String(), colors[s]}
}

func reasonWord(r job.Reason) string {
	if r == job.NoReason {
		return ""
	}
	return r.String()
}
