package job

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTokenComesBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		id := rapid.StringMatching(`[A-Za-z0-9.-]{1,40}`).Draw(rt, "id")
		secret := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(rt, "secret")
		token := Token(id, secret)
		if strings.ContainsAny(token, " \t\r\n\"'") {
			rt.Fatalf("%q does not fit into a header or a shell", token)
		}
		// People paste tokens with a newline behind, and files end in one.
		gotID, gotSecret, ok := ParseToken(" " + token + "\r\n")
		if !ok || gotID != id || !bytes.Equal(gotSecret, secret) {
			rt.Fatalf("%q is read as %q %x %v", token, gotID, gotSecret, ok)
		}
	})
}

func TestWhatIsNoTokenIsRefused(t *testing.T) {
	t.Parallel()
	good := Token("id", make([]byte, 32))
	if _, _, ok := ParseToken(good); !ok {
		t.Fatal("a token is refused")
	}
	for what, token := range map[string]string{
		"nothing":        "",
		"a prefix":       "muster_",
		"another prefix": "master" + strings.TrimPrefix(good, "muster"),
		"no id":          Token("", make([]byte, 32)),
		"no secret":      "muster_id",
		"empty secret":   "muster_id_",
		"short secret":   Token("id", make([]byte, 31)),
		"long secret":    Token("id", make([]byte, 33)),
		"cut":            good[:len(good)-1],
		"padded":         good + "=",
		"with a tail":    good + "!",
		"bearer":         "Bearer " + good,
		"id with a _":    Token("a_b", make([]byte, 32)), // the rest of the id would be taken for the secret
	} {
		if id, _, ok := ParseToken(token); ok {
			t.Errorf("%s: %q is taken for a token of %q", what, token, id)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(Token("id", make([]byte, 32)))
	f.Fuzz(func(t *testing.T, token string) {
		id, secret, ok := ParseToken(token)
		if !ok {
			return
		}
		if id == "" || strings.Contains(id, "_") || len(secret) != 32 {
			t.Fatalf("%q is read as %q %x", token, id, secret)
		}
		if again, same, ok := ParseToken(Token(id, secret)); !ok || again != id || !bytes.Equal(same, secret) {
			t.Fatalf("%q does not come back", token)
		}
	})
}

func TestCredentialMatches(t *testing.T) {
	t.Parallel()
	secret := bytes.Repeat([]byte{7}, 32)
	now := At(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	c := Credential{Digest: SecretDigest(secret)}
	if !c.Matches(secret, now) {
		t.Fatal("the secret does not match")
	}
	for _, other := range [][]byte{nil, {}, secret[:31], append(bytes.Clone(secret), 0), make([]byte, 32), c.Digest} {
		if c.Matches(other, now) {
			t.Errorf("%x matches", other)
		}
	}
	c.ExpiresAt = now
	if c.Matches(secret, now) || !c.Matches(secret, now-1) {
		t.Error("a credential is good until just before it expires")
	}
	for _, empty := range []Credential{{}, {Digest: []byte{}}, {Digest: secret}} {
		if empty.Matches(secret, now) || empty.Matches(nil, now) {
			t.Errorf("%+v lets somebody in", empty)
		}
	}
}

func TestCredentialMayUse(t *testing.T) {
	t.Parallel()
	all, some := Credential{}, Credential{Namespaces: []string{"a", "b"}}
	for namespace, want := range map[string]bool{"a": true, "b": true, "c": false, "*": false, "A": false, "": true} {
		if !all.MayUse(namespace) {
			t.Errorf("a credential of all namespaces may not use %q", namespace)
		}
		if some.MayUse(namespace) != want {
			t.Errorf("a credential of a and b: %q is %v", namespace, !want)
		}
	}
}

func TestRolesAreClosed(t *testing.T) {
	t.Parallel()
	for _, r := range Roles {
		if !r.Valid() {
			t.Errorf("%s is not valid", r)
		}
	}
	for _, r := range []Role{"", "root", "Admin", "admin "} {
		if r.Valid() {
			t.Errorf("%q is valid", r)
		}
	}
}
