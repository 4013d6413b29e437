package job_test

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/musterhq/muster/job"
)

// anyText is text with whatever has confused a writer of YAML before.
func anyText(t *rapid.T, name string) string {
	return rapid.OneOf(
		rapid.StringMatching(`[ -~\n\t]{0,30}`),
		rapid.String(),
		rapid.SampledFrom([]string{"true", "~", "null", "", " ", "<<", "=", "0x1f", "1_000", "2026-01-01", "- a", "a: b", "#x", "a #b", "|", ">-",
			"'", `"`, "\n", "\n\n a", " a\n", "a\n\n", "\ta", "a\u0085b", "a\u2028b", "\ufeff", "😀", "%x", "@a", "`", "!x", "&x", "*x", "[", "{a}", "?", "---", "...", "a\r\nb", "\x1b[0m", "\x7f"}),
	).Filter(func(s string) bool { return job.CleanText(s, 1<<20) == s }).Draw(t, name)
}

func anyJSON(t *rapid.T, depth int) any {
	switch n := rapid.IntRange(0, 8).Draw(t, "kind of JSON"); {
	case n == 0:
		return nil
	case n == 1:
		return rapid.Bool().Draw(t, "bool")
	case n == 2:
		return rapid.Float64Range(-1e300, 1e300).Draw(t, "float")
	case n == 3:
		return rapid.Int64().Draw(t, "int")
	case n <= 5 || depth == 0:
		return anyText(t, "text")
	case n <= 7:
		m := map[string]any{}
		for range rapid.IntRange(0, 3).Draw(t, "fields") {
			m[anyText(t, "key")] = anyJSON(t, depth-1)
		}
		return m
	}
	list := []any{}
	for range rapid.IntRange(0, 3).Draw(t, "elements") {
		list = append(list, anyJSON(t, depth-1))
	}
	return list
}

func anySpan(t *rapid.T, name string) job.Duration {
	return job.Duration(rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(0, int64(job.MaxSpan)),
		rapid.Map(rapid.Int64Range(0, 600), func(n int64) int64 { return n * int64(time.Second) })).Draw(t, name))
}

// Whatever is valid survives being written as YAML and as JSON, however odd its text.
func TestDocumentsSurviveExport(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := &job.Document{
			Name:         rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,20}`).Draw(rt, "name"),
			Description:  anyText(rt, "description"),
			Timeout:      anySpan(rt, "timeout"),
			Retry:        job.Retry{MaxAttempts: rapid.IntRange(0, 3).Draw(rt, "attempts"), Initial: anySpan(rt, "initial"), Max: anySpan(rt, "max")},
			Slots:        rapid.IntRange(0, 3).Draw(rt, "slots"),
			OnWorkerLost: rapid.SampledFrom([]job.OnWorkerLost{"", job.RequeueOnLoss, job.FailOnLoss}).Draw(rt, "on_worker_lost"),
			Labels:       map[string]string{rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._/-]{0,10}`).Draw(rt, "key"): anyText(rt, "value")},
		}
		if rapid.Bool().Draw(rt, "schedule") {
			d.Schedule = &job.Schedule{Cron: "@daily", CatchUp: job.CatchUp{Policy: rapid.SampledFrom([]job.CatchUpPolicy{"", job.CatchUpNone, job.CatchUpAll}).Draw(rt, "catch_up")}}
			d.Overlap = rapid.SampledFrom([]job.Overlap{"", job.OverlapAllow, job.OverlapSkipTick}).Draw(rt, "overlap")
		}
		if rapid.Bool().Draw(rt, "exec") {
			d.Exec = &job.Exec{Command: []string{"x", anyText(rt, "argument"), anyText(rt, "argument")}, Env: map[string]string{"A": anyText(rt, "variable")}}
		} else {
			d.HTTP = &job.HTTP{URL: "https://example.com", Body: anyText(rt, "body")}
		}
		payload, err := json.Marshal(anyJSON(rt, 3))
		if err != nil {
			rt.Fatal(err)
		}
		d.Payload = payload
		if string(payload) == "null" {
			d.Payload = nil
		}
		d.Normalize()
		if d.Validate() != nil {
			rt.Skip("not valid")
		}
		for name, write := range map[string]func() ([]byte, error){"YAML": d.YAML, "JSON": func() ([]byte, error) { return json.Marshal(d) }} {
			text, err := write()
			if err != nil {
				rt.Fatal(err)
			}
			again, err := job.ParseDocument(text)
			if err != nil {
				rt.Fatalf("read back the %s: %v\n%s", name, err, text)
			}
			if !job.EqualDocuments(d, again) {
				rt.Fatalf("the %s reads back otherwise:\n%s", name, text)
			}
		}
	})
}
