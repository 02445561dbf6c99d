package azurekmstest

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"hsmsign/internal/double"
)

// resource is for what a token is.
const resource = "https://vault.azure.net"

// IdentityPath is the path of the managed identity: IDENTITY_ENDPOINT is https://ADDRESS followed by it.
const IdentityPath = "/msi/token"

// serveToken answers the requests to the servers of the tokens, and reports whether the request is one.
func (s *Server) serveToken(w http.ResponseWriter, r *http.Request, body []byte) bool {
	authority := "https://" + s.Address() + "/" + TenantID
	switch {
	case strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration"):
		writeJSON(w, http.StatusOK, map[string]any{
			"issuer": authority + "/v2.0", "authorization_endpoint": authority + "/oauth2/v2.0/authorize", "token_endpoint": authority + "/oauth2/v2.0/token",
		})
	case r.URL.Path == "/"+TenantID+"/oauth2/v2.0/token":
		s.answerToken(w, r, s.entraRefusal(body))
	case r.URL.Path == IdentityPath:
		refusal := ""
		if r.Header.Get("X-Identity-Header") != IdentityHeader || r.URL.Query().Get("resource") != resource {
			refusal = "the header or the resource is not that of the identity"
		}
		s.answerToken(w, r, refusal)
	default:
		return false
	}
	return true
}

// entraRefusal returns why Entra ID refuses a request for a token; "" if it does not.
func (s *Server) entraRefusal(body []byte) string {
	form, err := url.ParseQuery(string(body))
	switch {
	case err != nil || form.Get("grant_type") != "client_credentials":
		return "AADSTS70003: the grant type is not supported"
	case form.Get("client_id") != ClientID:
		return "AADSTS700016: the application was not found in the directory. Trace ID: 1 Correlation ID: 2"
	case !strings.Contains(form.Get("scope"), resource+"/.default"):
		return "AADSTS500011: the resource was not found"
	case form.Get("client_secret") != ClientSecret && form.Get("client_assertion") != FederatedToken:
		return "AADSTS7000215: Invalid client secret provided. Trace ID: 1 Correlation ID: 2"
	}
	return ""
}

// answerToken issues a token, or refuses it.
func (s *Server) answerToken(w http.ResponseWriter, r *http.Request, refusal string) {
	fault := s.script.Next("Token", "")
	if !double.Wait(r.Context(), s.closed, fault, 0) || fault == Reset {
		double.Reset(r)
		return
	}
	if e, ok := refusals()[fault]; ok {
		writeJSON(w, e.Status, map[string]any{"error": "temporarily_unavailable", "error_description": "scripted"})
		return
	}
	if refusal != "" {
		writeJSON(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client", "error_description": refusal})
		return
	}
	token := "token-of-the-double-" + hexID()
	s.mu.Lock()
	s.tokens[token] = true
	s.mu.Unlock()
	s.issued.Add(1)
	answer := map[string]any{"token_type": "Bearer", "expires_in": 3600, "access_token": token, "resource": resource}
	if r.URL.Path == IdentityPath {
		answer["expires_on"] = time.Now().Add(time.Hour).Unix()
		delete(answer, "expires_in")
	}
	writeJSON(w, http.StatusOK, answer)
}

func writeJSON(w http.ResponseWriter, status int, members map[string]any) {
	body, _ := json.Marshal(members) // strings and numbers
	write(w, "", status, body)
}
