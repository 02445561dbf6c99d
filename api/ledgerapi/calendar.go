package ledgerapi

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"hsmsign/api"
)

// Due is something that has to be done; see the command ledger due.
type Due struct {
	api.LedgerDue
	Deadline time.Time // zero: it has no date
	Open     bool      // it has to be done now, whatever the deadline
	ID       string    // does not change while the item is about the same thing
}

// About returns the name of the customer, or of the certificate and where it is; "-" if there is none.
func (item Due) About() string {
	name := cmp.Or(item.Customer, item.Certificate)
	switch {
	case name == "":
		return cmp.Or(item.Source, "-")
	case item.Source != "":
		return name + " (" + item.Source + ")"
	}
	return name
}

// When returns what has a date or an error, in words.
func (item Due) When() string {
	switch {
	case item.Error != nil:
		return "not read: " + item.Error.Message
	case item.Request == "":
		return "expires " + item.Deadline.Format(time.DateOnly)
	}
	when := "issued " + day(item.At) + ", not redeemed"
	if item.UseBefore != "" {
		when += ", use before " + day(item.UseBefore)
	}
	return when
}

// day returns the date of a time in the form of RFC 3339.
func day(at string) string { return at[:min(len(at), len(time.DateOnly))] }

// Calendar returns an iCalendar object (RFC 5545) with an event of one day for each item that has a date. The UID of an
// event does not change while the item is about the same thing, so a renewal moves the event. days is how long before it the alarm is.
func Calendar(origin string, items []Due, days int, now time.Time) []byte {
	c := &icalendar{}
	c.line("BEGIN", "VCALENDAR")
	c.line("VERSION", "2.0")
	c.line("PRODID", "-//hsmsign//ledger due//EN")
	events := 0
	for _, item := range items {
		if item.Deadline.IsZero() {
			continue
		}
		events++
		c.event(origin, item, days, now)
	}
	if events == 0 { // a calendar has at least one component (section 3.6)
		c.line("BEGIN", "X-NOTHING-DUE")
		c.line("DTSTAMP", now.UTC().Format(icalTime))
		c.line("END", "X-NOTHING-DUE")
	}
	c.line("END", "VCALENDAR")
	return []byte(c.text.String())
}

const icalTime = "20060102T150405Z"

// icalendar is an iCalendar text.
type icalendar struct{ text strings.Builder }

func (c *icalendar) event(origin string, item Due, days int, now time.Time) {
	summary := icalText(item.What + " of " + item.About() + " expires")
	var about []string
	if item.Request != "" {
		summary = icalText("last day before the request of " + item.About() + " is useless")
		about = append(about, "issued "+item.At, "request "+item.Request)
	}
	for _, f := range [][2]string{{"Apple Account", item.Account}, {"contact", item.Contact}, {"SHA-256", item.SHA256}} {
		if f[1] != "" {
			about = append(about, f[0]+": "+f[1])
		}
	}
	sum := sha256.Sum256([]byte(origin + "\n" + item.What + "\n" + item.ID))
	c.line("BEGIN", "VEVENT")
	c.line("UID", fmt.Sprintf("%x@hsmsign", sum[:16]))
	c.line("DTSTAMP", now.UTC().Format(icalTime))
	c.line("DTSTART;VALUE=DATE", item.Deadline.UTC().Format("20060102"))
	c.line("SUMMARY", summary)
	if len(about) > 0 {
		c.line("DESCRIPTION", icalText(strings.Join(about, "\n")))
	}
	c.line("TRANSP", "TRANSPARENT")
	c.line("BEGIN", "VALARM")
	c.line("ACTION", "DISPLAY")
	c.line("DESCRIPTION", summary)
	c.line("TRIGGER", fmt.Sprintf("-P%dD", days))
	c.line("END", "VALARM")
	c.line("END", "VEVENT")
}

// line adds a content line, folded after at most 75 bytes and not within a character (section 3.1).
func (c *icalendar) line(name, value string) {
	rest := name + ":" + value
	for limit := 75; len(rest) > limit; limit = 74 { // a continuation begins with a space
		end := limit
		for !utf8.RuneStart(rest[end]) {
			end--
		}
		c.text.WriteString(rest[:end] + "\r\n ")
		rest = rest[end:]
	}
	c.text.WriteString(rest + "\r\n")
}

// icalText escapes a value of type TEXT (section 3.3.11). Names in certificates are chosen by strangers.
func icalText(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return strings.NewReplacer(`\`, `\\`, ";", `\;`, ",", `\,`, "\n", `\n`).Replace(text)
}
