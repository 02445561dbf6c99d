package mdmcert

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const apiKey = "key-of-the-product"

func TestSend(t *testing.T) {
	for _, tt := range []struct {
		name    string
		status  int
		answer  string
		want    error
		message string
	}{
		{"taken", 200, `{"result":"success"}`, nil, ""},
		{"refused", 200, `{"result":"failure","reason":"Invalid email address."}`, ErrRefused, `"Invalid email address."`},
		{"refused by status", 403, `{"result":"failure","reason":"no such key"}`, ErrRefused, "no such key"},
		{"a reason with the key in it", 200, `{"result":"failure","reason":"bad key ` + apiKey + `"}`, ErrRefused, "bad key REDACTED"},
		{"a long reason", 200, `{"result":"failure","reason":"` + strings.Repeat("x", 5000) + `"}`, ErrRefused, "xxx..."},
		{"broken", 500, `{"result":"failure","reason":"database"}`, ErrNoAnswer, "500"},
		{"success with another status", 500, `{"result":"success"}`, ErrNoAnswer, "500"},
		{"a page", 200, `<html>`, ErrNoAnswer, "without a result"},
		{"another result", 200, `{"result":"maybe"}`, ErrNoAnswer, "without a result"},
		{"not found", 404, ``, ErrNoAnswer, "404"},
		{"too long", 200, strings.Repeat(" ", maxAnswer) + `{"result":"success"}`, ErrNoAnswer, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.answer)
			}))
			defer server.Close()
			err := Service{Address: server.URL + "/", APIKey: apiKey}.Send(t.Context(), Order{})
			if !errors.Is(err, tt.want) || tt.want != nil && !strings.Contains(err.Error(), tt.message) {
				t.Errorf("%v, want %v with %q", err, tt.want, tt.message)
			}
			if err != nil && (strings.Contains(err.Error(), apiKey) || len(err.Error()) > 400) {
				t.Errorf("error of %d characters: %v", len(err.Error()), err)
			}
		})
	}
}

// Send follows no redirect, which would send the API key elsewhere.
func TestSendRedirect(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("followed") }))
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, status))
		if err := (Service{Address: server.URL, APIKey: apiKey}).Send(t.Context(), Order{}); !errors.Is(err, ErrRefused) {
			t.Errorf("%d: %v", status, err)
		}
		server.Close()
	}
}

func TestSendNoAnswer(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := Service{Address: server.URL, APIKey: apiKey}.Send(ctx, Order{})
	if !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), apiKey) {
		t.Errorf("silent: %v", err)
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	if err := (Service{Address: closed.URL}).Send(t.Context(), Order{}); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("no server: %v", err)
	}
}

func TestCheckAddress(t *testing.T) {
	for address, ok := range map[string]bool{
		"https://mdmcert.download": true, "https://mdm.example:8443/sign/": true, "http://127.0.0.1:8080": true, "http://[::1]:8080": true, "http://localhost": true,
		"http://mdm.example": false, "http://10.0.0.1": false, "http://127.0.0.1.mdm.example": false, "ftp://mdm.example": false, "mdm.example": false, "https://": false, "": false,
		"https://user:secret@mdm.example": false, "https://mdm.example?key=secret": false, "https://mdm.example#x": false, "https://mdm.example:port": false,
	} {
		err := Service{Address: address}.CheckAddress()
		if (err == nil) != ok || err != nil && (!errors.Is(err, ErrAddress) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%q: %v", address, err)
		}
	}
	for _, address := range []string{"https://mdm.example/x", "https://mdm.example/x/", "https://mdm.example/x/api/v1/signrequest", "https://mdm.example/x/api/v1/signrequest/"} {
		if got, err := (Service{Address: address}).address(); got != "https://mdm.example/x/api/v1/signrequest" {
			t.Errorf("%s: orders go to %q, %v", address, got, err)
		}
	}
}
