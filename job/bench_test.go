package job_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/musterhq/muster/job"
)

type batchBody struct {
	Runs []struct {
		Job      string            `json:"job"`
		ID       string            `json:"id"`
		Payload  json.RawMessage   `json:"payload"`
		Priority *int              `json:"priority"`
		Labels   map[string]string `json:"labels"`
	} `json:"runs"`
}

func batchOfRuns(n int) []byte {
	var b strings.Builder
	b.WriteString(`{"runs":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"job":"nightly-report","id":"0192f3a4-7c1e-7abc-8def-%012d","priority":7,"labels":{"team":"billing","shard":"%d"},"payload":{"customer":%d,"items":[1,2.5,"three"],"note":"Grüße"}}`, i, i, i)
	}
	b.WriteString(`]}`)
	return []byte(b.String())
}

// A batch body of 1,000 runs must cost well under 5 ms.
func BenchmarkDecodeStrictBatch(b *testing.B) {
	data := batchOfRuns(1000)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		var into batchBody
		if err := job.DecodeStrict(data, &into, ""); err != nil {
			b.Fatal(err)
		}
	}
}

// What encoding/json alone costs: the strictness is the difference.
func BenchmarkUnmarshalBatch(b *testing.B) {
	data := batchOfRuns(1000)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		var into batchBody
		if err := json.Unmarshal(data, &into); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkValidatePayload(b *testing.B) {
	data := []byte(`{"customer":12345,"items":[1,2.5,"three"],"note":"Grüße"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := job.ValidatePayload("payload", data, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseDocument(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := job.ParseDocument([]byte(exampleDocument)); err != nil {
			b.Fatal(err)
		}
	}
}

// Hostile documents must not cost more than their size allows.
func BenchmarkParseHostileYAML(b *testing.B) {
	for name, doc := range map[string]string{
		"brackets":  strings.Repeat("[", 250_000),
		"commas":    "payload: [" + strings.Repeat("a,", 140_000) + "]",
		"dashes":    strings.Repeat("- ", 250_000),
		"questions": strings.Repeat("? ", 250_000),
		"lines":     "payload: |\n" + strings.Repeat(" x\n", 280_000),
		"comments":  strings.Repeat("#\n", 280_000) + "name: a",
		"anchors":   "payload: [" + strings.Repeat("&a b,", 90_000) + "]",
		"plain":     "payload: " + strings.Repeat("a ", 500_000),
		"quoted":    "payload: \"" + strings.Repeat(`\x41`, 250_000) + "\"",
		"maps":      strings.Repeat("{a: ", 90_000),
		"keys":      "payload:\n" + strings.Repeat(" a: b\n", 90_000),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(doc)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := job.ParseDocument([]byte(doc)); err == nil {
					b.Fatal("accepted")
				}
			}
		})
	}
}
