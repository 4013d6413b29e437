package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"time"
)

// progress shows on a terminal how far long work has come. Elsewhere it is silent: what was done is in the answer.
type progress struct {
	c       *cli
	what    string
	at, all int
	shown   bool
}

// fewSteps are over before anybody could read of them.
const fewSteps = 20

func (c *cli) progress(what string, all int) *progress { return &progress{c: c, what: what, all: all} }

func (p *progress) step() {
	p.at++
	if p.all < fewSteps || !isTerminal(p.c.stderr) {
		return
	}
	p.shown = true
	fmt.Fprintf(p.c.stderr, "\r%s: %d of %d\x1b[K", p.what, p.at, p.all)
}

// done clears the line.
func (p *progress) done() {
	if p.shown {
		fmt.Fprint(p.c.stderr, "\r\x1b[K")
		p.shown = false
	}
}

// moved counts bytes as they go by, on a terminal four times a second.
type moved struct {
	c       *cli
	what    string
	at, all int64 // all: 0 if it is not known
	next    time.Time
}

func (c *cli) moved(what string, all int64) *moved { return &moved{c: c, what: what, all: all} }

func (m *moved) add(n int) {
	m.at += int64(n)
	if !isTerminal(m.c.stderr) || time.Now().Before(m.next) {
		return
	}
	m.next = time.Now().Add(250 * time.Millisecond)
	of := ""
	if m.all > 0 {
		of = " of " + bytesWords(m.all)
	}
	fmt.Fprintf(m.c.stderr, "\r%s: %s%s\x1b[K", m.what, bytesWords(m.at), of)
}

// Write makes it the second half of an io.MultiWriter.
func (m *moved) Write(b []byte) (int, error) { m.add(len(b)); return len(b), nil }

// done clears the line.
func (m *moved) done() {
	if !m.next.IsZero() {
		fmt.Fprint(m.c.stderr, "\r\x1b[K")
	}
}

// countedFile is a file whose bytes are counted as they are read.
type countedFile struct {
	*os.File
	moved *moved
}

func (f countedFile) Read(b []byte) (int, error) {
	n, err := f.File.Read(b)
	f.moved.add(n)
	return n, err
}

// Seek begins the count anew: a file that is read again is sent again.
func (f countedFile) Seek(offset int64, whence int) (int64, error) {
	f.moved.at = 0
	return f.File.Seek(offset, whence)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
