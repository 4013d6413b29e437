package main

import (
	"fmt"
	"maps"
	"slices"
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

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
