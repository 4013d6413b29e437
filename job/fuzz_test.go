package job_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"unicode/utf8"

	"github.com/musterhq/muster/job"
)

func jsonMarshal(v any) ([]byte, error) { return json.Marshal(v) }

func seedDocuments(f *testing.F) {
	for _, doc := range []string{
		exampleDocument, exampleTasks, "", "---\n---\n", "name: a\nhandler: {name: h}",
		`{"name": "a", "exec": {"command": ["x", "\ud83d\ude00\u2028"]}, "payload": {"a": [1.50, -0, 1e3, null, true, "\u0001"]}}`,
		"name: a\nhttp: {url: 'https://example.com', body: \" a\\n\\tb \\n\\n\"}",
		"name: a\npayload: &a [*a]", "name: a\nexec: {<<: {command: [x]}}", "? [a]\n: b", "name: !!binary aGk=",
		"name: a\nhandler: {name: h}\npayload: 0644", "a: &a {<<: *a}", "name: a\nhandler: {name: h}\npayload: {<<: null, '<<': 1}",
	} {
		f.Add([]byte(doc))
	}
}

// Whatever is accepted can be written and read back as the same; whatever is refused is refused in our words.
func FuzzParseDocument(f *testing.F) {
	seedDocuments(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := job.ParseDocument(data)
		checkRefusal(t, err)
		if err == nil {
			checkRoundTrip(t, d)
		}
		if _, err := job.ParseDocuments(data); err != nil {
			checkRefusal(t, err)
		}
	})
}

func checkRefusal(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	var e *job.Error
	if !errors.As(err, &e) || e.Code != job.Invalid || e.Reason == "" || e.Message == "" || !utf8.ValidString(e.Error()) {
		t.Fatalf("not an answer for a user: %#v", err)
	}
}

// What DecodeStrict accepts encoding/json accepts too, with the same result.
func FuzzDecodeStrict(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"id": "0192f3a4-7c1e-7abc-8def-0123456789ab", "job": "a", "runs": [{"delay": "5s"}]}`, `{"any": {"a": [1, 2, {"b": null}]}}`,
		`{"count": 1, "small": 300, "ratio": 1e5, "bytes": "aGk=", "state": "queued", "RunAt": null, "limit": 3}`, `[`, `{"a":1,}`, `"\ud800"`, `nul`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var got, want body
		err := job.DecodeStrict(data, &got, "body")
		checkRefusal(t, err)
		if err != nil {
			return
		}
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&want); err != nil {
			t.Fatalf("encoding/json refuses it: %v", err)
		}
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		if !bytes.Equal(a, b) {
			t.Fatalf("decoded %s, encoding/json %s", a, b)
		}
	})
}

func FuzzValidatePayload(f *testing.F) {
	for _, s := range []string{``, ` 1 `, `{"a": [1e308, "\u0041"]}`, `[1e999]`, `{"a":1,"\u0061":2}`, "\"\u2028\"", `"\ud83d\ude00"`, `-`, `0.`, `[[[]]]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := job.ValidatePayload("payload", data, 0)
		checkRefusal(t, err)
		if err != nil || got == nil {
			return
		}
		if !json.Valid(data) || !utf8.Valid(got) || bytes.IndexByte(got, 0) >= 0 || len(got) > job.MaxPayloadBytes {
			t.Fatalf("accepted %q as %q", data, got)
		}
		var v any
		if err := json.Unmarshal(got, &v); err != nil {
			t.Fatalf("accepted what does not decode: %v", err)
		}
		again, err := job.ValidatePayload("payload", got, 0)
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("not stable: %q, then %q, %v", got, again, err)
		}
	})
}
