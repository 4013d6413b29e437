package dag

import (
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// The limits of an expression. What exceeds one is an error of that expression alone.
const (
	// MaxCost bounds the work of one evaluation, in CEL's units: about one for a step, and one for ten bytes of text read.
	MaxCost = 200_000
	// MaxTextBytes bounds a text that a function makes.
	MaxTextBytes = 1 << 20
	// MaxListBytes bounds the items of a for_each together, as JSON.
	MaxListBytes = 1 << 20
	// MaxResultsBytes bounds the results of a for_each task's items together, where an expression asks for them.
	MaxResultsBytes = 4 << 20
	// MaxExpressions bounds the different expressions of a document, templates included.
	MaxExpressions = 4_000

	maxValues  = 1 << 20 // values within one value, shared ones counted as often as they occur
	maxDepth   = 80      // of values; a little more than JSON may have
	maxRegexp  = 1_000   // instructions of a regular expression
	maxNodes   = 10_000  // of one expression, macros expanded
	maxNesting = 64      // of one expression

	maxLiterals = 16 // lists and maps within each other, as written
	maxLoops    = 16 // of one expression
)

// scope is what an expression can name.
type scope uint8

const (
	runScope  scope = iota // run
	taskScope              // and tasks
	itemScope              // and item and index
	scopes
)

// known is the scope for an error.
func (s scope) known() string {
	return [scopes]string{"run", "run and tasks", "run, tasks, item and index"}[s]
}

// envs are what expressions are compiled in: the language, without what depends on the machine (time zones are files) or
// has no bound.
var envs = sync.OnceValues(func() ([scopes]*cel.Env, error) {
	var all [scopes]*cel.Env
	zones := &env.LibrarySubset{ExcludeFunctions: []*env.Function{
		withZone(overloads.TimeGetFullYear, overloads.TimestampToYearWithTz),
		withZone(overloads.TimeGetMonth, overloads.TimestampToMonthWithTz),
		withZone(overloads.TimeGetDayOfYear, overloads.TimestampToDayOfYearWithTz),
		withZone(overloads.TimeGetDayOfMonth, overloads.TimestampToDayOfMonthZeroBasedWithTz),
		withZone(overloads.TimeGetDate, overloads.TimestampToDayOfMonthOneBasedWithTz),
		withZone(overloads.TimeGetDayOfWeek, overloads.TimestampToDayOfWeekWithTz),
		withZone(overloads.TimeGetHours, overloads.TimestampToHoursWithTz),
		withZone(overloads.TimeGetMinutes, overloads.TimestampToMinutesWithTz),
		withZone(overloads.TimeGetSeconds, overloads.TimestampToSecondsWithTz),
		withZone(overloads.TimeGetMilliseconds, overloads.TimestampToMillisecondsWithTz),
	}}
	registry, err := types.NewRegistry()
	if err != nil {
		return all, err
	}
	options := append(textFunctions(),
		cel.StdLib(cel.StdLibSubset(zones)),
		cel.CustomTypeProvider(provider{registry}),
		cel.CrossTypeNumericComparisons(true),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(1<<20), // bytes are counted before
		cel.ParserRecursionLimit(maxNesting),
		cel.ExpressionNodeLimit(maxNodes),
		cel.RegexProgramSizeLimit(maxRegexp),
		cel.Variable("run", cel.ObjectType(runType)),
	)
	if all[runScope], err = cel.NewCustomEnv(options...); err != nil {
		return all, err
	}
	tasks := cel.Variable("tasks", cel.MapType(cel.StringType, cel.ObjectType(outcomeType)))
	if all[taskScope], err = all[runScope].Extend(tasks); err != nil {
		return all, err
	}
	all[itemScope], err = all[taskScope].Extend(cel.Variable("item", cel.DynType), cel.Variable("index", cel.IntType))
	return all, err
})

func withZone(function, overload string) *env.Function {
	return &env.Function{Name: function, Overloads: []*env.Overload{{ID: overload}}}
}

// programOptions bound an evaluation. Nothing here depends on the time it takes: the same evaluation ends the same.
func programOptions() []cel.ProgramOption {
	return []cel.ProgramOption{
		cel.EvalOptions(cel.OptOptimize),
		cel.CostTracking(costs{}),
		cel.CostLimit(MaxCost),
		cel.MemoryLimit(maxValues),
		cel.MemoryTracking(types.MemoryTrackerSizeCalculator(sizer)),
	}
}

// textFunctions are those of CEL's strings extension that every user looks for. The extension itself has no bound on what
// replace and join make.
func textFunctions() []cel.EnvOption {
	str, num, list := cel.StringType, cel.IntType, cel.ListType(cel.StringType)
	member := func(name, id string, args []*cel.Type, result *cel.Type, call func(args ...ref.Val) ref.Val) cel.EnvOption {
		return cel.Function(name, cel.MemberOverload(id, args, result, cel.FunctionBinding(call)))
	}
	text := func(v ref.Val) string { return string(v.(types.String)) }
	return []cel.EnvOption{
		member("lowerAscii", "string_lower_ascii", []*cel.Type{str}, str, func(a ...ref.Val) ref.Val {
			return types.String(mapASCII(text(a[0]), 'A', 'Z'))
		}),
		member("upperAscii", "string_upper_ascii", []*cel.Type{str}, str, func(a ...ref.Val) ref.Val {
			return types.String(mapASCII(text(a[0]), 'a', 'z'))
		}),
		member("trim", "string_trim", []*cel.Type{str}, str, func(a ...ref.Val) ref.Val {
			return types.String(strings.TrimSpace(text(a[0])))
		}),
		member("split", "string_split_string", []*cel.Type{str, str}, list, func(a ...ref.Val) ref.Val {
			return types.DefaultTypeAdapter.NativeToValue(strings.Split(text(a[0]), text(a[1])))
		}),
		member("replace", "string_replace_string_string", []*cel.Type{str, str, str}, str, func(a ...ref.Val) ref.Val {
			s, from, to := text(a[0]), text(a[1]), text(a[2])
			if len(s)+strings.Count(s, from)*max(0, len(to)-len(from)) > MaxTextBytes {
				return tooLong()
			}
			return types.String(strings.ReplaceAll(s, from, to))
		}),
		member("indexOf", "string_index_of_string", []*cel.Type{str, str}, num, func(a ...ref.Val) ref.Val {
			s := text(a[0])
			at := strings.Index(s, text(a[1]))
			if at > 0 {
				at = len([]rune(s[:at]))
			}
			return types.Int(at)
		}),
		cel.Function("substring",
			cel.MemberOverload("string_substring_int", []*cel.Type{str, num}, str, cel.FunctionBinding(substring)),
			cel.MemberOverload("string_substring_int_int", []*cel.Type{str, num, num}, str, cel.FunctionBinding(substring))),
		cel.Function("join",
			cel.MemberOverload("list_join", []*cel.Type{list}, str, cel.FunctionBinding(join)),
			cel.MemberOverload("list_join_string", []*cel.Type{list, str}, str, cel.FunctionBinding(join))),
	}
}

func tooLong() ref.Val { return types.NewErr("the text is longer than %d bytes", MaxTextBytes) }

func mapASCII(s string, from, to byte) string {
	return strings.Map(func(r rune) rune {
		if r >= rune(from) && r <= rune(to) {
			return r ^ 0x20
		}
		return r
	}, s)
}

// substring is (text, start) or (text, start, end), in characters.
func substring(args ...ref.Val) ref.Val {
	runes := []rune(string(args[0].(types.String)))
	start, end := int64(args[1].(types.Int)), int64(len(runes))
	if len(args) == 3 {
		end = int64(args[2].(types.Int))
	}
	if start < 0 || end < start || end > int64(len(runes)) {
		return types.NewErr("there is no part from %d to %d of a text of %d characters", start, end, len(runes))
	}
	return types.String(runes[start:end])
}

// join is (list) or (list, separator).
func join(args ...ref.Val) ref.Val {
	var b strings.Builder
	separator := ""
	if len(args) == 2 {
		separator = string(args[1].(types.String))
	}
	it := args[0].(traits.Lister).Iterator()
	for first := true; it.HasNext() == types.True; first = false {
		v := it.Next()
		s, ok := v.(types.String)
		if !ok {
			return types.NewErr("join puts texts together, and the list has a %s", v.Type().TypeName())
		}
		if !first {
			b.WriteString(separator)
		}
		if b.Len()+len(s) > MaxTextBytes {
			return tooLong()
		}
		b.WriteString(string(s))
	}
	return types.String(b.String())
}

// sizer counts the values within a value. What is beyond its bounds counts as more than any limit.
var sizer = types.NewSizeCalculator(types.SizeCalculatorMaxDepth(maxDepth), types.SizeCalculatorMaxTraversal(maxValues))

// costs is what the functions above cost: a unit for ten bytes read or made, and one for each element. And it is what
// comparisons cost, for which CEL looks at the first level of lists and maps only: as much as there is to compare.
type costs struct{}

func (costs) CallCost(function, overload string, args []ref.Val, result ref.Val) *uint64 {
	cost := uint64(1)
	switch function {
	case operators.Equals, operators.NotEquals:
		cost += uint64(min(sizer.AggregateSize(args[0]), sizer.AggregateSize(args[1])))
	case operators.In, operators.OldIn:
		if list, ok := args[1].(traits.Lister); ok {
			cost += uint64(sizer.AggregateSize(list))
		}
	case "lowerAscii", "upperAscii", "trim", "split", "replace", "indexOf", "substring", "join":
		cost += weigh(result)
		for _, a := range args {
			cost += weigh(a)
		}
	default:
		return nil
	}
	return &cost
}

func weigh(v ref.Val) uint64 {
	switch v := v.(type) {
	case types.String:
		return uint64(len(v)+9) / 10
	case traits.Lister:
		if n, ok := v.Size().(types.Int); ok {
			return uint64(n)
		}
	}
	return 0
}
