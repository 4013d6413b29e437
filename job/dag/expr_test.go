package dag

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

func sceneOf(result, payload string) *scene {
	root := &job.Run{ID: job.TaskRunID(job.RunID{}, "x", 0), Namespace: "default", Job: "nightly", Trigger: job.ByTick, ScheduledAt: start, CreatedAt: start + 1500000}
	return &scene{
		run: &runVal{root: root, raw: json.RawMessage(payload)},
		tasks: func(name string) *outcomeVal {
			return &outcomeVal{of: &Outcome{State: job.Succeeded, Result: json.RawMessage(result)}}
		},
		item: map[string]any{"k": int64(1)}, index: 4,
	}
}

// What expressions can say, and what their values are as JSON.
func TestExpressions(t *testing.T) {
	const result = `{"n": 2, "f": 2.5, "whole": 3.0, "e": 1e3, "big": 12345678901234567890, "neg": -0, "s": "ü<&>", "l": [3, 1, 2], "null": null, "yes": true}`
	for src, want := range map[string]string{
		`tasks.a.state`:                                        `"succeeded"`,
		`tasks["a"].state`:                                     `"succeeded"`,
		`tasks.a.reason`:                                       `""`,
		`tasks.a.result`:                                       `{"big":12345678901234567000,"e":1000,"f":2.5,"l":[3,1,2],"n":2,"neg":0,"null":null,"s":"ü<&>","whole":3,"yes":true}`,
		`tasks.a`:                                              `{"error":"","reason":"","result":{"big":12345678901234567000,"e":1000,"f":2.5,"l":[3,1,2],"n":2,"neg":0,"null":null,"s":"ü<&>","whole":3,"yes":true},"state":"succeeded"}`,
		`tasks.a.result.n + 1`:                                 `3`,
		`tasks.a.result.whole + 1`:                             `4`,
		`tasks.a.result.n < tasks.a.result.f`:                  `true`,
		`double(tasks.a.result.n) * 1.5`:                       `3`,
		`type(tasks.a.result.e) == int`:                        `true`,
		`type(tasks.a.result.big) == double`:                   `true`,
		`tasks.a.result["null"] == null`:                       `true`,
		`has(tasks.a.result.none)`:                             `false`,
		`[tasks.a, tasks.b].all(x, x.state == "succeeded")`:    `true`,
		`tasks.a == tasks.a`:                                   `true`,
		`tasks.a.result.l.filter(x, x > 1).map(x, {"x": x})`:   `[{"x":3},{"x":2}]`,
		`run.trigger + " " + run.job + " " + run.scheduled_at`: `"tick nightly 2026-03-01T12:00:00Z"`,
		`run.created_at`:                                       `"2026-03-01T12:00:01.5Z"`,
		`timestamp(run.scheduled_at) + duration("1h")`:         `"2026-03-01T13:00:00Z"`,
		`timestamp(run.scheduled_at).getHours()`:               `12`,
		`run.labels`:                                           `{}`,
		`run.payload.p`:                                        `[1]`,
		`has(run.payload)`:                                     `true`,
		`{"b": 1, "a": {"d": 1u, "c": null}}`:                  `{"a":{"c":null,"d":1},"b":1}`,
		`"A-b".lowerAscii() + "x".upperAscii() + " y ".trim()`: `"a-bXy"`,
		`"a,b".split(",").join("-")`:                           `"a-b"`,
		`["a"].join()`:                                         `"a"`,
		`"aXbX".replace("X", "yy")`:                            `"ayybyy"`,
		`"übung".indexOf("u") == 2 && "x".indexOf("y") == -1`:  `true`,
		`"übung".substring(1) + "übung".substring(0, 1)`:       `"bungü"`,
		`"build-7".matches("^build-[0-9]+$")`:                  `true`,
		`item.k == 1 && index == 4`:                            `true`,
	} {
		t.Run(src, func(t *testing.T) {
			e, err := parseExpr(src, itemScope)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second is not another
				v, err := e.eval(sceneOf(result, `{"p": [1]}`))
				if err != nil {
					t.Fatal(err)
				}
				got, err := encode(v, job.MaxPayloadBytes)
				if err != nil || string(got) != want {
					t.Fatalf("%s, %v, want %s", got, err, want)
				}
			}
		})
	}
}

// What is refused before it runs.
func TestExpressionsRefused(t *testing.T) {
	for src, want := range map[string]string{
		`1 +`:                      "the expression is wrong at column 4: it ends in the middle; correct it",
		`(`:                        "it ends in the middle",
		``:                         "the expression is wrong",
		`foo`:                      `there is no "foo" at column 1; known here are run and tasks, and the functions of CEL`,
		`item`:                     `there is no "item"`,
		`now()`:                    `there is no "now"`,
		`uuid()`:                   `there is no "uuid"`,
		`tasks.a.stat`:             `there is no field "stat" at column 8; a task has state, result, error, reason`,
		`run.paylod`:               `there is no field "paylod"`,
		`tasks`:                    "a task is named by a constant",
		`tasks[run.job]`:           "a task is named by a constant",
		`tasks.map(t, t)`:          "a task is named by a constant",
		`tasks.exists(t, true)`:    "a task is named by a constant",
		`"a" in tasks`:             "a task is named by a constant",
		`[1].map(run, run)`:        "run cannot be the name of an element",
		`run.labels.map(tasks, 1)`: "tasks cannot be the name of an element",
		`1 + "a"`:                  "found no matching overload",
		`google.protobuf.Value{}`:  "write a map",
		`muster.Run{}`:             "write a map",
		`"a".matches("(")`:         "error parsing regexp",
		`"a".matches("` + strings.Repeat("(a|b)*", 300) + `")`:    "regex program size 1202 exceeds limit of 1000",
		`timestamp(run.created_at).getHours("Europe/Berlin")`:     "found no matching overload",
		strings.Repeat("(", 100) + "1" + strings.Repeat(")", 100): "recursion",
		strings.Repeat("[", 17) + strings.Repeat("]", 17):         "nested more than 16 deep",
		`[1]` + strings.Repeat(".map(x, x)", 17):                  "more than 16 loops",
		strings.Repeat("1", job.MaxExpressionBytes+1):             "has 4097 bytes; the limit is 4096",
		`"` + strings.Repeat("x", 100) + "\n\"":                   "the expression is wrong",
		"tasks.a.state ==\n  1 +":                                 "at line 2, column 6",
	} {
		name := src[:min(len(src), 40)]
		t.Run(name, func(t *testing.T) {
			_, err := parseExpr(src, taskScope)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}

// What an expression may cost and make is bounded, and it fails in one line.
func TestExpressionsBounded(t *testing.T) {
	list := "[" + strings.TrimSuffix(strings.Repeat(`{"a":"`+strings.Repeat("x", 40)+`","n":1},`, 1000), ",") + "]"
	costs := "costs more than is allowed"
	for src, want := range map[string]string{
		`run.payload.map(x, run.payload.map(y, x.n + y.n))`:                                        costs,
		`run.payload.all(x, run.payload.all(y, x == y))`:                                           costs,
		`dyn([1]` + strings.Repeat(`.map(x, [x, x, x, x])`, 15) + `) == [1]`:                       costs,
		`{"a": ` + strings.Repeat(`[`, 10) + strings.Repeat(`]`, 10) + `}`:                         "",
		`run.payload.map(x, x.a).join(run.payload.map(x, x.a).join(","))`:                          "longer than 1048576 bytes",
		`run.payload[0].a.replace("", run.payload.map(x, x.a).join(","))`:                          "longer than 1048576 bytes",
		`run.payload.map(x, x.a).join(",").matches(".*.*.*.*.*=.*")`:                               "",
		`run.payload.map(x, x.a).join(",").matches(run.payload.map(x, "(a|b)*").join(""))`:         "regex program size",
		`run.payload.map(x, run.payload.map(y, y.a).join(",").split("x").size())`:                  costs,
		`run.payload.all(x, run.payload.all(y, {"a": run.payload} == {"a": run.payload}))`:         costs, // what is large is dear to compare
		`dyn([1]` + strings.Repeat(`.map(x, [x, x])`, 13) + `).map(z, run.payload.all(y, z == z))`: costs,
		`1 / 0`:                                  "division by zero",
		`run.payload[1000]`:                      "index out of bounds",
		`run.payload[0].b`:                       "no such key: b",
		`"abc".substring(4)`:                     "there is no part from 4 to 3 of a text of 3 characters",
		`[1].join(",")`:                          "found no matching overload",
		`run.payload.join(",")`:                  "no such overload",
		`9223372036854775807 + run.payload[0].n`: "overflow",
	} {
		t.Run(src[:min(len(src), 60)], func(t *testing.T) {
			e, err := parseExpr(src, taskScope)
			if err == nil {
				_, err = e.eval(sceneOf("", list))
			}
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%v, want %q", err, want)
			}
			if err != nil && (len(err.Error()) > 400 || strings.Contains(err.Error(), "\n")) {
				t.Errorf("not one line: %q", err)
			}
		})
	}
}

// What shares its parts would be endless as JSON.
func TestEncodeIsBounded(t *testing.T) {
	e, err := parseExpr(`[1]`+strings.Repeat(`.map(x, [x, x])`, 15), taskScope)
	if err != nil {
		t.Fatal(err)
	}
	v, err := e.eval(sceneOf("", ""))
	if err != nil {
		t.Fatal(err)
	}
	var large tooLarge
	if _, err := encode(v, job.MaxPayloadBytes); !errors.As(err, &large) {
		t.Errorf("%v", err)
	}
}

func FuzzExpression(f *testing.F) {
	for _, src := range []string{`tasks.a.result.n + 1`, `run.payload.map(x, {"x": x})`, `"a".replace("", "b")`, `[1, 2.5, null, {"a": b"x"}]`, `tasks["a"]`, `{1: 2}`, `'''a''' + r"\n"`, `timestamp(run.created_at)`, `"\u0000"`} {
		f.Add(src, `{"n": 1}`)
	}
	f.Fuzz(func(t *testing.T, src, data string) {
		if len(src) > 300 {
			return
		}
		e, err := parseExpr(src, itemScope)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("not one line: %q", err)
			}
			return
		}
		valid, err := job.ValidatePayload("", []byte(data), 0)
		if err != nil {
			valid = nil
		}
		v, err := e.eval(sceneOf(string(valid), string(valid)))
		if err != nil {
			return
		}
		raw, err := encode(v, job.MaxPayloadBytes)
		if err != nil {
			return
		}
		if !json.Valid(raw) || len(raw) > job.MaxPayloadBytes {
			t.Fatalf("%q is %q, which is no JSON", src, raw)
		}
		again, err := e.eval(sceneOf(string(valid), string(valid)))
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := encode(again, job.MaxPayloadBytes); string(b) != string(raw) {
			t.Fatalf("%q is %s, and then %s", src, raw, b)
		}
	})
}

func ExampleValidate() {
	d, _ := job.ParseDocument([]byte(`
name: report
tasks:
- {name: extract, handler: {name: extract}}
- {name: load, handler: {name: load}, depends_on: [extract], when: tasks.publish.result.rows > 0}
- {name: publish, handler: {name: publish}, depends_on: [load]}
`))
	fmt.Println(Validate(d))
	// Output: tasks[1].when: the expression names the task publish, which need not have ended before load starts; add it to depends_on
}
