package housetest

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// everyone lets a package import all of ours.
const everyone = "*"

// arrows is who may import whom. A rule is for a package and those below it that have none of their own; within one
// rule's family everybody may import everybody. A new arrow needs a reason, and a line here.
var arrows = map[string][]string{
	"job":                  {},
	"job/timetable":        {"job"},
	"job/dag":              {"job"},
	"fsm":                  {"job"},
	"cluster":              {"job", "fsm"},
	"storage":              {"job", "migrations"},
	"storage/replicated":   {"job", "storage", "fsm"},
	"migrations":           {},
	"scheduler":            {"job", "job/timetable", "job/dag", "internal/failpoint"},
	"worker":               {"job"},
	"events":               {"job"},
	"api":                  {"job", "job/timetable", "job/dag"},
	"client":               {"job"},
	"web":                  {},
	"internal/app":         {everyone},
	"internal/pki":         {"job"},
	"internal/access":      {"job", "api", "internal/pki"},
	"internal/sim":         {"job", "job/timetable", "fsm", "scheduler", "storage", "storage/replicated", "cluster", "internal/checker", "internal/dagtest"},
	"internal/checker":     {"job", "job/timetable"},
	"internal/dagtest":     {"job", "job/dag"}, // its tests alone know the package that they judge
	"internal/failpoint":   {},
	"internal/load":        {"job", "client", "worker"},
	"internal/clustertest": {everyone},
	"internal/servers":     {},
	"internal/housetest":   {},
	"internal/systemtest":  {everyone},
	"examples":             {"client", "worker"},
	"cmd/muster":           {"job", "job/timetable", "job/dag", "client", "internal"},
}

// testOnly packages may be imported by tests and by each other alone.
var testOnly = []string{"internal/access/accesstest", "internal/clustertest", "internal/clustertest/bubble", "internal/housetest", "internal/servers", "internal/servers/run", "storage/storagetest", "storage/queuetest"}

// drivers is which packages may know a library that talks to the outside or decides how we do: one driver, one package.
// Where there are two, the first uses it and the second shares its types or its protocol.
var drivers = map[string][]string{
	"github.com/hashicorp/raft":        {"cluster", "fsm", "internal/sim"},
	"github.com/hashicorp/raft-boltdb": {"cluster"},
	"go.etcd.io/bbolt":                 {"cluster"},
	"github.com/hashicorp/memberlist":  {"cluster"},
	"github.com/hashicorp/go-hclog":    {"cluster"},
	"github.com/google/btree":          {"fsm", "storage/memory"},
	"github.com/jackc/pgx":             {"storage/postgres"},
	"github.com/pressly/goose":         {"storage/postgres", "migrations"},
	"github.com/redis/go-redis":        {"storage/redis"},
	"github.com/twmb/franz-go":         {"events"},
	"github.com/robfig/cron":           {"job/timetable"},
	"cel.dev/cel-go":                   {"job/dag"},
	"github.com/danielgtaylor/huma":    {"api"},
	"github.com/spf13/cobra":           {"cmd/muster"},
	"github.com/knadh/koanf":           {"cmd/muster"},
	"google.golang.org/protobuf":       {"worker/workerpb", "cluster/clusterpb", "worker", "cluster"},
	"connectrpc.com/connect":           {"worker", "cluster", "internal/app"},
	"github.com/google/go-cmp":         {"storage/storagetest", "storage/queuetest"},
	"pgregory.net/rapid":               {"storage/storagetest", "storage/queuetest"},
	"go.uber.org/goleak":               {},
}

// ruleOf finds the rule for a package: its own, or that of the nearest folder above it.
func ruleOf(dir string) (rule string, ok bool) {
	for rule = dir; rule != ""; rule = above(rule) {
		if _, ok := arrows[rule]; ok {
			return rule, true
		}
	}
	return "", false
}

func above(dir string) string {
	i := strings.LastIndexByte(dir, '/')
	return dir[:max(i, 0)]
}

// within tells whether dir is folder or below it.
func within(dir, folder string) bool { return dir == folder || strings.HasPrefix(dir, folder+"/") }

// mayImport answers why from may not import to, both packages of ours, or "".
func mayImport(from, to string) string {
	rule, ok := ruleOf(from)
	if !ok {
		return from + " is not on the map: add it with what it may import"
	}
	if slices.Contains(testOnly, to) && !slices.Contains(testOnly, from) {
		return "only tests may import " + to
	}
	target, ok := ruleOf(to)
	if !ok {
		return to + " is not on the map: add it with what it may import"
	}
	if rule == target {
		return ""
	}
	for _, allowed := range arrows[rule] {
		// A rule of its own keeps a package out of what is allowed for the folder above it, but for internal/*.
		if allowed == everyone || allowed == target || allowed == "internal" && within(to, "internal") {
			return ""
		}
	}
	return rule + " may not import " + target
}

// mayUse answers why a package of ours may not import a library, or "".
func mayUse(from, library string) string {
	for driver, users := range drivers {
		if library != driver && !strings.HasPrefix(library, driver+"/") && !strings.HasPrefix(library, driver+".") {
			continue
		}
		if from == "internal/clustertest" { // builds nodes of parts
			return ""
		}
		for _, user := range users {
			if within(from, user) {
				return ""
			}
		}
		if len(users) == 0 {
			return "the library " + driver + " is not for code that ships"
		}
		return "the library " + driver + " is for " + strings.Join(users, " and ") + " only"
	}
	return ""
}

func TestTheMap(t *testing.T) {
	for _, p := range tree(t) {
		for _, path := range slices.Sorted(maps.Keys(p.imports)) {
			why := ""
			if to, ours := strings.CutPrefix(path, module+"/"); ours {
				why = mayImport(p.dir, to)
			} else if strings.Contains(path, ".") {
				why = mayUse(p.dir, path)
			}
			if why != "" {
				t.Errorf("%s imports %s: %s", p.imports[path], path, why)
			}
		}
	}
}

// The test above must be able to fail.
func TestTheMapRefuses(t *testing.T) {
	for _, c := range []struct {
		name, from, to string
		ok             bool
	}{
		{"job knows nobody", "job", "job/timetable", false},
		{"timetable knows job", "job/timetable", "job", true},
		{"the family is free", "scheduler/clock", "scheduler/overlap", true},
		{"siblings are strangers", "scheduler", "storage", false},
		{"from below, too", "worker/gateway", "storage/memory", false},
		{"stores do not know the state", "storage/postgres", "fsm", false},
		{"but for the one over it", "storage/replicated", "fsm", true},
		{"which shares the contract", "storage/replicated", "storage", true},
		{"the state does not know its store", "fsm", "storage", false},
		{"the app knows everyone", "internal/app", "worker/gateway", true},
		{"but no tests", "internal/app", "internal/clustertest", false},
		{"nobody knows the app", "api", "internal/app", false},
		{"but for the command", "cmd/muster", "internal/app", true},
		{"which does not reach around it", "cmd/muster", "cluster", false},
		{"a package that nobody put on the map", "util", "job", false},
		{"a package that nobody put on the map, imported", "internal/app", "util", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if why := mayImport(c.from, c.to); (why == "") != c.ok {
				t.Errorf("mayImport(%s, %s) = %q", c.from, c.to, why)
			}
		})
	}
	for _, c := range []struct {
		name, from, library string
		ok                  bool
	}{
		{"raft's types in the state", "fsm", "github.com/hashicorp/raft", true},
		{"no raft in the app", "internal/app", "github.com/hashicorp/raft", false},
		{"raft-boltdb is another library", "fsm", "github.com/hashicorp/raft-boltdb/v2", false},
		{"a later major version is the same library", "scheduler", "github.com/robfig/cron/v3", false},
		{"a library without a rule", "scheduler", "golang.org/x/sync/errgroup", true},
		{"a library for tests alone", "api", "go.uber.org/goleak", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if why := mayUse(c.from, c.library); (why == "") != c.ok {
				t.Errorf("mayUse(%s, %s) = %q", c.from, c.library, why)
			}
		})
	}
}
