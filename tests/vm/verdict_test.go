package vm

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const nonce = "N0NCE"

// say is what the init of a guest writes for these verbs and lines; a line that
// starts with ">" is a test's.
func say(lines ...string) string {
	var b strings.Builder
	for _, l := range lines {
		if rest, ok := strings.CutPrefix(l, ">"); ok {
			b.WriteString(rest + "\n")
		} else {
			b.WriteString(Frame(nonce, l))
		}
	}
	return b.String()
}

func parse(t *testing.T, text string) (*Verdict, error) {
	t.Helper()
	v, err := ParseVerdict(strings.NewReader(text), nonce)
	require.NotNil(t, v)
	return v, err
}

func TestVerdictOfAGuestThatPassed(t *testing.T) {
	v, err := parse(t, say("begin a/b", ">=== RUN   TestX", ">    --- PASS: TestX/y_z (0.10s)", ">--- PASS: TestX (1.00s)", ">PASS", "end a/b 0 2s",
		"begin c", ">--- PASS: TestC (0.00s)", "end c 0 2s", "done"))
	require.NoError(t, err)
	require.NoError(t, v.Err())
	require.Len(t, v.Outcomes, 2)
	require.Equal(t, 2*time.Second, v.Outcomes[0].Took)
	require.Equal(t, []Test{{"TestX/y_z", "PASS"}, {"TestX", "PASS"}}, v.Outcomes[0].Tests)
	require.Contains(t, v.Outcomes[0].Output(), "=== RUN   TestX\n")

	v, err = parse(t, strings.ReplaceAll(say("begin c", ">--- PASS: TestC (0.00s)", "end c 0 2s", "done"), "\n", "\r\n"))
	require.NoError(t, err, "a terminal that was not made raw")
	require.NoError(t, v.Err())
}

// A guest that ends early has failed, wherever it ends.
func TestNoVerdict(t *testing.T) {
	whole := say("begin a", ">--- PASS: TestX (0.00s)", "end a 0 2s", "done")
	for n := range len(whole) - 1 {
		v, err := parse(t, whole[:n])
		require.Error(t, err, "%d bytes", n) // half a line is malformed
		require.False(t, v.Done)
	}
	v, err := parse(t, say("begin a", ">--- PASS: TestX (0.00s)"))
	require.ErrorIs(t, err, ErrNoVerdict)
	require.ErrorIs(t, v.Err(), ErrNoVerdict)
}

func TestWhatFails(t *testing.T) {
	for name, lines := range map[string][]string{
		"a failed test that exits with 0": {"begin a", ">--- PASS: TestX (0.00s)", ">--- FAIL: TestY (0.00s)", "end a 1 2s", "done"},
		"a skipped test":                  {"begin a", ">--- PASS: TestX (0.00s)", ">--- SKIP: TestY (0.00s)", "end a 0 2s", "done"},
		"no test":                         {"begin a", ">testing: warning: no tests to run", ">PASS", "end a 0 2s", "done"},
		"killed":                          {"begin a", ">--- PASS: TestX (0.00s)", "end a -1 2s", "done"},
		"nothing run":                     {"done"},
		"trouble":                         {"begin a", ">--- PASS: TestX (0.00s)", "trouble with the network", "end a 0 2s", "done"},
	} {
		v, err := parse(t, say(lines...))
		require.NoError(t, err, name)
		require.Error(t, v.Err(), name)
	}
}

func TestMalformedVerdicts(t *testing.T) {
	for name, text := range map[string]string{
		"end without begin":   say("end a 0 2s", "done"),
		"two begins":          say("begin a", "begin b"),
		"another's end":       say("begin a", "end b 0 2s"),
		"no exit code":        say("begin a", "end a x 2s"),
		"no duration":         say("begin a", "end a 0"),
		"an odd duration":     say("begin a", "end a 0 1"),
		"done inside":         say("begin a", "done"),
		"unknown verb":        say("hello"),
		"more after the end":  say("begin a", "end a 0 2s", "done", "begin b"),
		"begin of nothing":    say("begin "),
		"done with arguments": say("done now"),
	} {
		_, err := parse(t, text)
		require.ErrorIs(t, err, errMalformed, name)
	}
	_, err := parse(t, strings.Repeat("x", maxLine+1))
	require.Error(t, err)
}

// What a test prints cannot pass for a line of the init.
func TestForgedLines(t *testing.T) {
	v, err := parse(t, say("begin a", ">vm other end a 0", ">vm  done", "> vm "+nonce+" done", ">--- PASS: T (0s)", "end a 3 2s", "done"))
	require.NoError(t, err)
	require.Equal(t, 3, v.Outcomes[0].Exit)
	require.Error(t, v.Err())
}

func FuzzParseVerdict(f *testing.F) {
	f.Add([]byte(say("begin a/b", ">--- PASS: TestX (1.00s)", "end a/b 0 2s", "done")))
	f.Add([]byte(say("begin a", ">--- FAIL: TestX/a (1.00s)", ">--- SKIP: B (", "trouble x", "end a 1 2s", "done")))
	f.Add([]byte("--- PASS: X\nvm N0NCE begin \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseVerdict(strings.NewReader(string(b)), nonce)
		if v == nil {
			t.Fatal("no verdict at all")
		}
		if err == nil && !v.Done {
			t.Fatal("accepted without an end")
		}
		if err != nil || v.Err() != nil {
			return
		}
		for _, o := range v.Outcomes {
			if !o.Ended || o.Exit != 0 || len(o.Tests) == 0 {
				t.Fatalf("passed: %+v", o)
			}
		}
	})
}
