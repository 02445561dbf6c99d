package console

import (
	"fmt"
	"html"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"hsmsign/api"
	"hsmsign/internal/testkit"
)

// TestTemplates parses every page, and renders an error page before and after the sign-in.
func TestTemplates(t *testing.T) {
	pages := testkit.Value(templates())(t)
	if len(pages) < 10 {
		t.Errorf("%d pages", len(pages))
	}
	if _, err := Render("nothing", Frame{}, nil); err == nil {
		t.Error("a page that does not exist is rendered")
	}
	if _, err := RenderSignIn(Start{}); err == nil {
		t.Error("the start page is a page of a sign-in")
	}
	view := struct {
		Problem api.Problem
		Links   []Link
	}{Problem: api.Problem{Detail: "<b>\u202e", Fix: "GET /v1/me says what it may"}}
	before := string(testkit.Value(Render("problem", Frame{Title: "Not allowed", Plain: true}, view))(t))
	after := string(testkit.Value(Render("problem", Frame{Title: "Not allowed", Me: &api.Me{Caller: "ada"}}, view))(t))
	if strings.Contains(before, "<nav") || !strings.Contains(after, "<nav") || strings.Contains(after, "<b>\u202e") || !strings.Contains(after, "the page Me says what it may") {
		t.Errorf("%s\n%s", before, after)
	}
}

func TestText(t *testing.T) {
	for _, test := range []struct{ text, html, short string }{
		{"acme", "<bdi>acme</bdi>", "acme"},
		{`<a href="x">&'`, "<bdi>&lt;a href=&#34;x&#34;&gt;&amp;&#39;</bdi>", `<a href="x">&'`},
		{"a\u202eb", `<bdi>a<span class="mark">U+202E</span>b</bdi>`, "a[U+202E]b"},
		{"\x1b[1m", `<bdi><span class="mark">U+001B</span>[1m</bdi>`, "[U+001B][1m"},
		{"\xff", `<bdi><span class="mark">0xFF</span></bdi>`, "[0xFF]"},
		{"a\nb", `<bdi>a<span class="mark">U+000A</span>b</bdi>`, "a[U+000A]b"},
		{"Łódź 東京 שלום", "<bdi>Łódź 東京 שלום</bdi>", "Łódź 東京 שלום"},
		{"\u200b\ufeff\u00ad\u3164\ufe0f\U000e0041", `<bdi><span class="mark">U+200B</span><span class="mark">U+FEFF</span><span class="mark">U+00AD</span><span class="mark">U+3164</span><span class="mark">U+FE0F</span><span class="mark">U+E0041</span></bdi>`, "[U+200B][U+FEFF][U+00AD][U+3164][U+FE0F][U+E0041]"},
	} {
		if got := string(Text(test.text)); got != test.html {
			t.Errorf("Text(%q) = %s, want %s", test.text, got, test.html)
		}
		if got := Short(test.text); got != test.short {
			t.Errorf("Short(%q) = %s", test.text, got)
		}
	}
	if got := string(Lines("a\n\tb\r")); got != "<bdi>a\n\tb<span class=\"mark\">U+000D</span></bdi>" {
		t.Error(got)
	}
	long := strings.Repeat("é", 65536)
	if got := string(Text(long)); !strings.Contains(got, "<summary><bdi>"+strings.Repeat("é", maxText)+"</bdi>…") || !strings.Contains(got, "all 65536 characters") || !strings.Contains(got, "<div><bdi>"+long+"</bdi></div>") {
		t.Errorf("%.400s", got)
	}
	if got := Short(long); got != strings.Repeat("é", maxShort)+"…" {
		t.Error(got)
	}
	if got := string(Badge("<b>")); got != `<span class="badge ">&lt;b&gt;</span>` {
		t.Error(got)
	}
}

var tags = regexp.MustCompile(`<[^>]*>`)

// FuzzText shows any text without a character that has no shape, and with the elements of the encoder only.
func FuzzText(f *testing.F) {
	for _, seed := range []string{"acme", "<script>alert(1)</script>", "\u202e\u2066\x1b[31m\x00", strings.Repeat("A\u200b", 300), "\xff\xfe", "&lt;"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, shown := range []string{string(Text(text)), string(Lines(text)), string(Hash(text)), string(Badge(text)), html.EscapeString(Short(text)), string(Fix(text))} {
			for _, tag := range tags.FindAllString(shown, -1) {
				if !slices.Contains([]string{
					"<bdi>", "</bdi>", `<span class="mark">`, `<span class="hint">`, "</span>", `<details class="long">`, "<summary>", "</summary>", "<div>", "</div>", "</details>", `<code class="hash">`, "</code>",
				}, tag) && !strings.HasPrefix(tag, `<span class="badge `) {
					t.Errorf("%q has %s", text, tag)
				}
			}
			for _, r := range html.UnescapeString(tags.ReplaceAllString(shown, "")) {
				if r != '\n' && r != '\t' && !unicode.IsPrint(r) || !utf8.ValidRune(r) {
					t.Errorf("%q shows %U", text, r)
				}
			}
		}
		if n := utf8.RuneCountInString(Short(text)); n > maxShort*10+1 {
			t.Errorf("%d characters of a short text", n)
		}
	})
}

func TestTime(t *testing.T) {
	at := time.Date(2026, 11, 22, 4, 10, 59, 0, time.FixedZone("", 3600))
	for _, test := range []struct {
		at   any
		want string
	}{
		{at, `<time datetime="2026-11-22T03:10:59Z">2026-11-22 03:10 UTC</time>`}, {"2026-11-22T04:10:00Z", `<time datetime="2026-11-22T04:10:00Z">2026-11-22 04:10 UTC</time>`},
		{time.Time{}, ""}, {"", "<bdi></bdi>"}, {"<b>", "<bdi>&lt;b&gt;</bdi>"},
	} {
		if got := string(Time(test.at)); got != test.want {
			t.Errorf("Time(%v) = %s", test.at, got)
		}
	}
	for n, want := range map[int]string{-1: "expired", 0: "less than a day left", 1: "1 day left", 30: "30 days left"} {
		if got := Days(n); got != want {
			t.Errorf("Days(%d) = %s", n, got)
		}
	}
}

func TestTable(t *testing.T) {
	at := func(text string) *url.URL { return testkit.Value(url.Parse(text))(t) }
	columns := []Column{{Title: "Name", Key: "name"}, {Title: "Left", Key: "left", Number: true}, {Title: "Notes"}}
	got := Headings(at("/console/x?q=a&before=7"), "left", columns...)
	want := []Heading{{"Name", "/console/x?q=a&sort=name", "", false}, {"Left", "/console/x?q=a&sort=-left", "ascending", true}, {"Notes", "", "", false}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if got := Headings(at("/console/x?sort=-left"), "name", columns...)[1]; got.Sorted != "descending" || got.Path != "/console/x?sort=left" {
		t.Errorf("%+v", got)
	}
	orders := map[string]func(a, b string) int{"name": strings.Compare, "left": func(a, b string) int { return len(a) - len(b) }}
	for query, want := range map[string]string{"": "a,bb,ccc", "?sort=-name": "ccc,bb,a", "?sort=left": "a,bb,ccc", "?sort=-left": "ccc,bb,a", "?sort=other": "a,bb,ccc"} {
		items := []string{"bb", "ccc", "a"}
		Sort(at("/x"+query), "name", items, orders)
		if got := strings.Join(items, ","); got != want {
			t.Errorf("%s: %s", query, got)
		}
	}
	for _, test := range []struct {
		at, next string
		want     Pager
	}{
		{"/console/x?q=a", "", Pager{}}, {"/console/x?q=a", "/v1/x?limit=50&before=12", Pager{Next: "/console/x?before=12&q=a"}},
		{"/console/x?before=12", "", Pager{First: "/console/x"}}, {"/console/x?after=a", "/v1/x?after=b", Pager{First: "/console/x", Next: "/console/x?after=b"}},
	} {
		if got := NewPager(at(test.at), test.next); got != test.want {
			t.Errorf("%s: %+v", test.at, got)
		}
	}
}

// TestContrast computes the contrast (WCAG 2.1) of the colors of both themes.
func TestContrast(t *testing.T) {
	css := string(testkit.Value(files.ReadFile("assets/console.css"))(t))
	light, dark, ok := strings.Cut(css, "prefers-color-scheme: dark")
	if !ok {
		t.Fatal("no dark theme")
	}
	for theme, text := range map[string]string{"light": light, "dark": dark[:strings.Index(dark, "}")]} {
		color := map[string]string{}
		for _, found := range regexp.MustCompile(`--([a-z-]+): #([0-9a-f]{6})`).FindAllStringSubmatch(text, -1) {
			color[found[1]] = found[2]
		}
		for _, pair := range []struct {
			front, back string
			least       float64
		}{
			{"text", "page", 4.5}, {"text", "sheet", 4.5}, {"text", "mark", 4.5}, {"soft", "page", 4.5}, {"soft", "sheet", 4.5}, {"soft", "mark", 4.5}, {"link", "page", 4.5}, {"link", "sheet", 4.5}, {"link", "mark", 4.5},
			{"sheet", "link", 4.5}, {"sheet", "text", 4.5}, {"good", "good-back", 4.5}, {"warn", "warn-back", 4.5}, {"bad", "bad-back", 4.5}, {"bad", "page", 4.5}, {"bad", "sheet", 4.5}, {"bad", "mark", 4.5}, {"text", "bad-back", 4.5}, {"text", "good-back", 4.5}, {"link", "bad-back", 4.5},
			{"edge", "page", 3}, {"edge", "sheet", 3},
		} {
			if got := contrast(t, color[pair.front], color[pair.back]); got < pair.least {
				t.Errorf("%s: %s on %s has %.2f, want %.1f", theme, pair.front, pair.back, got, pair.least)
			}
		}
	}
}

func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	luminance := func(color string) float64 {
		sum := 0.0
		for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
			v := float64(testkit.Value(strconv.ParseUint(fmt.Sprintf("%.2s", color[2*i:]), 16, 8))(t)) / 255
			if v <= 0.03928 {
				v /= 12.92
			} else {
				v = math.Pow((v+0.055)/1.055, 2.4)
			}
			sum += weight * v
		}
		return sum
	}
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// TestAssets finds assets by their paths only, and no code of the script that the Content-Security-Policy forbids.
func TestAssets(t *testing.T) {
	for name, a := range assets() {
		if found, ok := AssetAt(a.Path); !ok || len(found.Data) == 0 {
			t.Errorf("%s is not at %s", name, a.Path)
		}
		for _, forbidden := range []string{"eval(", "innerHTML", "http://", "https://", ".style.", "Function("} {
			if strings.Contains(strings.ReplaceAll(string(a.Data), `xmlns="http://www.w3.org/2000/svg"`, ""), forbidden) {
				t.Errorf("%s has %q", name, forbidden)
			}
		}
	}
	if _, ok := AssetAt(Assets + "console.css"); ok {
		t.Error("an asset without its hash")
	}
}
