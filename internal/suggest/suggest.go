// Package suggest finds what somebody meant by a name that does not exist.
package suggest

import (
	"fmt"
	"strings"
)

// Name returns the hint for an unknown name: the known one that is at most two letters away, or of which one is the
// beginning of the other; if there is none, otherwise.
func Name(name string, known []string, otherwise string) string {
	best, bestDistance := "", 3
	for _, k := range known {
		d := distance(strings.ToLower(name[:min(len(name), 43)]), strings.ToLower(k))
		if strings.HasPrefix(name, k) || len(name) > 2 && strings.HasPrefix(k, name) {
			d = min(d, 2)
		}
		if d < bestDistance {
			best, bestDistance = k, d
		}
	}
	if best == "" {
		return otherwise
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// distance is the number of letters to insert, delete or replace to get from a to b (Levenshtein, 1965).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
