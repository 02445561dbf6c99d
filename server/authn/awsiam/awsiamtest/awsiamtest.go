// Package awsiamtest is a double of AWS STS for tests: a server on a loopback socket that answers GetCallerIdentity. It verifies the
// Signature Version 4 of each request with the secret keys of its table, has the errors of STS, and answers in JSON or XML as the
// request asks for. It can be told to misbehave.
//
// It shares no code with the package that it tests. All methods are safe for concurrent use.
package awsiamtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Credentials are those of a user, or of a session of a role, with the identity that STS tells.
type Credentials struct {
	AccessKeyID, SecretAccessKey string
	SessionToken                 string // of a session; "": none
	Account, ARN, UserID         string
}

// Role returns the credentials of a session of a role.
func Role(account, role, uniqueID, session string) Credentials {
	sum := sha256.Sum256([]byte(account + role + uniqueID + session))
	random := strings.ToUpper(hex.EncodeToString(sum[:]))
	return Credentials{
		AccessKeyID: "ASIA" + random[:16], SecretAccessKey: "secret/" + random[16:40], SessionToken: "token/" + random[40:] + "==", Account: account,
		ARN: "arn:aws:sts::" + account + ":assumed-role/" + role + "/" + session, UserID: uniqueID + ":" + session,
	}
}

// Server is a running double.
type Server struct {
	URL string

	server      *httptest.Server
	mu          sync.Mutex
	credentials map[string]Credentials
	answer      http.HandlerFunc
	now         func() time.Time
	calls       int
	requests    []*http.Request
}

// Start starts a double with credentials. The caller stops it.
func Start(credentials ...Credentials) *Server {
	s := &Server{credentials: map[string]Credentials{}, now: time.Now}
	for _, c := range credentials {
		s.Add(c)
	}
	s.server = httptest.NewServer(s)
	s.URL = s.server.URL
	return s
}

// Close stops the double.
func (s *Server) Close() { s.server.CloseClientConnections(); s.server.Close() }

// Add adds credentials, or replaces those with the same access key.
func (s *Server) Add(c Credentials) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credentials[c.AccessKeyID] = c
}

// SetTime sets the clock.
func (s *Server) SetTime(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

// Misbehave answers all requests with a handler; nil: as STS does.
func (s *Server) Misbehave(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// Calls returns how many requests have arrived.
func (s *Server) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Last returns the last request, without its body; nil: there was none.
func (s *Server) Last() *http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) == 0 {
		return nil
	}
	return s.requests[len(s.requests)-1]
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.calls++
	s.requests = []*http.Request{r}
	answer := s.answer
	s.mu.Unlock()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if answer != nil {
		answer(w, r)
		return
	}
	if err != nil {
		s.refuse(w, r, &refusal{http.StatusBadRequest, "ValidationError"})
		return
	}
	found, refused := s.authenticate(r, body)
	if refused == nil {
		refused = checkForm(r, body)
	}
	if refused != nil {
		s.refuse(w, r, refused)
		return
	}
	Answer(w, r, found)
}

// checkForm refuses another action than GetCallerIdentity. As STS does, it reads parameters of the query and of the body.
func checkForm(r *http.Request, body []byte) *refusal {
	form, err := url.ParseQuery(string(body))
	if err != nil || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		form = url.Values{}
	}
	for name, values := range r.URL.Query() {
		form[name] = append(form[name], values...)
	}
	switch {
	case form.Get("Version") != "2011-06-15":
		return &refusal{http.StatusBadRequest, "MissingVersion"}
	case form.Get("Action") != "GetCallerIdentity":
		return &refusal{http.StatusBadRequest, "InvalidAction"}
	}
	return nil
}

// result is the identity in an answer.
type result struct {
	XMLName xml.Name `json:"-" xml:"https://sts.amazonaws.com/doc/2011-06-15/ GetCallerIdentityResponse"`
	Account string   `xml:"GetCallerIdentityResult>Account"`
	Arn     string   `xml:"GetCallerIdentityResult>Arn"`
	UserID  string   `json:"UserId" xml:"GetCallerIdentityResult>UserId"`
}

// Answer answers as STS does whose credentials signed.
func Answer(w http.ResponseWriter, r *http.Request, c Credentials) {
	answer := result{Account: c.Account, Arn: c.ARN, UserID: c.UserID}
	write(w, r, http.StatusOK, answer, map[string]any{"GetCallerIdentityResponse": map[string]any{
		"GetCallerIdentityResult": answer, "ResponseMetadata": map[string]string{"RequestId": "00000000-0000-0000-0000-000000000000"},
	}})
}

// refusal is an error of STS.
type refusal struct {
	status int
	code   string
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, why *refusal) {
	// The real message of SignatureDoesNotMatch has the canonical request, with the session token.
	message := "the request was: " + r.Header.Get("X-Amz-Security-Token")
	write(w, r, why.status, struct {
		XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
		Code    string   `xml:"Error>Code"`
		Message string   `xml:"Error>Message"`
	}{Code: why.code, Message: message}, map[string]any{
		"Error": map[string]string{"Type": "Sender", "Code": why.code, "Message": message}, "RequestId": "00000000-0000-0000-0000-000000000000",
	})
}

// write answers in JSON if the request asks for it, and in XML otherwise.
func write(w http.ResponseWriter, r *http.Request, status int, asXML, asJSON any) {
	contentType, data := "text/xml", []byte(nil)
	var err error
	if r.Header.Get("Accept") == "application/json" {
		contentType = "application/json"
		data, err = json.Marshal(asJSON)
	} else {
		data, err = xml.Marshal(asXML)
	}
	if err != nil {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(data) // the client may be gone
}
