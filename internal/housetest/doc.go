// Package housetest holds the rules of this house that a test can check: who may import whom, that every package says
// what it is for, that every word users meet is explained, that the examples are valid. It has no code of its own.
package housetest
