package reconcile

import (
	"container/heap"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/signer"
)

// Compare joins the calls with the uses of the key that the ledger has in Window. expected says of which issued requests
// a signature must be in the log, such as those under one vendor certificate; nil: of all.
func (l *Log) Compare(signings []ledger.Signing, expected func(ledger.Signing) bool) *Report {
	r := &Report{}
	var calls []Call
	for _, c := range l.Calls {
		if c.Error != "" {
			r.Refused++
		} else {
			calls = append(calls, c)
		}
	}
	r.Signatures = len(calls)
	slices.SortStableFunc(calls, func(a, b Call) int { return a.Time.Compare(b.Time) })
	made := map[record.ID]bool{} // issued requests whose signature is in the log
	if l.Cloud == AWS {
		r.byTime(r.byID(calls, signings, made), signings)
	} else {
		r.byReason(calls, signings, made)
	}
	for _, s := range signings {
		covered := !s.Intent.Before(l.From) && !s.End.After(l.To)
		if s.Kind == record.KindIssued && covered && !made[s.Request] && (expected == nil || expected(s)) {
			r.Missing = append(r.Missing, Missing{Index: s.Index, Time: s.End, Request: s.Request, Operation: s.Operation})
		}
	}
	return r
}

// byID explains the calls whose ids the ledger has, and returns the others.
func (r *Report) byID(calls []Call, signings []ledger.Signing, made map[record.ID]bool) (others []Call) {
	known, probed, issued := map[string]bool{}, map[string]bool{}, map[string]record.ID{}
	for _, s := range signings {
		if s.Kind == record.KindIssued && s.Operation != "" {
			issued[s.Operation] = s.Request
		}
		for _, name := range operations(s) {
			if answered(name) {
				known[name], probed[name] = true, probed[name] || s.Kind == record.KindProbe
			}
		}
	}
	for _, c := range calls {
		if c.ID == "" || !known[c.ID] {
			others = append(others, c)
			continue
		}
		if r.ByID++; probed[c.ID] {
			r.Probes++
		}
		if request, ok := issued[c.ID]; ok {
			made[request] = true
		}
	}
	return others
}

// operations returns the names of all requests to the key store that an entry has; "" for one without a name.
func operations(s ledger.Signing) (names []string) {
	if s.Operation != "" {
		names = append(names, s.Operation)
	}
	for _, a := range s.Attempts {
		names = append(names, a.Operation)
	}
	return names
}

// answered returns whether a name is the id that CloudTrail has. A probe without an id has the reason that was sent, which
// CloudTrail does not record.
func answered(name string) bool { return name != "" && !strings.HasPrefix(name, signer.ProbeReason) }

// unanswered returns how many signatures may have been made that the ledger has no id of.
func unanswered(s ledger.Signing) int {
	n := 0
	if s.Kind == record.KindIntent || s.Kind == record.KindUnknown || s.Erased {
		n = 1
	}
	for _, name := range operations(s) {
		if !answered(name) {
			n++
		}
	}
	return n
}

// byTime explains calls, in the order of their times, by uses of the key at that time: the one that ends first, which
// explains as many calls as can be.
func (r *Report) byTime(calls []Call, signings []ledger.Signing) {
	var open windows
	for _, s := range signings {
		if n := unanswered(s); n > 0 {
			open = append(open, newWindow(s, n))
		}
	}
	slices.SortFunc(open, func(a, b *window) int { return a.from.Compare(b.from) })
	var now windows
	for _, c := range calls {
		for len(open) > 0 && !open[0].from.After(c.Time) {
			heap.Push(&now, open[0])
			open = open[1:]
		}
		for len(now) > 0 && (now[0].to.Before(c.Time) || now[0].left == 0) {
			heap.Pop(&now)
		}
		if len(now) == 0 {
			r.Unexplained = append(r.Unexplained, Unexplained{c, "no entry has its request id, and no use of the key was open at that time"})
			continue
		}
		used := now[0]
		if used.left--; used.probe {
			r.Probes++
		}
		r.ByTime = append(r.ByTime, Explained{c, used.request, used.entry})
	}
}

// window is a time in which a use of the key may have made signatures.
type window struct {
	request  record.ID
	entry    int64
	probe    bool
	from, to time.Time
	left     int // signatures
}

func newWindow(s ledger.Signing, signatures int) *window {
	return &window{s.Request, s.Index, s.Kind == record.KindProbe, s.Intent.Add(-maxSkew), s.End.Add(maxSkew), signatures}
}

// windows is a heap; the first ends first.
type windows []*window

func (w windows) Len() int           { return len(w) }
func (w windows) Less(i, j int) bool { return w[i].to.Before(w[j].to) }
func (w windows) Swap(i, j int)      { w[i], w[j] = w[j], w[i] }
func (w *windows) Push(x any)        { *w = append(*w, x.(*window)) }
func (w *windows) Pop() any {
	last := len(*w) - 1
	x := (*w)[last]
	*w = (*w)[:last]
	return x
}

// byReason explains the calls whose reason is the id of a request, or that of a probe, as many as its entries say.
func (r *Report) byReason(calls []Call, signings []ledger.Signing, made map[record.ID]bool) {
	byRequest := map[string]*window{}
	issued := map[record.ID]bool{}
	for _, s := range signings {
		if s.Kind == record.KindProbe {
			probeWindows(byRequest, s)
			continue
		}
		n := len(s.Attempts)
		if s.Signed() || s.Erased {
			n++
		}
		byRequest[s.Request.String()] = newWindow(s, n)
		issued[s.Request] = s.Kind == record.KindIssued
	}
	for _, c := range calls {
		w := byRequest[c.Reason]
		why := ""
		switch {
		case c.Reason == "":
			why = "it has no reason, and hsmsign sends one"
		case w == nil:
			why = "its reason " + fault.Clip(c.Reason, 64) + " is not the id of a request at that time"
		case c.Time.Before(w.from) || c.Time.After(w.to):
			why = "the request in its reason was signed at another time"
		case w.left == 0:
			why = "the request in its reason has fewer signatures in the ledger"
		default:
			w.left--
			r.ByID++
			if w.probe {
				r.Probes++
				continue
			}
			made[w.request] = made[w.request] || issued[w.request]
			continue
		}
		r.Unexplained = append(r.Unexplained, Unexplained{c, why})
	}
}

// probeWindows adds what the entry of a probe explains: a signature for each time that it has a reason. The reason of a probe
// has a form of its own, so that it cannot be the id of a request.
func probeWindows(byReason map[string]*window, s ledger.Signing) {
	for _, name := range operations(s) {
		if !strings.HasPrefix(name, signer.ProbeReason) {
			continue
		}
		if byReason[name] == nil {
			byReason[name] = newWindow(s, 0)
		}
		byReason[name].left++
	}
}
