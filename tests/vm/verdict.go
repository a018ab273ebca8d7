package vm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// ErrNoVerdict reports a guest that did not say that it was done.
var ErrNoVerdict = errors.New("the guest gave no verdict")

// errMalformed reports a verdict that no init of ours wrote.
var errMalformed = errors.New("malformed verdict")

// maxLine bounds a line of a verdict in bytes: a guest that prints rubbish must
// not fill the host's memory.
const maxLine = 1 << 20

// Frame returns a line of the init of a guest: verbs are "begin PACKAGE", "end
// PACKAGE EXITCODE DURATION", "trouble TEXT" and "done".
func Frame(nonce, verb string) string { return "vm " + nonce + " " + verb + "\n" }

// Test is one line of a test's outcome.
type Test struct {
	Name   string // as in go test's output, with its parents'
	Status string // PASS, FAIL or SKIP
}

// Outcome is what one Run came to.
type Outcome struct {
	Package string
	// Ended says that the binary ended; Exit is its exit code, -1 after a signal.
	Ended bool
	Exit  int
	// Took is how long it ran by the guest's clock.
	Took  time.Duration
	Tests []Test

	out strings.Builder
}

// Output is everything that the binary printed.
func (o *Outcome) Output() string { return o.out.String() }

// Err says why the run failed, or nil. A run in which nothing passed, or anything
// was skipped, proves nothing.
func (o *Outcome) Err() error {
	if !o.Ended {
		return fmt.Errorf("%s did not end: %w", o.Package, ErrNoVerdict)
	}
	passed := 0
	for _, t := range o.Tests {
		if t.Status == "SKIP" {
			return fmt.Errorf("%s: %s was skipped", o.Package, t.Name)
		}
		if t.Status == "PASS" {
			passed++
		}
	}
	if o.Exit != 0 {
		return fmt.Errorf("%s ended with exit code %d", o.Package, o.Exit)
	}
	if passed == 0 {
		return fmt.Errorf("%s ran no test", o.Package)
	}
	return nil
}

// Verdict is what a guest wrote.
type Verdict struct {
	Outcomes []*Outcome
	// Trouble is what the init could not do.
	Trouble []string
	// Done says that the plan was carried out to its end.
	Done bool
}

// ParseVerdict reads what a guest wrote to its verdict port. What was read comes
// with an error too: ErrNoVerdict when it ends early.
func ParseVerdict(r io.Reader, nonce string) (*Verdict, error) {
	v := &Verdict{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	var open *Outcome
	for lines.Scan() {
		line := strings.TrimSuffix(lines.Text(), "\r")
		verb, ours := strings.CutPrefix(line, "vm "+nonce+" ")
		switch {
		case v.Done:
			return v, fmt.Errorf("%w: something follows the end", errMalformed)
		case ours:
			var err error
			if open, err = v.frame(open, verb); err != nil {
				return v, err
			}
		case open != nil:
			open.line(line)
		}
	}
	if err := lines.Err(); err != nil {
		return v, fmt.Errorf("reading a verdict: %w", err)
	}
	if !v.Done {
		return v, ErrNoVerdict
	}
	return v, nil
}

// frame acts on a line of the init and returns the outcome that is open after it.
func (v *Verdict) frame(open *Outcome, verb string) (*Outcome, error) {
	word, rest, _ := strings.Cut(verb, " ")
	switch {
	case word == "begin" && open == nil && rest != "":
		open = &Outcome{Package: rest}
		v.Outcomes = append(v.Outcomes, open)
		return open, nil
	case word == "end" && open != nil:
		if open.end(rest) {
			return nil, nil
		}
	case word == "trouble":
		v.Trouble = append(v.Trouble, rest)
		return open, nil
	case word == "done" && open == nil && rest == "":
		v.Done = true
		return nil, nil
	}
	return open, fmt.Errorf("%w: %q", errMalformed, verb)
}

// end takes the words behind "end", and says whether they are what they should be.
func (o *Outcome) end(rest string) bool {
	words := strings.Split(rest, " ")
	if len(words) != 3 || words[0] != o.Package {
		return false
	}
	exit, err := strconv.Atoi(words[1])
	took, derr := time.ParseDuration(words[2])
	if err != nil || derr != nil {
		return false
	}
	o.Ended, o.Exit, o.Took = true, exit, took
	return true
}

// line takes one line of a test binary.
func (o *Outcome) line(s string) {
	o.out.WriteString(s + "\n")
	rest, ok := strings.CutPrefix(strings.TrimLeft(s, " "), "--- ")
	if !ok {
		return
	}
	status, name, ok := strings.Cut(rest, ": ")
	if !ok || (status != "PASS" && status != "FAIL" && status != "SKIP") {
		return
	}
	name, _, ok = strings.Cut(name, " (")
	if ok && name != "" {
		o.Tests = append(o.Tests, Test{Name: name, Status: status})
	}
}

// Err says why the guest failed, or nil.
func (v *Verdict) Err() error {
	var errs []error
	for _, t := range v.Trouble {
		errs = append(errs, errors.New("the guest's init: "+t))
	}
	if len(v.Outcomes) == 0 {
		errs = append(errs, errors.New("the guest ran nothing"))
	}
	for _, o := range v.Outcomes {
		errs = append(errs, o.Err())
	}
	return errors.Join(errs...)
}
