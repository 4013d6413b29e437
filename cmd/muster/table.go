package main

import (
	"strings"
)

// A table is aligned by what is seen, not by bytes: wide characters take two columns, colours none.
type table struct {
	heads []string
	rows  [][]cell
	most  int // columns by which the first column is aligned at most, or 0; what is longer pushes the rest of its row
}

type cell struct {
	text  string
	color string // an SGR code, or ""
}

func newTable(heads ...string) *table { return &table{heads: heads} }

// add appends a row. Its texts may come from anywhere: they are cleaned here.
func (t *table) add(cells ...any) {
	row := make([]cell, len(cells))
	for i, v := range cells {
		switch v := v.(type) {
		case cell:
			row[i] = cell{clean(v.text), v.color}
		case string:
			row[i] = cell{text: clean(v)}
		}
		if row[i].text == "" {
			row[i].text = "-"
		}
	}
	t.rows = append(t.rows, row)
}

func (t *table) write(b *strings.Builder, colors bool) {
	widths := make([]int, len(t.heads))
	for i, h := range t.heads {
		widths[i] = columnsOf(h)
	}
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], columnsOf(c.text))
		}
	}
	if t.most > 0 && len(widths) > 0 {
		widths[0] = min(widths[0], t.most)
	}
	line := func(row []cell) {
		for i, c := range row {
			pad := max(0, widths[i]-columnsOf(c.text))
			if colors && c.color != "" {
				b.WriteString("\x1b[" + c.color + "m" + c.text + "\x1b[0m")
			} else {
				b.WriteString(c.text)
			}
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", pad+2))
			}
		}
		b.WriteByte('\n')
	}
	heads := make([]cell, len(t.heads))
	for i, h := range t.heads {
		heads[i] = cell{h, "1"}
	}
	line(heads)
	for _, row := range t.rows {
		line(row)
	}
}

// A sheet is one thing in detail: a label and a value on each line. Values that are not there are left out.
type sheet struct{ rows [][2]cell }

func (s *sheet) add(label string, value any) {
	c, ok := value.(cell)
	if !ok {
		text, _ := value.(string)
		c = cell{text: text}
	}
	if c.text = clean(c.text); c.text != "" {
		s.rows = append(s.rows, [2]cell{{text: label + ":"}, c})
	}
}

func (s *sheet) write(b *strings.Builder, colors bool) {
	widest := 0
	for _, r := range s.rows {
		widest = max(widest, columnsOf(r[0].text))
	}
	for _, r := range s.rows {
		b.WriteString(r[0].text + strings.Repeat(" ", widest-columnsOf(r[0].text)+2))
		if colors && r[1].color != "" {
			b.WriteString("\x1b[" + r[1].color + "m" + r[1].text + "\x1b[0m\n")
		} else {
			b.WriteString(r[1].text + "\n")
		}
	}
}
