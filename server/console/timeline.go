package console

import (
	"fmt"
	"strings"
	"time"
)

// Timeline is a picture of when push certificates expire: a bar for each customer from today to the end, in units of the SVG.
type Timeline struct {
	Width, Height int
	Today         int    // x of today
	Bottom        int    // y of the end of the lines of the scale
	Text          string // the same in words
	Months        []TimelineMark
	Bars          []TimelineBar
	Left          int // customers that are in the table only
}

// TimelineMark is a month of the scale.
type TimelineMark struct {
	X     int
	Label string
}

// TimelineBar is a customer.
type TimelineBar struct {
	Y, TextY    int
	X, Width    int
	LabelX      int
	Name, Label string
	Class       string // of the color: good, warn or bad
}

const (
	timelineRows  = 25 // more do not fit on a screen
	timelineNames = 210
	timelineSpace = 620 // of the scale
	timelineRow   = 22
	timelineTop   = 26
	timelinePast  = 60  // days before today
	timelineAhead = 400 // days after today: a push certificate is valid for a year
	timelineName  = 26  // characters
)

// timelineX returns the place of a day; days that are not on the scale are at its ends.
func timelineX(days int) int {
	days = max(-timelinePast, min(timelineAhead, days))
	return timelineNames + (days+timelinePast)*timelineSpace/(timelinePast+timelineAhead)
}

// NewTimeline returns the picture of customers, the first ones of them in their order; nil if none has a push certificate.
func NewTimeline(rows []CustomerRow, now time.Time) *Timeline {
	t := &Timeline{Width: timelineNames + timelineSpace + 130, Today: timelineX(0)}
	count := map[string]int{}
	var first *CustomerRow
	for i := range rows {
		row := &rows[i]
		if row.Expiry.At.IsZero() {
			continue
		}
		count[row.Expiry.State]++
		if first == nil || row.Expiry.At.Before(first.Expiry.At) {
			first = row
		}
		if len(t.Bars) == timelineRows {
			t.Left++
			continue
		}
		t.Bars = append(t.Bars, newTimelineBar(*row, len(t.Bars)))
	}
	if first == nil {
		return nil
	}
	t.Bottom = timelineTop + len(t.Bars)*timelineRow
	t.Height = t.Bottom + 4
	t.Months = timelineMonths(now)
	t.Text = fmt.Sprintf("Push certificates on this page: %d. Expired: %d. Expiring within %d days: %d. The first is that of %s, on %s. The table has all dates.",
		count["expired"]+count["expires soon"]+count["valid"], count["expired"], soonDays, count["expires soon"], Short(first.Name), first.Expiry.At.UTC().Format(time.DateOnly))
	return t
}

func newTimelineBar(row CustomerRow, n int) TimelineBar {
	from, to := timelineX(0), timelineX(row.Expiry.Days)
	return TimelineBar{
		Y: timelineTop + n*timelineRow + 4, TextY: timelineTop + n*timelineRow + 16, X: min(from, to), Width: max(from, to) - min(from, to) + 3, LabelX: max(from, to) + 9,
		Name: clipped(Short(row.Name), timelineName), Label: row.Expiry.Left(),
		Class: map[string]string{"expired": "bad", "expires soon": "warn", "valid": "good"}[row.Expiry.State],
	}
}

// timelineMonths returns the first days of months, every second one, so that their names have space.
func timelineMonths(now time.Time) (marks []TimelineMark) {
	now = now.UTC()
	for n := -1; ; n += 2 {
		first := time.Date(now.Year(), now.Month()+time.Month(n), 1, 0, 0, 0, 0, time.UTC)
		days := int(first.Sub(now).Hours() / 24)
		if days > timelineAhead-30 {
			return marks
		}
		if days > -timelinePast {
			marks = append(marks, TimelineMark{timelineX(days), first.Format("Jan 2006")})
		}
	}
}

// clipped returns at most so many characters of a text.
func clipped(text string, limit int) string {
	if runes := []rune(text); len(runes) > limit {
		return strings.TrimSpace(string(runes[:limit-1])) + "…"
	}
	return text
}
