package dag

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/musterhq/muster/job"
)

// How rows become values that expressions see, and how values become JSON.

const (
	outcomeType = "muster.Task"
	runType     = "muster.Run"
)

// object is a value of one of our types. Its fields are made when they are asked for, and once.
type object interface {
	kind() *fields
}

type fields struct {
	name  string
	celT  *cel.Type
	names []string // in the order in which they are listed
	types map[string]*types.FieldType
}

func newFields(name string) *fields {
	return &fields{name: name, celT: cel.ObjectType(name), types: map[string]*types.FieldType{}}
}

func addField[T object](f *fields, name string, t *cel.Type, get func(T) (any, error)) {
	f.names = append(f.names, name)
	f.types[name] = &types.FieldType{
		Type: t,
		IsSet: func(in any) bool { // has(tasks.a.result): there is one, and it is not null
			v, ok := in.(T)
			if !ok {
				return false
			}
			got, err := get(v)
			return err == nil && got != nil && got != any(types.NullValue)
		},
		GetFrom: func(from any) (any, error) {
			v, ok := from.(T)
			if !ok {
				return nil, fmt.Errorf("a value of type %T has no field %s", from, name)
			}
			return get(v)
		},
	}
}

var outcomeFields = func() *fields {
	f := newFields(outcomeType)
	addField(f, "state", cel.StringType, func(v *outcomeVal) (any, error) { return v.of.State.String(), nil })
	addField(f, "result", cel.DynType, func(v *outcomeVal) (any, error) { return v.result() })
	addField(f, "error", cel.StringType, func(v *outcomeVal) (any, error) { return v.of.Error, nil })
	addField(f, "reason", cel.StringType, func(v *outcomeVal) (any, error) { return v.of.Reason.String(), nil })
	return f
}()

var runFields = func() *fields {
	f := newFields(runType)
	addField(f, "id", cel.StringType, func(v *runVal) (any, error) { return v.root.ID.String(), nil })
	addField(f, "job", cel.StringType, func(v *runVal) (any, error) { return v.root.Job, nil })
	addField(f, "namespace", cel.StringType, func(v *runVal) (any, error) { return v.root.Namespace, nil })
	addField(f, "trigger", cel.StringType, func(v *runVal) (any, error) { return v.root.Trigger.String(), nil })
	addField(f, "scheduled_at", cel.StringType, func(v *runVal) (any, error) { return v.root.ScheduledAt.String(), nil })
	addField(f, "created_at", cel.StringType, func(v *runVal) (any, error) { return v.root.CreatedAt.String(), nil })
	addField(f, "payload", cel.DynType, func(v *runVal) (any, error) { return v.payload() })
	addField(f, "labels", cel.MapType(cel.StringType, cel.StringType), func(v *runVal) (any, error) {
		if v.root.Labels == nil {
			return map[string]string{}, nil
		}
		return v.root.Labels, nil
	})
	return f
}()

// outcomeVal is tasks.NAME.
type outcomeVal struct {
	of     *Outcome
	parsed any
	done   bool
}

func (v *outcomeVal) kind() *fields { return outcomeFields }

func (v *outcomeVal) result() (any, error) {
	if v.done {
		return v.parsed, nil
	}
	var err error
	if v.of.Items == nil {
		v.parsed, err = decode(v.of.Result)
	} else {
		list, size := make([]any, len(v.of.Items)), 0
		for i, item := range v.of.Items {
			if size += len(item); size > MaxResultsBytes {
				return nil, fmt.Errorf("the results of the items together have more than %d bytes; keep large data elsewhere and pass references", MaxResultsBytes)
			}
			if list[i], err = decode(item); err != nil {
				break
			}
		}
		v.parsed = list
	}
	// One value, so that what is known about its size is known wherever it occurs.
	v.parsed = types.DefaultTypeAdapter.NativeToValue(v.parsed)
	v.done = err == nil
	return v.parsed, err
}

// runVal is run.
type runVal struct {
	root   *job.Run
	raw    json.RawMessage // what its payload is; see Plan.payload
	err    error           // why there is none
	parsed any
	done   bool
}

func (v *runVal) kind() *fields { return runFields }

func (v *runVal) payload() (any, error) {
	if v.done || v.err != nil {
		return v.parsed, v.err
	}
	parsed, err := decode(v.raw)
	v.parsed, v.done = types.DefaultTypeAdapter.NativeToValue(parsed), err == nil
	return v.parsed, err
}

// The rest makes both of them values of CEL.

func (v *outcomeVal) ConvertToNative(t reflect.Type) (any, error) { return nil, noNative(v, t) }
func (v *outcomeVal) ConvertToType(t ref.Type) ref.Val            { return convert(v, t) }
func (v *outcomeVal) Equal(other ref.Val) ref.Val                 { return types.Bool(ref.Val(v) == other) }
func (v *outcomeVal) Type() ref.Type                              { return outcomeFields.celT }
func (v *outcomeVal) Value() any                                  { return v }
func (v *outcomeVal) Get(name ref.Val) ref.Val                    { return get(v, name) }
func (v *runVal) ConvertToNative(t reflect.Type) (any, error)     { return nil, noNative(v, t) }
func (v *runVal) ConvertToType(t ref.Type) ref.Val                { return convert(v, t) }
func (v *runVal) Equal(other ref.Val) ref.Val                     { return types.Bool(ref.Val(v) == other) }
func (v *runVal) Type() ref.Type                                  { return runFields.celT }
func (v *runVal) Value() any                                      { return v }
func (v *runVal) Get(name ref.Val) ref.Val                        { return get(v, name) }

// What they weigh in the memory of an evaluation, by their JSON.

func (v *outcomeVal) AggregateSize(types.AggregateSizer) uint32 {
	n := len(v.of.Result) + len(v.of.Error)
	for _, item := range v.of.Items {
		n += len(item) + 1
	}
	return 1 + uint32(min(n, 1<<30))/4
}

func (v *runVal) AggregateSize(types.AggregateSizer) uint32 { return 100 + uint32(len(v.raw))/4 }

func noNative(v ref.Val, t reflect.Type) error {
	return fmt.Errorf("%s is not a %v", v.Type().TypeName(), t)
}

func convert(v ref.Val, t ref.Type) ref.Val {
	if t == types.TypeType {
		return v.Type().(ref.Val)
	}
	return types.NewErr("%s cannot be made a %s", v.Type().TypeName(), t.TypeName())
}

func get(v object, name ref.Val) ref.Val {
	s, _ := name.(types.String)
	f := v.kind().types[string(s)]
	if f == nil {
		return types.NewErr("no such field: %v", name)
	}
	got, err := f.GetFrom(v)
	if err != nil {
		return types.WrapErr(err)
	}
	return types.DefaultTypeAdapter.NativeToValue(got)
}

// provider tells the checker of our types.
type provider struct{ *types.Registry }

func fieldsOf(name string) *fields {
	switch name {
	case outcomeType:
		return outcomeFields
	case runType:
		return runFields
	}
	return nil
}

func (p provider) FindStructType(name string) (*types.Type, bool) {
	if f := fieldsOf(name); f != nil {
		return types.NewTypeTypeWithParam(f.celT), true
	}
	return p.Registry.FindStructType(name)
}

func (p provider) FindStructFieldNames(name string) ([]string, bool) {
	if f := fieldsOf(name); f != nil {
		return f.names, true
	}
	return p.Registry.FindStructFieldNames(name)
}

func (p provider) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	if f := fieldsOf(name); f != nil {
		t, ok := f.types[field]
		return t, ok
	}
	return p.Registry.FindStructFieldType(name, field)
}

// decode reads JSON: whole numbers become int where they fit, others double; nothing is null.
func decode(raw json.RawMessage) (any, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("read JSON: %w", err)
	}
	return numbers(v)
}

func numbers(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case json.Number:
		return number(string(v))
	case []any:
		for i := range v {
			if v[i], err = numbers(v[i]); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], err = numbers(v[k]); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

func number(s string) (any, error) {
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		return i, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return nil, fmt.Errorf("read the number %.40s: %w", s, err)
	}
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return int64(f), nil
	}
	return f, nil
}

// tooLarge is the error of a value that has more bytes than it may.
type tooLarge int

func (n tooLarge) Error() string {
	return fmt.Sprintf("the value has more than %d bytes as JSON; keep large data elsewhere and pass a reference", int(n))
}

// encode writes a value as JSON, the fields of objects in the order of their names, in at most limit bytes.
func encode(v ref.Val, limit int) (json.RawMessage, error) {
	w := writer{limit: limit}
	if err := w.value(v, 0); err != nil {
		return nil, err
	}
	return w.out, nil
}

type writer struct {
	out   []byte
	limit int
}

func (w *writer) value(v ref.Val, depth int) error {
	switch {
	case len(w.out) > w.limit:
		return tooLarge(w.limit)
	case depth > job.MaxDepth:
		return fmt.Errorf("lists and maps are nested more than %d deep; flatten them", job.MaxDepth)
	}
	switch v := v.(type) {
	case types.Null:
		w.out = append(w.out, "null"...)
	case types.Bool:
		w.out = strconv.AppendBool(w.out, bool(v))
	case types.Int:
		w.out = strconv.AppendInt(w.out, int64(v), 10)
	case types.Uint:
		w.out = strconv.AppendUint(w.out, uint64(v), 10)
	case types.Double:
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return fmt.Errorf("the number %v cannot be written as JSON", float64(v))
		}
		b, err := json.Marshal(float64(v))
		if err != nil {
			return err
		}
		w.out = append(w.out, b...)
	case types.String:
		return w.text(string(v))
	case types.Timestamp:
		return w.text(v.Format(time.RFC3339Nano))
	case types.Duration:
		return w.text(v.Duration.String())
	case object:
		return w.object(v, depth)
	case traits.Mapper:
		return w.mapper(v, depth)
	case traits.Lister:
		w.out = append(w.out, '[')
		it := v.Iterator()
		for first := true; it.HasNext() == types.True; first = false {
			if !first {
				w.out = append(w.out, ',')
			}
			if err := w.value(it.Next(), depth+1); err != nil {
				return err
			}
		}
		w.out = append(w.out, ']')
	case *types.Err:
		return v
	default:
		return fmt.Errorf("a value of type %s cannot be written as JSON; make it text, a number, a bool, a list or a map", v.Type().TypeName())
	}
	if len(w.out) > w.limit {
		return tooLarge(w.limit)
	}
	return nil
}

func (w *writer) text(s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("a text is not valid UTF-8")
	}
	if len(w.out)+len(s) > w.limit {
		return tooLarge(w.limit)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return err
	}
	w.out = append(w.out, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
	if len(w.out) > w.limit {
		return tooLarge(w.limit)
	}
	return nil
}

func (w *writer) mapper(m traits.Mapper, depth int) error {
	type entry struct {
		name  string
		value ref.Val
	}
	var entries []entry
	for it := m.Iterator(); it.HasNext() == types.True; {
		k := it.Next()
		name, ok := k.(types.String)
		if !ok {
			return fmt.Errorf("a map with a key of type %s cannot be written as JSON; make its keys texts", k.Type().TypeName())
		}
		entries = append(entries, entry{string(name), m.Get(k)})
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	w.out = append(w.out, '{')
	for i, e := range entries {
		if i > 0 {
			w.out = append(w.out, ',')
		}
		if err := w.text(e.name); err != nil {
			return err
		}
		w.out = append(w.out, ':')
		if err := w.value(e.value, depth+1); err != nil {
			return err
		}
	}
	w.out = append(w.out, '}')
	return nil
}

func (w *writer) object(v object, depth int) error {
	w.out = append(w.out, '{')
	for i, name := range slices.Sorted(slices.Values(v.kind().names)) {
		if i > 0 {
			w.out = append(w.out, ',')
		}
		if err := w.text(name); err != nil {
			return err
		}
		w.out = append(w.out, ':')
		if err := w.value(get(v, types.String(name)), depth+1); err != nil {
			return err
		}
	}
	w.out = append(w.out, '}')
	return nil
}
