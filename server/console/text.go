package console

import (
	"fmt"
	"html/template"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// functions are those that templates use; see the comment of the package.
var functions = template.FuncMap{
	"text": Text, "fix": Fix, "lines": Lines, "short": Short, "time": Time, "badge": Badge, "hash": Hash, "days": Days, "event": Event,
	"asset": func(name string) string { return assets()[name].Path },
}

// How many characters of a text are shown at once.
const (
	maxText  = 160
	maxShort = 80
)

// mark returns how a character is shown that has no shape of its own, or that changes the order of the others; "": as itself.
// Such characters are controls (ANSI escapes begin with one), format characters (marks of direction, zero-width joiners, tags), spaces
// other than the usual one, fillers, and bytes that are not UTF-8.
func mark(r rune, size int, raw string) string {
	switch {
	case r == utf8.RuneError && size == 1:
		return fmt.Sprintf("0x%02X", raw[0])
	case r == ' ':
		return ""
	case !unicode.IsPrint(r), strings.ContainsRune("\u115f\u1160\u2800\u3164\uffa0\u034f", r), unicode.Is(unicode.Variation_Selector, r):
		return fmt.Sprintf("U+%04X", r)
	}
	return ""
}

// encode writes a text with visible marks, up to a number of characters, and returns whether that was all. keep are characters that need no mark.
func encode(out *strings.Builder, text string, limit int, keep string, plain, marked func(string) string) (whole bool) {
	count, begun := 0, 0
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if count == limit {
			out.WriteString(plain(text[begun:i]))
			return false
		}
		count++
		if m := mark(r, size, text[i:]); m != "" && !strings.ContainsRune(keep, r) {
			out.WriteString(plain(text[begun:i]))
			out.WriteString(marked(m))
			begun = i + size
		}
		i += size
	}
	out.WriteString(plain(text[begun:]))
	return true
}

func span(m string) string { return `<span class="mark">` + m + `</span>` }

// bounded returns a text as HTML, at most limit characters of it.
func bounded(text string, limit int, keep string) (html string, whole bool) {
	var out strings.Builder
	whole = encode(&out, text, limit, keep, template.HTMLEscapeString, span)
	return "<bdi>" + out.String() + "</bdi>", whole
}

// Text returns a text of a stranger as HTML. A text of more than 160 characters is clipped, in an element that opens to show all.
// It is not for headings and paragraphs, which cannot contain such an element.
func Text(text string) template.HTML {
	first, whole := bounded(text, maxText, "")
	if whole {
		return template.HTML(first) //nolint:gosec // escaped by encode
	}
	all, _ := bounded(text, len(text), "")
	return template.HTML(fmt.Sprintf(`<details class="long"><summary>%s… <span class="hint">all %d characters</span></summary><div>%s</div></details>`, //nolint:gosec // escaped by encode
		first, utf8.RuneCountInString(text), all))
}

// Lines returns a text of several lines as HTML, for <pre>.
func Lines(text string) template.HTML {
	html, _ := bounded(text, len(text), "\n\t")
	return template.HTML(html) //nolint:gosec // escaped by encode
}

// pagesOf replaces, in what the API says is to be done, its routes by the pages that show the same.
var pagesOf = strings.NewReplacer(
	"GET /v1/me", "the page Me", "GET /v1/vendor", "the page Vendor", "GET /v1/customers", "the page Customers", "GET /v1/entries", "the page Ledger",
	"the id is in the answer to POST /v1/requests", "the page Sign and the page Ledger have links to requests",
	"GET /v1/openapi.yaml describes it", "load the page again, and send its form", "GET /v1/openapi.yaml describes the API", "begin at the start page",
)

// Fix returns what is to be done, as the API says it, for a reader of pages; HTML.
func Fix(text string) template.HTML { return Lines(pagesOf.Replace(text)) }

// Short returns a text of a stranger as plain text of one line and at most 80 characters; html/template escapes it.
func Short(text string) string {
	var out strings.Builder
	whole := encode(&out, text, maxShort, "", func(s string) string { return s }, func(m string) string { return "[" + m + "]" })
	if !whole {
		out.WriteString("…")
	}
	return out.String()
}

// Time returns a <time> element, to the minute, in UTC. at is RFC 3339 or a time.Time; of another text it returns the text.
func Time(at any) template.HTML {
	t, ok := at.(time.Time)
	if !ok {
		parsed, err := time.Parse(time.RFC3339, fmt.Sprint(at))
		if err != nil {
			return Text(fmt.Sprint(at))
		}
		t = parsed
	}
	if t.IsZero() {
		return ""
	}
	t = t.UTC()
	return template.HTML(fmt.Sprintf(`<time datetime="%s">%s UTC</time>`, t.Format(time.RFC3339), t.Format("2006-01-02 15:04"))) //nolint:gosec // digits
}

// colors are the classes of badges, by what is shown. What is not here has none.
var colors = map[string]string{
	"issued": "good", "signed": "good", "stored": "good", "allowed": "good", "ok": "good", "ready": "good", "good": "good", "active": "good", "valid": "good", "approved": "good", "unfrozen": "good", "same": "good", "valid longer": "good",
	"pending": "warn", "warning": "warn", "intent": "warn", "unknown": "warn", "expires soon": "warn", "waiting": "warn", "changed": "warn", "first": "warn", "superseded": "",
	"refused": "bad", "failed": "bad", "rejected": "bad", "expired": "bad", "error": "bad", "critical": "bad", "not ready": "bad", "frozen": "bad", "defective": "bad",
}

// Badge returns a state as a word, with a color that repeats what the word says.
func Badge(state any) template.HTML {
	word := Short(fmt.Sprint(state))
	return template.HTML(fmt.Sprintf(`<span class="badge %s">%s</span>`, colors[word], template.HTMLEscapeString(word))) //nolint:gosec // escaped
}

// Hash returns a hash or an id, which may break anywhere.
func Hash(text string) template.HTML {
	html, _ := bounded(text, maxText, "")
	return template.HTML(`<code class="hash">` + html + `</code>`) //nolint:gosec // escaped by encode
}

// Days returns how many days are left, in words.
func Days(n int) string {
	switch {
	case n < 0:
		return "expired"
	case n == 0:
		return "less than a day left"
	case n == 1:
		return "1 day left"
	}
	return fmt.Sprintf("%d days left", n)
}
