package api

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

// drawRun draws a run with any of its fields set.
func drawRun(t *rapid.T) *job.Run {
	r := new(job.Run)
	v := reflect.ValueOf(r).Elem()
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		if !rapid.Bool().Draw(t, name+" is set") {
			continue
		}
		switch p := f.Addr().Interface().(type) {
		case *job.State:
			*p = job.State(rapid.IntRange(1, 9).Draw(t, name))
		case *job.Reason:
			*p = job.Reason(rapid.IntRange(0, 40).Draw(t, name))
		case *job.Trigger:
			*p = job.Trigger(rapid.IntRange(1, 6).Draw(t, name))
		case *job.Home:
			*p = job.Home(rapid.IntRange(1, 3).Draw(t, name))
		case *job.Instant:
			*p = job.Instant(rapid.Int64Range(1, int64(maxInstant)).Draw(t, name))
		case *json.RawMessage:
			*p = json.RawMessage(rapid.SampledFrom([]string{`{"a":[1,2.5e3,"x<y"],"b":null}`, `"text"`, `0`, `[]`, `true`}).Draw(t, name))
		case *map[string]string:
			*p = rapid.MapOfN(rapid.String(), rapid.String(), 0, 4).Draw(t, name)
		case *job.RunID:
			copy(p[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name))
		case *job.JobID:
			copy(p[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name))
		case *[]job.UpstreamRun:
			for range rapid.IntRange(0, 3).Draw(t, name) {
				*p = append(*p, job.UpstreamRun{Job: rapid.String().Draw(t, "job"), RunID: job.RunID{1}, Coalesced: rapid.Uint32().Draw(t, "coalesced")})
			}
		case *[]byte:
			*p = []byte{1}
		default:
			switch f.Kind() {
			case reflect.String:
				f.SetString(rapid.String().Draw(t, name))
			case reflect.Uint8, reflect.Uint32, reflect.Uint64:
				f.SetUint(rapid.Uint64Range(0, 1<<(8*f.Type().Size()-1)).Draw(t, name))
			case reflect.Int32:
				f.SetInt(int64(rapid.Int32().Draw(t, name)))
			default:
				t.Fatalf("job.Run has grown the field %s of a type that this test does not know: see appendRun too", name)
			}
		}
	}
	return r
}

func TestRunsAreWrittenAsTheirTagsSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRun(t)
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got := appendRun(nil, r)
		var g, w map[string]any
		if err := json.Unmarshal(got, &g); err != nil {
			t.Fatalf("%v in %s", err, got)
		}
		if err := json.Unmarshal(want, &w); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(w, g); d != "" {
			t.Fatalf("-json.Marshal +appendRun:\n%s", d)
		}
	})
}

func TestABrokenResultDoesNotBreakThePage(t *testing.T) {
	got := appendRun(nil, &job.Run{Result: json.RawMessage(`{"a":`)})
	var r struct{ Result string }
	if err := json.Unmarshal(got, &r); err != nil || r.Result != `{"a":` {
		t.Fatalf("%v in %s", err, got)
	}
}
