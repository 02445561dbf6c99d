package ledger_test

import (
	"fmt"
	"strings"
	"testing"

	"hsmsign/fault"
	"hsmsign/ledger"
)

// Witnesses that cannot be used are refused with what is wrong.
func TestCheckWitnesses(t *testing.T) {
	var all []ledger.Witness
	for i := range 17 {
		name := fmt.Sprintf("w%d", i)
		_, key, err := ledger.GenerateKey(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ledger.Witness{Name: name, Operator: fmt.Sprint("operator ", i/2), URL: "https://" + name, Verifier: key})
	}
	with := func(change func(w *ledger.Witness)) []ledger.Witness {
		list := append([]ledger.Witness{}, all[:3]...)
		change(&list[1])
		return list
	}
	for _, tt := range []struct {
		list     []ledger.Witness
		required int
		want     string
	}{
		{nil, 0, ""},
		{all[:3], 2, ""},
		{all[:16], 8, ""},
		{with(func(w *ledger.Witness) { w.Operator, w.URL = "", "" }), 3, ""},
		{all[:3], 3, "the witnesses have 2 operators"},
		{all[:3], -1, "are required"},
		{nil, 1, "the witnesses have 0 operators"},
		{all, 1, "17 witnesses"},
		{with(func(w *ledger.Witness) { w.Name = "w0" }), 0, `two witnesses are called "w0"`},
		{with(func(w *ledger.Witness) { w.Verifier = all[0].Verifier }), 0, `"w0" and "w1" have the same verifier key`},
		{with(func(w *ledger.Witness) { w.Verifier = "x" }), 0, `witness "w1": the verifier key`},
		{with(func(w *ledger.Witness) { w.URL = "http://w1" }), 0, "only https"},
		{with(func(w *ledger.Witness) { w.Name = "a\nb" }), 0, "the name of a witness"},
		{with(func(w *ledger.Witness) { w.Name, w.Operator = "", "x" }), 0, "the name of a witness"},
		{with(func(w *ledger.Witness) { w.Operator = strings.Repeat("x", 129) }), 0, "the operator of a witness"},
	} {
		err := ledger.CheckWitnesses(tt.list, tt.required)
		if tt.want == "" && err != nil || tt.want != "" && (fault.KindOf(err) != fault.Usage || fault.Hint(err) == "" || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}
