package app

import (
	"strings"
	"testing"
	"time"
)

func TestExpiryText(t *testing.T) {
	day := 24 * time.Hour
	for left, want := range map[time.Duration]string{
		31 * day: "", 30*day + time.Second: "", 30 * day: "in less than 31 days", 36 * time.Hour: "in less than 2 days", time.Second: "in less than 1 days", 0: "has ended", -day: "has ended",
	} {
		if got := expiryText(left); got == "" != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s left: %q", left, got)
		}
	}
}
