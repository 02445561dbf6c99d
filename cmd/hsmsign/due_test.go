package main

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/internal/testkit"
)

// property is one line of a calendar.
type property struct{ name, value string }

// parseCalendar reads the lines of an iCalendar text as RFC 5545 defines them, and returns those of each event.
func parseCalendar(text string) ([]map[string]string, error) {
	if !strings.HasSuffix(text, "\r\n") || !utf8.ValidString(text) {
		return nil, fmt.Errorf("it does not end with CRLF, or is not UTF-8")
	}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\r\n"), "\r\n") {
		if len(line) > 75 || line == "" || strings.ContainsAny(line, "\r\n") || !utf8.ValidString(line) {
			return nil, fmt.Errorf("line %q", line)
		}
	}
	form := regexp.MustCompile(`^([A-Z-]+(?:;VALUE=DATE)?):(.*)$`)
	var stack []string
	var events []map[string]string
	components := 0
	for _, line := range strings.Split(strings.TrimSuffix(strings.ReplaceAll(text, "\r\n ", ""), "\r\n"), "\r\n") {
		m := form.FindStringSubmatch(line)
		if m == nil || regexp.MustCompile(`[\x00-\x08\x0a-\x1f\x7f]`).MatchString(line) {
			return nil, fmt.Errorf("not a content line: %q", line)
		}
		p := property{m[1], m[2]}
		path := strings.Join(stack, "/")
		switch {
		case p.name == "BEGIN":
			stack = append(stack, p.value)
			components++
			if p.value == "VEVENT" {
				events = append(events, map[string]string{})
			}
		case p.name == "END":
			if len(stack) == 0 || stack[len(stack)-1] != p.value {
				return nil, fmt.Errorf("%q ends %q", p.value, path)
			}
			stack = stack[:len(stack)-1]
		case path == "VCALENDAR/VEVENT" || path == "VCALENDAR/VEVENT/VALARM":
			name := strings.TrimPrefix(path, "VCALENDAR/VEVENT") + p.name
			event := events[len(events)-1]
			if _, twice := event[name]; twice {
				return nil, fmt.Errorf("%s twice", name)
			}
			if err := checkProperty(p); err != nil {
				return nil, err
			}
			event[name] = p.value
		}
	}
	if len(stack) > 0 || components < 2 {
		return nil, fmt.Errorf("%d components; open: %v", components, stack)
	}
	return events, nil
}

// checkProperty checks the value of a property of an event or an alarm.
func checkProperty(p property) error {
	form := map[string]string{
		"UID": `[0-9a-f]{32}@hsmsign`, "DTSTAMP": `[0-9]{8}T[0-9]{6}Z`, "DTSTART;VALUE=DATE": `[0-9]{8}`, "TRANSP": `TRANSPARENT`, "ACTION": `DISPLAY`,
		"TRIGGER": `-P[0-9]+D`, "SUMMARY": `(?:[^\\;,]|\\[\\;,n])+`, "DESCRIPTION": `(?:[^\\;,]|\\[\\;,n])+`,
	}[p.name]
	if form == "" || !regexp.MustCompile("^"+form+"$").MatchString(p.value) {
		return fmt.Errorf("%s: %q", p.name, p.value)
	}
	return nil
}

// hostile are items with names that strangers chose.
func hostile() []ledgerapi.Due {
	at := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	long := strings.Repeat("ü,;\\\n", 60)
	return []ledgerapi.Due{
		{LedgerDue: api.LedgerDue{What: "push certificate", Customer: "acme", Account: "mdm@acme.example"}, Deadline: at, Open: true, ID: "1"},
		{LedgerDue: api.LedgerDue{What: dueIssuer, Certificate: "CN=" + long + "\r\x00\"BEGIN:VEVENT", SHA256: "ab"}, Deadline: at.AddDate(0, 1, 0), ID: "2"},
		{LedgerDue: api.LedgerDue{What: "request", Customer: "bolt\xff", Request: "77", At: "2026-01-01T00:00:00Z"}, Deadline: at.AddDate(0, 2, 0), Open: true, ID: "77"},
		{LedgerDue: api.LedgerDue{What: "request", Customer: "coil", Request: "78", At: "2026-01-01T00:00:00Z"}, ID: "78"}, // without a date
	}
}

func TestCalendar(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	events := testkit.Value(parseCalendar(string(ledgerapi.Calendar("example.com/mdm", hostile(), 30, now))))(t)
	if len(events) != 3 {
		t.Fatalf("%d events", len(events))
	}
	first := events[0]
	if first["DTSTART;VALUE=DATE"] != "20270301" || first["SUMMARY"] != "push certificate of acme expires" || first["DESCRIPTION"] != "Apple Account: mdm@acme.example" ||
		first["/VALARMTRIGGER"] != "-P30D" || first["/VALARMDESCRIPTION"] != first["SUMMARY"] || first["DTSTAMP"] != "20270101T000000Z" {
		t.Errorf("%+v", first)
	}
	if want := strings.Repeat(`ü\,\;\\\n`, 60); !strings.Contains(events[1]["SUMMARY"], want) {
		t.Errorf("%q", events[1]["SUMMARY"])
	}
	// A renewed certificate keeps its UID; another ledger has others.
	renewed := hostile()
	renewed[0].Deadline = renewed[0].Deadline.AddDate(1, 0, 0)
	again := testkit.Value(parseCalendar(string(ledgerapi.Calendar("example.com/mdm", renewed, 30, now.AddDate(0, 1, 0)))))(t)
	other := testkit.Value(parseCalendar(string(ledgerapi.Calendar("example.com/other", hostile(), 30, now))))(t)
	seen := map[string]bool{}
	for i := range events {
		if again[i]["UID"] != events[i]["UID"] || seen[events[i]["UID"]] || seen[other[i]["UID"]] {
			t.Errorf("event %d: UID %s, then %s, elsewhere %s", i, events[i]["UID"], again[i]["UID"], other[i]["UID"])
		}
		seen[events[i]["UID"]], seen[other[i]["UID"]] = true, true
	}
	if none := testkit.Value(parseCalendar(string(ledgerapi.Calendar("example.com/mdm", nil, 30, now))))(t); len(none) != 0 {
		t.Errorf("%d events of nothing", len(none))
	}
}

func TestDueMetrics(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families := testkit.Value(parser.TextToMetricFamilies(bytes.NewReader(dueMetrics(append(hostile(), hostile()...), now))))(t)
	series := func(name string) (all []*dto.Metric) { return families[name].GetMetric() }
	if got := series("hsmsign_due_expires_seconds"); len(got) != 3 || got[0].GetGauge().GetValue() != 1803902400 || got[0].TimestampMs != nil {
		t.Errorf("%v", got)
	}
	soon := map[string]float64{}
	for _, m := range series("hsmsign_due_soon") {
		soon[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
	}
	if soon["push certificate"] != 2 || soon["request"] != 2 || soon[dueIssuer] != 0 || len(soon) < 4 {
		t.Errorf("%v", soon)
	}
	if got := series("hsmsign_due_checked_seconds"); len(got) != 1 || got[0].GetGauge().GetValue() != float64(now.Unix()) {
		t.Errorf("%v", got)
	}
}
