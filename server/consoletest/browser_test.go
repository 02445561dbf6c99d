// Package consoletest tests the console in a real browser: Debian's Chromium, driven over its DevTools protocol, against the whole
// service. One browser runs for all tests of the package; each tab has a browser context, so that no two share cookies.
//
// Every tab collects what a person would find in the browser's developer tools: errors of the console, violations of the
// Content-Security-Policy, issues, and requests to other hosts. At the end of its test, a tab with any of them fails the test.
//
// Chromium has no sandbox when the tests run as root, as in a container, because it refuses to start otherwise. It opens only pages of the
// tests and resolves no name.
package consoletest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/security"
	"github.com/chromedp/chromedp"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

const (
	// startWait is for the start of the browser, stepWait for one step of a test: a page, a click, an audit.
	startWait = time.Minute
	stepWait  = 20 * time.Second

	wide, narrow = 1280, 360 // widths of a window in pixels
	light, dark  = "light", "dark"
)

// browser is the browser of all tests; it starts with the first tab.
var browser struct {
	sync.Once
	ctx  context.Context
	stop context.CancelFunc
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if browser.stop != nil {
		browser.stop()
	}
	os.Exit(code)
}

// startBrowser starts the browser. It runs until the tests end, so its context is not that of a test.
func startBrowser() {
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium"), chromedp.Flag("hide-scrollbars", true), chromedp.Flag("font-render-hinting", "none"), chromedp.Flag("lang", "en-US"),
		// No name is resolved but the two of the tests' own servers.
		chromedp.Flag("host-resolver-rules", "MAP localhost 127.0.0.1 , MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"),
		chromedp.WSURLReadTimeout(startWait),
	)
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocator, stopAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, stop := chromedp.NewContext(allocator)
	browser.ctx, browser.stop = ctx, func() { stop(); stopAllocator() }
	browser.err = chromedp.Do(ctx)
}

// tab is a tab of the browser, with its own cookies. Its methods fail the test.
type tab struct {
	testing.TB
	ctx  context.Context
	home string // origin of the console
	also []string

	mu      sync.Mutex
	defects []string
	// expected are parts of defects that a test causes.
	expected []string
}

// newTab opens an empty tab for pages of an origin. Other origins, whose requests are no defects, may follow.
func newTab(t testing.TB, home string, also ...string) *tab {
	t.Helper()
	if browser.Do(startBrowser); browser.err != nil {
		t.Fatalf("start chromium: %v; make deps installs it", browser.err)
	}
	b := &tab{TB: t, home: home, also: also}
	ctx, cancel := chromedp.NewContext(browser.ctx, chromedp.WithNewBrowserContext(), chromedp.WithListener(b.event))
	b.ctx = ctx
	t.Cleanup(cancel)
	t.Cleanup(b.clean) // before cancel
	b.ignoreCertificates()
	b.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		if _, err := cdp.Call(ctx, target, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "Europe/Berlin"}); err != nil {
			return err
		}
		_, err := cdp.Call(ctx, target, audits.Enable, cdp.Empty{})
		return err
	}))
	b.look(wide, light)
	return b
}

// ignoreCertificates has the tab accept the certificate of the service: that of a CA which no browser knows.
func (b *tab) ignoreCertificates() {
	b.Helper()
	b.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, security.SetIgnoreCertificateErrors, security.SetIgnoreCertificateErrorsParams{Ignore: true})
		return err
	}))
}

// event collects defects. It is called for one event after the other.
func (b *tab) event(event any) {
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.request(e.Request.URL)
	case *runtime.EventConsoleAPICalled:
		b.defect("console."+string(e.Type), e.Args)
	case *runtime.EventExceptionThrown:
		b.defect("exception", e.ExceptionDetails)
	case *log.EventEntryAdded:
		b.defect("log", e.Entry)
	case *audits.EventIssueAdded:
		b.defect("issue", e.Issue)
	}
}

// request notes a request to another host.
func (b *tab) request(address string) {
	u, err := url.Parse(address)
	if err == nil && (u.Scheme == "about" || u.Scheme == "data" || slices.Contains(append(b.also, b.home), u.Scheme+"://"+u.Host)) {
		return
	}
	b.defect("request to another host", address)
}

// defect notes a defect.
func (b *tab) defect(kind string, what any) {
	text, err := json.Marshal(what)
	if err != nil {
		text = []byte(err.Error())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.defects = append(b.defects, kind+": "+fault.Clip(string(text), 1000))
}

// expect says that defects with a text are the test's own doing.
func (b *tab) expect(parts ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected = append(b.expected, parts...)
}

// clean reports the defects that nobody expects.
func (b *tab) clean() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.defects {
		if !slices.ContainsFunc(b.expected, func(part string) bool { return strings.Contains(d, part) }) {
			b.Errorf("the browser reports %s", d)
		}
	}
}

// do runs steps in the tab, each within stepWait.
func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	for i, step := range steps {
		if _, err := try(b, step); err != nil {
			b.Fatalf("step %d at %s: %v\n%s", i+1, b.where(), err, b.text())
		}
	}
}

// try runs one action within stepWait.
func try[T any](b *tab, action chromedp.Action[T]) (T, error) {
	if chromedp.FromContext(b.ctx).Target == nil {
		return chromedp.Run(b.ctx, action) // the first one opens the tab, which lives as long as its context
	}
	ctx, cancel := context.WithTimeout(b.ctx, stepWait)
	defer cancel()
	return chromedp.Run(ctx, action)
}

// value runs one action, and returns its result.
func value[T any](b *tab, action chromedp.Action[T]) T {
	b.Helper()
	got, err := try(b, action)
	if err != nil {
		b.Fatalf("at %s: %v\n%s", b.where(), err, b.text())
	}
	return got
}

// where returns the address of the tab, and text what a person reads there, for messages.
func (b *tab) where() string {
	at, _ := try(b, chromedp.Location()) // the message is about another failure
	return at
}

func (b *tab) text() string {
	text, _ := try(b, chromedp.Evaluate[string](`document.body ? document.body.innerText : ""`)) // likewise
	return text
}

// look sets the width of the window, and the theme.
func (b *tab) look(width int64, theme string) {
	b.Helper()
	b.do(chromedp.EmulateViewport(width, 900), chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: theme}, {Name: "prefers-reduced-motion", Value: "reduce"},
		}})
		return err
	}))
}

// withoutScript turns JavaScript off for the pages that the tab opens.
func (b *tab) withoutScript() {
	b.Helper()
	b.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	}))
}

// open opens a path of the console, or a whole address, and returns the status.
func (b *tab) open(path string) int64 {
	b.Helper()
	if !strings.Contains(path, "://") {
		path = b.home + path
	}
	return value(b, chromedp.NavigateResponse(path)).Status
}

// front has the browser show the tab: nobody presses a button in a tab behind another one.
func (b *tab) front() {
	b.Helper()
	b.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, page.BringToFront, cdp.Empty{})
		return err
	}))
}

// press presses the one element that a selector selects, waits for the page that follows, and returns its status.
func (b *tab) press(selector string) int64 {
	b.Helper()
	b.front()
	ctx, cancel := context.WithTimeout(b.ctx, stepWait)
	defer cancel()
	response, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
	if err != nil {
		b.Fatalf("press %s at %s: %v\n%s", selector, b.where(), err, b.text())
	}
	if response != nil {
		return response.Status
	}
	b.Fatalf("press %s at %s: no page followed", selector, b.where())
	return 0
}

// fill types a text into a field.
func (b *tab) fill(selector, text string) {
	b.Helper()
	b.do(chromedp.Focus(chromedp.CSS(selector), chromedp.NodeVisible))
	value(b, chromedp.Evaluate[bool]("document.activeElement.select(), true"))
	b.do(chromedp.SendKeys(chromedp.CSS(selector), text, chromedp.NodeVisible))
}

// paste sets the value of a field, as a paste does.
func (b *tab) paste(selector, text string) {
	b.Helper()
	b.do(chromedp.SetValue(chromedp.CSS(selector), text, chromedp.NodeVisible))
}

// file chooses a file, whose content is text, in a field for files.
func (b *tab) file(selector, name, text string) {
	b.Helper()
	path := filepath.Join(b.TempDir(), name)
	testkit.OK(b, os.WriteFile(path, []byte(text), 0o600))
	b.do(chromedp.SetUploadFiles(chromedp.CSS(selector), []string{path}))
}

// shows fails the test unless the page has each text.
func (b *tab) shows(texts ...string) {
	b.Helper()
	shown := b.text()
	for _, want := range texts {
		if !strings.Contains(strings.Join(strings.Fields(shown), " "), want) {
			b.Fatalf("%s does not show %q:\n%s", b.where(), want, shown)
		}
	}
}

// has returns how many elements a selector selects.
func (b *tab) has(selector string) int {
	b.Helper()
	return value(b, chromedp.Evaluate[int](fmt.Sprintf("document.querySelectorAll(%q).length", selector)))
}

// cookies returns the cookies of the tab, also those that scripts cannot read.
func (b *tab) cookies() []*network.Cookie {
	b.Helper()
	return value(b, func(ctx context.Context, target *chromedp.Target) ([]*network.Cookie, error) {
		found, err := cdp.Call(ctx, target, network.GetCookies, network.GetCookiesParams{URLs: []string{b.home}})
		return found.Cookies, err
	})
}

// setCookies sets cookies for the console.
func (b *tab) setCookies(cookies []*network.Cookie) {
	b.Helper()
	b.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		for _, c := range cookies {
			_, err := cdp.Call(ctx, target, network.SetCookie, network.SetCookieParams{
				Name: c.Name, Value: c.Value, URL: b.home + "/", Path: c.Path, Secure: &c.Secure, HTTPOnly: &c.HTTPOnly, SameSite: c.SameSite,
			})
			if err != nil {
				return err
			}
		}
		return nil
	}))
}
