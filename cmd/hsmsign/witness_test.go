package main

import (
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/ledger/witnesstest"
)

// runningWitnesses are those of all scripts, by URL.
var runningWitnesses sync.Map

// cmdWitness: witness NAME start ALGORITHM FILE starts a witness for the ledger whose verifier key is in the file, and sets
// $NAME_URL and $NAME_KEY. witness NAME honest|down|slow|garbage|conflict N|forget ORIGIN changes what it does.
func cmdWitness(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: witness NAME start ALGORITHM FILE | witness NAME honest|down|slow|garbage|conflict N|forget ORIGIN")
	}
	name := strings.ToUpper(args[0])
	if args[1] == "start" {
		key := strings.TrimSpace(ts.ReadFile(args[3]))
		w, err := witnesstest.Start("witness.example/"+args[0], witnesstest.Algorithm(args[2]), key)
		ts.Check(err)
		ts.Defer(w.Stop)
		runningWitnesses.Store(w.URL, w)
		ts.Setenv(name+"_URL", w.URL)
		ts.Setenv(name+"_KEY", w.Key)
		ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pub"), []byte(w.Key+"\n"), 0o600))
		return
	}
	found, ok := runningWitnesses.Load(ts.Getenv(name + "_URL"))
	if !ok {
		ts.Fatalf("there is no witness %s", args[0])
	}
	w := found.(*witnesstest.Witness)
	var answer http.HandlerFunc
	switch args[1] {
	case "honest":
	case "down":
		answer = witnesstest.Down
	case "slow":
		answer = witnesstest.Slow
	case "garbage":
		answer = w.Garbage
	case "conflict":
		size, err := strconv.ParseInt(args[2], 10, 64)
		ts.Check(err)
		answer = witnesstest.Conflict(size)
	case "forget":
		w.Forget(args[2])
	default:
		ts.Fatalf("unknown %q", args[1])
	}
	w.Answer(answer)
}
