// Package migrations is the SQL that builds Muster's schema in Postgres, embedded. Files are numbered and go forward only:
// a change that old nodes cannot live with is made in two steps, one release apart (expand, then contract), since nodes of
// both releases run side by side while a cluster is upgraded. The second step also replaces muster.oldest_schema with the
// version of the first, so that a node which is older still says that it is too old instead of failing somewhere.
//
// To add one: the next number, `-- +goose Up` on its first line, one idea per file; then `go test ./storage/postgres`,
// which applies all of them to an empty database and compares the schema that comes out with its golden file.
package migrations

import "embed"

// Files are the migrations, in the order of their names.
//
//go:embed *.sql
var Files embed.FS
