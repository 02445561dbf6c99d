package console

import (
	"fmt"
	"time"

	"hsmsign/api"
)

// SignIn is the page on which a person signs in, signin.html.
type SignIn struct {
	Back        string       // path of the page that is shown after it
	Again       bool         // the person is signed in, and must identify themselves again
	Issuers     []string     // names of the OIDC issuers
	Certificate bool         // the browser has sent a certificate of a caller
	Links       bool         // hsmsign console login prints links
	Problem     *api.Problem // why a sign-in was refused; nil: nothing was
}

// SignInLink is the page that redeems a link, signinlink.html.
type SignInLink struct{ Token string }

// Again is the answer to a form that was sent without a session, or with one whose sign-in is too old, again.html. What was typed is
// kept by the browser: the person signs in in another tab, goes back and submits again.
type Again struct {
	SignIn  string // path of the page to sign in
	Problem api.Problem
}

// SignedOut is the page after a sign-out, signedout.html.
type SignedOut struct{ Everywhere bool }

// RenderSignIn returns the page of a view of this file.
func RenderSignIn(view any) ([]byte, error) {
	frame := Frame{Title: "Sign in", Plain: true}
	switch v := view.(type) {
	case SignIn:
		if v.Again {
			frame.Title = "Sign in again"
		}
		return Render("signin", frame, view)
	case SignInLink:
		return Render("signinlink", frame, view)
	case Again:
		frame.Title = "Nothing was sent yet: sign in again"
		return Render("again", frame, view)
	case SignedOut:
		frame.Title = "You are signed out"
		return Render("signedout", frame, view)
	}
	return nil, fmt.Errorf("%T is not a page of a sign-in", view)
}

// Session is one of the caller's sessions, for the page Me.
type Session struct {
	How        string // "oidc", "certificate" or "link"
	Credential string
	Created    time.Time
	Seen       time.Time // to the minute
	Ends       time.Time // at the latest
	Current    bool      // that of the browser that asks
}
