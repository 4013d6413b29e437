package job

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func edges(names ...string) []Edge {
	var list []Edge
	for _, n := range names {
		list = append(list, Edge{Job: n, On: OnSuccess})
	}
	return list
}

func TestFindCycle(t *testing.T) {
	t.Parallel()
	graph := map[string][]string{"b": {"c", "x"}, "c": {"d", "a"}, "d": {"a"}, "x": {"y"}, "l": {"a", "b"}}
	for _, c := range []struct {
		name, of string
		edges    []string
		want     string
	}{
		{"none", "a", nil, ""},
		{"itself", "a", []string{"a"}, "a -> a"},
		{"an end", "a", []string{"x", "y"}, ""},
		{"the shortest", "a", []string{"b"}, "a -> b -> c -> a"},
		{"behind others", "a", []string{"x", "d", "b"}, "a -> d -> a"},
		{"one that nothing depends on", "l", []string{"a", "b"}, ""},
		{"what is stored of the job itself does not count", "c", []string{"y"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			asked := map[string]int{}
			got := strings.Join(FindCycle(c.of, edges(c.edges...), func(n string) []string {
				if asked[n]++; asked[n] > 1 || n == c.of {
					t.Errorf("%s was asked for %d times", n, asked[n])
				}
				return graph[n]
			}), " -> ")
			if got != c.want {
				t.Errorf("the cycle is %q, want %q", got, c.want)
			}
		})
	}
}

// TestFindCycleFindsWhatIsThere compares it with a walk that knows no better than to try every path.
func TestFindCycleFindsWhatIsThere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 7).Draw(t, "jobs")
		draw := func(what string) (ups []string) {
			for i := range n {
				if rapid.IntRange(0, 3).Draw(t, what) == 0 {
					ups = append(ups, fmt.Sprint(i))
				}
			}
			return ups
		}
		graph := map[string][]string{}
		for i := range n {
			graph[fmt.Sprint(i)] = draw("edges")
		}
		graph["0"] = draw("new edges")
		var reaches func(from string, depth int) bool
		reaches = func(from string, depth int) bool {
			return slices.ContainsFunc(graph[from], func(up string) bool { return up == "0" || depth > 0 && reaches(up, depth-1) })
		}
		got := FindCycle("0", edges(graph["0"]...), func(j string) []string { return graph[j] })
		if (got != nil) != reaches("0", n) {
			t.Fatalf("of %v it finds %v", graph, got)
		}
		for i := range got {
			if i > 0 && !slices.Contains(graph[got[i-1]], got[i]) || (i == 0 || i == len(got)-1) != (got[i] == "0") {
				t.Fatalf("%v is no cycle of %v", got, graph)
			}
		}
	})
}

func TestEdgeErrors(t *testing.T) {
	t.Parallel()
	cycle := []string{"j0"}
	for i := range 40 {
		cycle = append(cycle, fmt.Sprint("j", i+1))
	}
	for _, c := range []struct {
		err                           *Error
		code                          Code
		reason, field, message, never string
	}{
		{UnknownUpstream(2, Edge{Job: "b"}, "ns"), Invalid, "invalid_field", "depends_on[2].job", `no job "b" in namespace "ns"`, ""},
		{Cyclic([]string{"a", "b", "a"}), Conflict, "cycle", "depends_on", "a -> b -> a; remove", ""},
		{Cyclic(cycle), Conflict, "cycle", "depends_on", "j0 -> j1 -> j2 -> j3 -> j4 -> j5 -> j6 -> j7 -> j8 -> j9 -> (29 more) -> j39 -> j40; ", ""},
		{HasDependents("a", []string{"b", "c"}, 2), Conflict, "has_dependents", "", "job a is upstream of b, c; ", "more"},
		{HasDependents("a", []string{"b", "c", "d", "e", "f", "g"}, 8), Conflict, "has_dependents", "", "of b, c, d, e, f and 3 more; ", "g,"},
	} {
		if c.err.Code != c.code || c.err.Reason != c.reason || c.err.Field != c.field || !strings.Contains(c.err.Message, c.message) ||
			c.never != "" && strings.Contains(c.err.Message, c.never) {
			t.Errorf("got %+v", c.err)
		}
	}
	if len(cycle) != 41 || cycle[12] != "j12" {
		t.Error("the caller's cycle was changed")
	}
}
