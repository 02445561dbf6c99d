package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"hsmsign/fault"
	"hsmsign/internal/console"
)

// asking is one question of setup.
type asking struct {
	flag     string   // whose value is the answer
	question string   // one line
	def      string   // answer of an empty line, and without a person
	choices  []string // answers by number; another answer is accepted too
	optional bool     // an empty answer is one
	// check refuses an answer; it may change it.
	check func(answer *string) error
}

// answer returns the answer to a question: that of its flag, the person's, or the default. A person is asked again until check accepts;
// a refused PIN ends setup, because tokens lock themselves.
func (job *setupJob) answer(ctx context.Context, a asking) (string, error) {
	given, from := job.str(a.flag)
	if given == "" && job.silent {
		given, from = a.def, "--"+a.flag
		if given == "" && !a.optional {
			return "", fault.Usage.Errorf("no --%s given", a.flag).Fix("give it, or leave out --yes to be asked")
		}
	}
	if given != "" || job.silent {
		if err := a.accept(&given); err != nil {
			return "", fmt.Errorf("%s: %w", from, err)
		}
		return given, nil
	}
	for {
		text, err := job.ask(ctx, a)
		if err != nil {
			return "", err
		}
		if text == "" && !a.optional {
			continue
		}
		if err = a.accept(&text); err == nil || final(err) {
			return text, err
		}
		job.p.con.Fail(err)
	}
}

// final returns whether an error of a check ends the dialogue: a refused PIN, because tokens lock themselves, an interruption, or a
// terminal that does not answer.
func final(err error) bool {
	kind := fault.KindOf(err)
	return kind == fault.Auth || kind == fault.Interrupted || errors.Is(err, errNoAnswer)
}

// errNoAnswer wraps the errors of the terminal.
var errNoAnswer = errors.New("nobody answers")

// has returns whether a question has its answer from a flag or a variable.
func (job *setupJob) has(flag string) bool {
	given, _ := job.str(flag)
	return given != ""
}

// accept checks an answer.
func (a asking) accept(text *string) error {
	if a.check == nil || *text == "" {
		return nil
	}
	return a.check(text)
}

// ask shows a question with its choices, and returns what the person typed, the choice of a number, or the default.
func (job *setupJob) ask(ctx context.Context, a asking) (string, error) {
	for i, choice := range a.choices {
		job.p.con.Infof("  %d  %s", i+1, choice)
	}
	question := "hsmsign: " + a.question
	if a.def != "" {
		question += " [" + a.def + "]"
	} else if a.optional {
		question += " [none]"
	}
	text, err := console.Ask(ctx, question+": ")
	if err != nil {
		return "", fault.Errorf("%w: %w", errNoAnswer, err)
	}
	if n, err := strconv.Atoi(text); err == nil && 0 < n && n <= len(a.choices) {
		text, _, _ = strings.Cut(a.choices[n-1], "  ")
	}
	if text == "" {
		text = a.def
	}
	return text, nil
}

// files returns the answer to a question about any number of files, separated as in PATH.
func (job *setupJob) files(ctx context.Context, flag, question string) ([]string, error) {
	given, _ := job.list(flag)
	if given == nil && !job.silent {
		text, err := job.ask(ctx, asking{question: question, optional: true})
		if err != nil {
			return nil, err
		}
		given = filepath.SplitList(text)
	}
	var files []string // nil, as in a configuration without them
	for _, file := range given {
		if err := job.absolute(&file); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// absolute makes the path of a file absolute, as the configuration needs it: the service runs elsewhere. References do not change.
func (job *setupJob) absolute(path *string) (err error) {
	if !job.store.IsReference(*path) {
		*path, err = filepath.Abs(*path)
	}
	return err
}

// isFile refuses a path that is not that of a regular file.
func isFile(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return fault.Usage.Errorf("%q is not a regular file", path).Fix("name a file")
	}
	if err != nil {
		return fault.Usage.Errorf("file %q: %w", path, err).Fix("name a file that exists")
	}
	return nil
}
