package postgres

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed *.sql
var sqlFiles embed.FS

// statements reads a .sql file: each statement follows a line `-- name: NAME`. In it {full} and {narrow} stand for the
// columns of a run that decodeRun reads, of a table or subquery called r, and {columns} for all that a new row has.
func statements(file string) map[string]string {
	text, err := sqlFiles.ReadFile(file)
	if err != nil {
		panic(err)
	}
	fill := strings.NewReplacer("{full}", selectList(full), "{narrow}", selectList(narrow), "{columns}", columnList)
	all := map[string]string{}
	for _, part := range strings.Split("\n"+string(text), "\n-- name: ")[1:] {
		name, body, _ := strings.Cut(part, "\n")
		if all[name] != "" {
			panic(fmt.Sprintf("%s has two statements called %s", file, name))
		}
		all[name] = fill.Replace(strings.TrimSpace(body))
	}
	return all
}
