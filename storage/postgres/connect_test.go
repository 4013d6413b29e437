package postgres

import "testing"

func TestOpens(t *testing.T) {
	t.Parallel()
	s := open(t)
	if ok, why := s.Ready(); !ok {
		t.Fatal(why)
	}
}
