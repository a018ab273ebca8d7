package remotetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
)

// Tokens guards a registry with the distribution project's token protocol.
// Its handler serves /token itself; everything else needs a token that it gave
// for the repository.
type Tokens struct {
	// User and Password must be given at the token endpoint; empty means that
	// anyone gets a token.
	User, Password string
	// Silent leaves the error parameter out of challenges, as many registries do.
	Silent bool

	mu     sync.Mutex
	n      int
	valid  map[string]string // token to scopes
	issued int
}

// Expire makes all tokens given so far invalid, although their stated life goes on.
func (t *Tokens) Expire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.valid = nil
}

// Issued tells how many tokens were given.
func (t *Tokens) Issued() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.issued
}

// Wrap returns h behind the guard.
func (t *Tokens) Wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			t.issue(w, r)
			return
		}
		name := strings.TrimPrefix(r.URL.Path, "/v2/")
		for _, cut := range []string{"/blobs/", "/manifests/"} {
			name, _, _ = strings.Cut(name, cut)
		}
		scope := "repository:" + name + ":pull"
		token, has := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		t.mu.Lock()
		granted, ok := t.valid[token]
		t.mu.Unlock()
		if !ok || !strings.Contains(granted, scope) {
			c := fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope=%q`, r.Host, scope)
			if has && !t.Silent {
				c += `,error="invalid_token"`
			}
			w.Header().Set("WWW-Authenticate", c)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// issue answers GET with basic authorization and the OAuth POST form.
func (t *Tokens) issue(w http.ResponseWriter, r *http.Request) {
	user, pass, _ := r.BasicAuth()
	scope := strings.Join(r.URL.Query()["scope"], " ")
	if r.Method == http.MethodPost {
		user, pass, scope = r.PostFormValue("username"), r.PostFormValue("password"), r.PostFormValue("scope")
	}
	if t.User != "" && (user != t.User || pass != t.Password) {
		http.Error(w, "wrong credentials", http.StatusUnauthorized)
		return
	}
	t.mu.Lock()
	t.n++
	t.issued++
	token := fmt.Sprintf("token-%d", t.n)
	if t.valid == nil {
		t.valid = map[string]string{}
	}
	t.valid[token] = scope
	t.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 3600})
}
