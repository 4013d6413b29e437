package dag

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"

	"github.com/musterhq/muster/job"
)

// expr is a compiled expression. It is immutable and shared.
type expr struct {
	program cel.Program
	out     *cel.Type
	refs    []reference // the tasks it names, by name
	run     bool        // it says run
	payload bool        // it says run.payload
}

// reference is a task that an expression names, and whether it looks at more than how the task ended: at its result or
// error, which are kept for that.
type reference struct {
	task string
	data bool
}

// parseExpr compiles an expression. The error is one clause for a user: what is wrong, and what to do.
func parseExpr(src string, in scope) (*expr, error) {
	all, err := envs()
	if err != nil {
		return nil, fmt.Errorf("the language of expressions is not there: %w", err)
	}
	env := all[in]
	if len(src) > job.MaxExpressionBytes {
		return nil, fmt.Errorf("the expression has %d bytes; the limit is %d, so make it shorter or let a task work it out", len(src), job.MaxExpressionBytes)
	}
	parsed, issues := env.Parse(src)
	if issues.Err() != nil {
		return nil, complaint(src, in, issues)
	}
	e := new(expr)
	l := look{expr: e}
	if err := l.at(parsed.NativeRep().Expr()); err != nil {
		return nil, err
	}
	slices.SortFunc(e.refs, func(a, b reference) int { return strings.Compare(a.task, b.task) })
	checked, issues := env.Check(parsed)
	if issues.Err() != nil {
		return nil, complaint(src, in, issues)
	}
	e.out = checked.OutputType()
	if estimate, err := env.EstimateCost(checked, sizes{}); err == nil && estimate.Min > MaxCost {
		return nil, errors.New("the expression costs more than is allowed, whatever it is given; make it simpler")
	}
	if e.program, err = env.Program(checked, programOptions()...); err != nil {
		return nil, fmt.Errorf("the expression is wrong: %s; correct it", oneLine(err.Error()))
	}
	return e, nil
}

// sizes leaves it to CEL to guess how large values are.
type sizes struct{}

func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}
func (sizes) EstimateSize(cost.AstNode) *cost.SizeEstimate { return nil }

// complaint makes one clause of the first thing that CEL has to say.
func complaint(src string, in scope, issues *cel.Issues) error {
	first := issues.Errors()[0]
	text := oneLine(first.Message)
	where := ""
	if line, column := first.Location.Line(), first.Location.Column()+1; line > 1 {
		where = fmt.Sprintf(" at line %d, column %d", line, column)
	} else if line == 1 && column > 0 {
		where = fmt.Sprintf(" at column %d", column)
	}
	if name, ok := strings.CutPrefix(text, "undeclared reference to '"); ok {
		name, _, _ = strings.Cut(name, "'")
		return fmt.Errorf("there is no %q%s; known here are %s, and the functions of CEL", name, where, in.known())
	}
	if name, ok := strings.CutPrefix(text, "undefined field '"); ok {
		name, _, _ = strings.Cut(name, "'")
		return fmt.Errorf("there is no field %q%s; a task has %s, and run has %s", name, where,
			strings.Join(outcomeFields.names, ", "), strings.Join(runFields.names, ", "))
	}
	text = strings.TrimPrefix(text, "Syntax error: ")
	if strings.Contains(text, "<EOF>") {
		text = "it ends in the middle"
	}
	return fmt.Errorf("the expression is wrong%s: %s; correct it", where, text)
}

func oneLine(s string) string {
	return job.CleanText(strings.Join(strings.Fields(s), " "), 300)
}

// look finds what an expression names. Which tasks an expression may look at is decided before it runs, so tasks stands
// only before a constant name. What would take long to check is refused: lists within lists, and loops after loops.
type look struct {
	*expr
	literals, loops int
}

func (e *look) at(x ast.Expr) error {
	if task, ok := taskOf(x); ok {
		e.refer(task, true) // the task as a whole
		return nil
	}
	switch x.Kind() {
	case ast.IdentKind:
		switch x.AsIdent() {
		case "tasks":
			return errors.New(`a task is named by a constant; write tasks.NAME or tasks["NAME"]`)
		case "run":
			e.run, e.payload = true, true // the run as a whole
		}
	case ast.SelectKind:
		of, field := x.AsSelect().Operand(), x.AsSelect().FieldName()
		if task, ok := taskOf(of); ok {
			e.refer(task, field == "result" || field == "error")
			return nil
		}
		if of.Kind() == ast.IdentKind && of.AsIdent() == "run" {
			e.run, e.payload = true, e.payload || field == "payload"
			return nil
		}
		return e.at(of)
	case ast.CallKind:
		call := x.AsCall()
		if call.IsMemberFunction() {
			if err := e.at(call.Target()); err != nil {
				return err
			}
		}
		return e.all(call.Args())
	case ast.ListKind, ast.MapKind:
		if e.literals++; e.literals > maxLiterals {
			return fmt.Errorf("lists and maps are nested more than %d deep; flatten them", maxLiterals)
		}
		defer func() { e.literals-- }()
		if x.Kind() == ast.ListKind {
			return e.all(x.AsList().Elements())
		}
		for _, entry := range x.AsMap().Entries() {
			if err := e.all([]ast.Expr{entry.AsMapEntry().Key(), entry.AsMapEntry().Value()}); err != nil {
				return err
			}
		}
	case ast.StructKind:
		return fmt.Errorf("%s{...} makes a message, which nothing here takes; write a map, {\"name\": value}", x.AsStruct().TypeName())
	case ast.ComprehensionKind:
		if e.loops++; e.loops > maxLoops {
			return fmt.Errorf("there are more than %d loops (map, filter, all, exists); let a task work it out", maxLoops)
		}
		c := x.AsComprehension()
		for _, name := range []string{c.IterVar(), c.IterVar2()} {
			if name == "tasks" || name == "run" {
				return fmt.Errorf("%s cannot be the name of an element; choose another", name)
			}
		}
		return e.all([]ast.Expr{c.IterRange(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()})
	}
	return nil
}

func (e *look) all(list []ast.Expr) error {
	for _, x := range list {
		if err := e.at(x); err != nil {
			return err
		}
	}
	return nil
}

// taskOf tells which task tasks.NAME or tasks["NAME"] is.
func taskOf(x ast.Expr) (string, bool) {
	switch x.Kind() {
	case ast.SelectKind:
		of := x.AsSelect().Operand()
		return x.AsSelect().FieldName(), of.Kind() == ast.IdentKind && of.AsIdent() == "tasks"
	case ast.CallKind:
		call := x.AsCall()
		if call.FunctionName() != operators.Index || len(call.Args()) != 2 {
			return "", false
		}
		of, by := call.Args()[0], call.Args()[1]
		if of.Kind() != ast.IdentKind || of.AsIdent() != "tasks" || by.Kind() != ast.LiteralKind {
			return "", false
		}
		name, ok := by.AsLiteral().(types.String)
		return string(name), ok
	}
	return "", false
}

func (e *expr) refer(task string, data bool) {
	for i := range e.refs {
		if e.refs[i].task == task {
			e.refs[i].data = e.refs[i].data || data
			return
		}
	}
	e.refs = append(e.refs, reference{task, data})
}

// scene is what an expression is evaluated over. It is used by one goroutine, for as long as nothing in it changes.
type scene struct {
	run   *runVal
	tasks func(name string) *outcomeVal // nil: there is none
	item  any                           // of an item's run
	index int
}

// eval evaluates an expression. The error is one clause for a user.
func (e *expr) eval(s *scene) (ref.Val, error) {
	vars := map[string]any{"run": s.run, "item": s.item, "index": int64(s.index)}
	if len(e.refs) > 0 {
		tasks := make(map[string]any, len(e.refs))
		for _, r := range e.refs {
			v := s.tasks(r.task)
			if v == nil {
				return nil, fmt.Errorf("the task %s has no run", r.task)
			}
			tasks[r.task] = v
		}
		vars["tasks"] = tasks
	}
	v, _, err := e.program.Eval(vars)
	if err == nil {
		return v, nil
	}
	var stopped interpreter.EvalCancelledError
	if errors.As(err, &stopped) || strings.Contains(err.Error(), "limit exceeded") {
		return nil, errors.New("the expression costs more than is allowed; make it simpler, or what it looks at smaller")
	}
	return nil, errors.New(oneLine(err.Error()))
}

// truth evaluates a condition.
func (e *expr) truth(s *scene) (bool, error) {
	v, err := e.eval(s)
	if err != nil {
		return false, err
	}
	b, ok := v.(types.Bool)
	if !ok {
		return false, fmt.Errorf("the condition is a %s; make it true or false, such as by a comparison", v.Type().TypeName())
	}
	return bool(b), nil
}
