package dagtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/musterhq/muster/job"
)

// Expr is an expression as the document says it, and what it comes to, worked out here without CEL.
type Expr struct {
	Text string
	Eval func(v *view) (any, error)
}

// view is what an expression may see.
type view struct {
	task    func(name string) *Fate
	payload any
	item    any
	index   int
}

var errEval = errors.New("it cannot be evaluated")

func ref(name string) string {
	if strings.ContainsAny(name, "-.") {
		return fmt.Sprintf("tasks[%q]", name)
	}
	return "tasks." + name
}

func field(v any, name string) (any, error) {
	if m, ok := v.(map[string]any); ok {
		if x, ok := m[name]; ok {
			return x, nil
		}
	}
	return nil, errEval
}

func stateIs(name string, s job.State, not bool) Expr {
	op := "=="
	if not {
		op = "!="
	}
	return Expr{fmt.Sprintf("%s.state %s %q", ref(name), op, s), func(v *view) (any, error) {
		return (v.task(name).State == s) != not, nil
	}}
}

func reasonIs(name string, r job.Reason) Expr {
	return Expr{fmt.Sprintf("%s.reason == %q", ref(name), r), func(v *view) (any, error) { return v.task(name).Reason == r, nil }}
}

// resultOf is the whole result of a task, or one field of it.
func resultOf(name, of string) Expr {
	if of == "" {
		return Expr{ref(name) + ".result", func(v *view) (any, error) { return v.task(name).Result, nil }}
	}
	return Expr{ref(name) + ".result." + of, func(v *view) (any, error) { return field(v.task(name).Result, of) }}
}

func fromPayload(of string) Expr {
	return Expr{"run.payload." + of, func(v *view) (any, error) { return field(v.payload, of) }}
}

func more(e Expr, than int) Expr {
	return Expr{fmt.Sprintf("%s > %d", e.Text, than), func(v *view) (any, error) {
		x, err := e.Eval(v)
		if n, ok := x.(float64); err == nil && ok {
			return n > float64(than), nil
		}
		return nil, errEval
	}}
}

func sizeOf(e Expr, is int) Expr {
	return Expr{fmt.Sprintf("size(%s) == %d", e.Text, is), func(v *view) (any, error) {
		x, err := e.Eval(v)
		if l, ok := x.([]any); err == nil && ok {
			return len(l) == is, nil
		}
		return nil, errEval
	}}
}

// both and either: an error of one side does not count where the other decides alone.
func both(a, b Expr) Expr {
	return Expr{fmt.Sprintf("(%s) && (%s)", a.Text, b.Text), func(v *view) (any, error) { return logic(a, b, v, false) }}
}

func either(a, b Expr) Expr {
	return Expr{fmt.Sprintf("(%s) || (%s)", a.Text, b.Text), func(v *view) (any, error) { return logic(a, b, v, true) }}
}

func logic(a, b Expr, v *view, decides bool) (any, error) {
	failed := false
	for _, e := range []Expr{a, b} {
		x, err := e.Eval(v)
		switch is, ok := x.(bool); {
		case err != nil || !ok:
			failed = true
		case is == decides:
			return decides, nil
		}
	}
	if failed {
		return nil, errEval
	}
	return !decides, nil
}

func literal(text string) Expr {
	var x any
	if err := json.Unmarshal([]byte(text), &x); err != nil {
		panic(err)
	}
	return Expr{text, func(*view) (any, error) { return x, nil }}
}

var (
	itemExpr  = Expr{"item", func(v *view) (any, error) { return v.item, nil }}
	indexExpr = Expr{"index", func(v *view) (any, error) { return float64(v.index), nil }}
)

// text is a value in the middle of a text.
func text(x any) string {
	switch x := x.(type) {
	case nil:
		return ""
	case string:
		return x
	case bool:
		return strconv.FormatBool(x)
	}
	b, err := json.Marshal(x)
	if err != nil {
		panic(err)
	}
	return string(b)
}
