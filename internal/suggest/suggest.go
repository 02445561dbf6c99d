// Package suggest finds the known name that is similar to an unknown one. Its function is safe for concurrent use.
package suggest

import (
	"fmt"
	"strings"
)

// maxName is how many bytes of an unknown name are compared.
const maxName = 43

// Name returns the hint "did you mean ...?" for an unknown name, with the most similar of the known names. Names are similar
// if two edits make them equal (ignoring case) or if one is a prefix of the other. Without a similar name, Name returns
// otherwise.
func Name(name string, known []string, otherwise string) string {
	best, bestDistance := "", 3
	for _, k := range known {
		d := distance(strings.ToLower(name[:min(len(name), maxName)]), strings.ToLower(k))
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

// distance returns the number of bytes to insert, delete or replace to turn a into b (Levenshtein, 1965).
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
