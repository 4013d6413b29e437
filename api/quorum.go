package api

import (
	"fmt"
	"slices"
	"strings"
)

const (
	// clockTooFar is from where on a clock is worth setting, well before it makes a leader step down (L8).
	clockTooFar = 500 // ms
	// tooFarBehind is what no node that keeps up is behind.
	tooFarBehind = 10_000 // entries
)

// quorumOf counts what a cluster can lose, and says it.
func quorumOf(s *ClusterStatus) Quorum {
	var q Quorum
	var silent, slow, joining []string
	for i := range s.Nodes {
		n := &s.Nodes[i]
		switch {
		case n.Role == RoleNonvoter:
			joining = append(joining, n.Name)
		case n.Healthy:
			q.Voters++
			q.Answering++
		default:
			q.Voters++
			silent = append(silent, n.Name)
		}
		if n.Healthy && n.Role != RoleNonvoter && n.Behind > tooFarBehind {
			slow = append(slow, n.Name)
		}
	}
	majority := q.Voters/2 + 1
	q.Tolerates = max(0, q.Answering-majority)
	q.Healthy = s.Leader != "" && q.Answering >= majority
	advise := func(format string, args ...any) { q.Advice = append(q.Advice, fmt.Sprintf(format, args...)) }
	voters := plural(q.Voters, "voter")
	switch {
	case s.Leader == "" && q.Voters > 1:
		q.Summary = fmt.Sprintf("no node leads: nothing is decided until %d of %s answer each other", majority, voters)
		advise("start the nodes that do not run; if a majority is lost for good, see `muster cluster recover --help`")
	case s.Leader == "":
		q.Summary = "no node leads at the moment"
	case !q.Healthy:
		q.Summary = fmt.Sprintf("only %d of %s answer, %d are needed: nothing is decided", q.Answering, voters, majority)
	case q.Voters == 1:
		q.Summary = "healthy: the only voter answers; tolerates no failure"
	case q.Tolerates == 0 && len(silent) > 0:
		q.Summary = fmt.Sprintf("healthy: %d of %s answer; tolerates no further failure", q.Answering, voters)
	case q.Tolerates == 0:
		q.Summary = fmt.Sprintf("healthy: %d of %s answer; tolerates no failure", q.Answering, voters)
	default:
		q.Summary = fmt.Sprintf("healthy: %d of %s answer; tolerates %d%s failure%s", q.Answering, voters, q.Tolerates, more(silent), ending(q.Tolerates))
	}
	if len(silent) > 0 && s.Leader != "" {
		advise("start %s again; what is lost for good can be replaced by a node of the same name, or removed with `muster cluster remove`", listed(silent))
	}
	if q.Voters == 2 && q.Healthy && len(joining) == 0 {
		advise("add a third node: of two none may fail")
	}
	if len(joining) > 0 {
		advise("wait for %s to catch up: a node votes once it has", listed(joining))
	}
	if len(slow) > 0 {
		advise("look at the disk and the network of %s, which does not keep up", listed(slow))
	}
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.Healthy && (n.ClockOffsetMS > clockTooFar || n.ClockOffsetMS < -clockTooFar) {
			advise("set the clock of %s: it is %.1f s off", n.Name, float64(n.ClockOffsetMS)/1000)
		}
	}
	return q
}

func more(silent []string) string {
	if len(silent) > 0 {
		return " more"
	}
	return ""
}

func ending(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

func plural(n int, word string) string { return fmt.Sprintf("%d %s%s", n, word, ending(n)) }

// listed writes "a, b and c".
func listed(names []string) string {
	names = slices.Sorted(slices.Values(names))
	if last := len(names) - 1; last > 0 {
		return strings.Join(names[:last], ", ") + " and " + names[last]
	}
	return names[0]
}
