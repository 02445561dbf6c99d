// Package console has what a browser is shown by hsmsign serve: templates, view models, encoders, and one style sheet and one
// script. It knows no server and no ledger: package server calls the API as the caller of the session, fills a view model from the
// answer, and writes what Render returns.
//
//	data, err := console.Render("customers", frame, customersView)
//
// # A page
//
// A page NAME is the file templates/NAME.html, which defines "content"; the layout around it is templates/layout.html. The template
// gets a value with the members Frame and View: View is the view model of the page, Frame is what all pages have (the title, the
// signed-in caller, the place in the navigation, a message). A page has one h1, which is the title of its Frame; its sections begin with h2.
// A page offers only what the role may do: {{if .Frame.May "sign"}}. That is a courtesy: the API refuses the rest.
//
// # Parts
//
// Any page can use what templates/parts.html defines:
//
//	{{template "problem" .Problem}}           why the API refused something, and what to do (api.Problem)
//	{{template "findings" .Findings}}         findings about a file ([]fault.Finding)
//	{{template "headings" .Headings}}         <tr> with the headings of a table, which sort by URL (Headings)
//	{{template "pager" .Pager}}               links to the first page and the next one (Pager)
//	{{template "certificate" .Certificate}}   the facts about a certificate (api.Certificate)
//	{{template "freezes" .Frozen}}            what is frozen ([]api.Freeze); nothing if there is none
//
// and these functions:
//
//	{{text .Subject}}    text of a stranger in HTML, with everything invisible made visible, and long text clipped
//	{{lines .Note}}      the same for <pre>: with its lines
//	{{short .Name}}      the same as plain text on one line, for <option>, <title> and attributes
//	{{time .Changed}}    a <time> element of an RFC 3339 text or a time.Time, UTC; the script adds the local time
//	{{badge .State}}     a state as a word with a color; see Badge
//	{{hash .SHA256}}     a hash or an id, which may break anywhere
//	{{days .DaysLeft}}   "12 days left", "expired"
//
// Write a table as <div class="scroll" tabindex="0" role="region" aria-label="..."><table>, so that it scrolls by itself on a narrow
// screen, also with the keyboard; a form as <form class="form"> with <div class="field"> that has label, control, and a hint or an error that the
// control names in aria-describedby; facts as <dl class="facts">; the main button with class="main"; what cannot be undone with class="danger".
// There are no inline scripts, styles or handlers: the Content-Security-Policy forbids them.
//
// # Encoders
//
// There is one encoder for each sink. HTML is that of html/template, after Text or Short. A CSV is that of package ledgerapi. A text of a
// stranger is never a class, an id or an address.
//
// The functions are safe for concurrent use.
package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"hsmsign/api"
)

//go:embed templates assets
var files embed.FS

// Root is the path of the console, and Assets that of its style sheet and script.
const (
	Root   = "/console/"
	Assets = Root + "assets/"
)

// Frame is what all pages have.
type Frame struct {
	Title   string  // the h1, and the title of the window
	Section string  // path of the page of the navigation that this one belongs to
	Me      *api.Me // who is signed in; nil: nobody
	Trail   []Link  // the pages above this one
	Message string  // said above the content: what was done
	Plain   bool    // the page ends here: there is no navigation, as before the sign-in
}

// Link is a link. Its text is of the program, or goes through short.
type Link struct{ Path, Text string }

// May returns whether the role of the signed-in caller has one of the verbs.
func (f Frame) May(verbs ...string) bool {
	return f.Me != nil && slices.ContainsFunc(verbs, func(verb string) bool { return slices.Contains(f.Me.May, verb) })
}

// Navigation returns the pages that the role of the caller can use.
func (f Frame) Navigation() []Link {
	if f.Me == nil || f.Plain {
		return nil
	}
	links := []Link{{Root, "Start"}}
	if f.May("sign") {
		links = append(links, Link{Root + "sign", "Sign"})
	}
	links = append(links, Link{Root + "pending", "Pending"})
	if f.May("read", "customers") {
		links = append(links, Link{Root + "customers", "Customers"})
	}
	if f.May("read") {
		links = append(links, Link{Root + "ledger", "Ledger"})
	}
	return append(links, Link{Root + "vendor", "Vendor"}, Link{Root + "verify", "Verify"}, Link{Root + "me", "Me"})
}

// templates returns the pages by name.
var templates = sync.OnceValues(func() (map[string]*template.Template, error) {
	base, err := template.New("layout").Funcs(functions).ParseFS(files, "templates/layout.html", "templates/parts.html")
	if err != nil {
		return nil, err
	}
	pages := map[string]*template.Template{}
	names, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		name := strings.TrimSuffix(path.Base(file), ".html")
		if name == "layout" || name == "parts" {
			continue
		}
		page, err := base.Clone()
		if err == nil {
			page, err = page.ParseFS(files, file)
		}
		if err != nil {
			return nil, err
		}
		pages[name] = page
	}
	return pages, nil
})

// Render returns a page. view is the view model of the page. An error is a fault of the program.
func Render(name string, frame Frame, view any) ([]byte, error) {
	pages, err := templates()
	if err != nil {
		return nil, err
	}
	page := pages[name]
	if page == nil {
		return nil, fmt.Errorf("the console has no page %q", name)
	}
	var out bytes.Buffer
	err = page.ExecuteTemplate(&out, "layout", struct {
		Frame Frame
		View  any
	}{frame, view})
	return out.Bytes(), err
}

// Asset is a file that every page uses.
type Asset struct {
	Path string // has a part of the hash of Data: another content has another path
	Type string
	Data []byte
}

// assets returns the assets by name.
var assets = sync.OnceValue(func() map[string]Asset {
	all := map[string]Asset{}
	for name, mediaType := range map[string]string{"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"} {
		data, _ := files.ReadFile("assets/" + name) // it is embedded
		sum := sha256.Sum256(data)
		stem, ext, _ := strings.Cut(name, ".")
		all[name] = Asset{Assets + stem + "-" + hex.EncodeToString(sum[:8]) + "." + ext, mediaType, data}
	}
	return all
})

// AssetAt returns the asset of a path.
func AssetAt(path string) (Asset, bool) {
	for _, a := range assets() {
		if a.Path == path {
			return a, true
		}
	}
	return Asset{}, false
}
