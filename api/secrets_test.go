package api

import (
	"slices"
	"testing"
)

// A snapshot holds all that the cluster keeps secret, and whoever makes credentials can be anybody: so these take an admin,
// and whoever adds a route like them has to say so here.
func TestSecretsTakeAnAdmin(t *testing.T) {
	var got []string
	for _, op := range Operations() {
		if op.Verb == Admin {
			got = append(got, op.ID)
		}
	}
	slices.Sort(got)
	if want := []string{"create-credential", "list-credentials", "read-snapshot", "restore-snapshot", "revoke-credential"}; !slices.Equal(got, want) {
		t.Errorf("for admins: %v, not %v", got, want)
	}
}
