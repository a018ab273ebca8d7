package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestMain lets this binary be the processes that are measured, as the program is.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && slices.Contains([]string{readerVerb, layerVerb, digestVerb, applyVerb}, os.Args[1]) {
		if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func tree(t *testing.T) (dir string, names []string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"a", "sub/b", "sub/c"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte(name), 2*page), 0o644))
		names = append(names, name)
	}
	return dir, names
}

func TestReaderDoesEveryKindOfJob(t *testing.T) {
	dir, names := tree(t)
	all := int64((1 + 5 + 5) * 2 * page)
	for kind, want := range map[string]sample{
		kindSequential: {Ops: 3, Bytes: all},
		kindStream:     {Ops: 3, Bytes: all},
		kindRandom:     {Ops: 12, Bytes: 12 * page},
		kindPages:      {Ops: 12, Bytes: 12 * page},
		kindWalk:       {Ops: 5},
	} {
		got, err := reader(t.Context(), job{Kind: kind, Root: dir, Paths: names, Reads: 12, Readers: 3})
		require.NoError(t, err, kind)
		for _, s := range got {
			require.Positive(t, s.Took, kind)
			require.Equal(t, want.Ops, s.Ops, kind)
			require.Equal(t, want.Bytes, s.Bytes, kind)
		}
	}
	got, err := reader(t.Context(), job{Kind: kindExec, Root: "/bin", Paths: []string{"sh", "-c", "exit 0"}})
	require.NoError(t, err)
	require.Len(t, got, 1)
}

func TestReaderReportsWhatFails(t *testing.T) {
	dir, names := tree(t)
	for _, j := range []job{
		{Kind: "dance", Root: dir},
		{Kind: kindSequential, Root: dir, Paths: []string{"missing"}},
		{Kind: kindRandom, Root: dir, Paths: names, Reads: 1000},
		{Kind: kindWalk, Root: filepath.Join(dir, "missing")},
		{Kind: kindExec, Root: "/bin", Paths: []string{"sh", "-c", "echo broken; exit 1"}},
	} {
		_, err := reader(t.Context(), j)
		require.Error(t, err, "%v", j)
		require.NotContains(t, err.Error(), "panic")
	}
}

func TestRandomReadsDistinctPages(t *testing.T) {
	dir, names := tree(t)
	all, done, err := openPages(job{Root: dir, Paths: names})
	require.NoError(t, err)
	defer done()
	require.Len(t, all, 22)
	seen := map[where]bool{}
	for _, w := range all {
		require.Zero(t, w.off%page)
		seen[w] = true
	}
	require.Len(t, seen, 22)
}

func TestDriverReportTakesRatiosWithinARound(t *testing.T) {
	r, err := newDriverReport()
	require.NoError(t, err)
	ms := func(n int) []sample { return []sample{{Took: time.Duration(n) * time.Millisecond, Ops: 2, Bytes: 4e6}} }
	// The machine is twice as slow in the second round: the ratio is the same.
	for _, took := range []int{10, 20, 10} {
		r.add("exec", "", statePlain, ms(took))
		r.add("exec", "fanotify", stateResident, ms(2*took))
	}
	r.add("walk", "", statePlain, []sample{{Name: "walk-cold", Took: 9}, {Name: "walk-warm", Took: 3}})
	require.NoError(t, r.finish())
	require.Len(t, r.Rows, 4)
	require.Equal(t, "walk-warm", r.Rows[3].Work)
	x := r.Rows[1]
	require.Equal(t, 20*time.Millisecond, x.Median)
	require.InDelta(t, 0.5, x.Low, 1e-9)
	require.InDelta(t, 0.5, x.Ratio, 1e-9)
	require.InDelta(t, 0.5, x.High, 1e-9)
	require.InDelta(t, 0.5, x.Best, 1e-9)
	require.InDelta(t, 1.0, r.Rows[0].Ratio, 1e-9)
	r.Skipped = []string{"fusetree: no"}
	table := r.table()
	require.Contains(t, table, "20.0   200  10000.0      0.50  0.50-0.50  0.50")
	require.Contains(t, table, "skipped fusetree: no")

	dir := t.TempDir()
	require.NoError(t, r.write(dir))
	files, err := filepath.Glob(filepath.Join(dir, "*-drivers.json"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	data, err := os.ReadFile(files[0])
	require.NoError(t, err)
	var back driverReport
	require.NoError(t, json.Unmarshal(data, &back))
	require.Equal(t, r.Rows, back.Rows)
	require.NotEmpty(t, back.Kernel)
	require.Len(t, back.Load, 2)
}

func TestDriverReportRefusesRoundsWithoutAPlainOne(t *testing.T) {
	r := &driverReport{}
	r.add("exec", "fanotify", stateResident, []sample{{Took: 1}})
	require.Error(t, r.finish())
}

func TestParseDrivers(t *testing.T) {
	for _, args := range [][]string{{"-work", "dance"}, {"-rounds", "0"}, {"fanotify"}} {
		_, err := parseDrivers(args)
		require.Error(t, err, "%q", args)
	}
	o, err := parseDrivers([]string{"-drivers", "fusetree,fanotify", "-work", "exec"})
	require.NoError(t, err)
	require.Equal(t, []string{"fusetree", "fanotify"}, o.drivers)
	require.Equal(t, []string{"exec"}, o.work)
}

func TestRunKnowsItsVerbs(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-h"}, nil, &out))
	for _, verb := range []string{"starts", "drivers", "memory"} {
		require.Contains(t, out.String(), verb)
		require.ErrorIs(t, run(t.Context(), []string{verb, "-h"}, nil, &out), flag.ErrHelp)
	}
	require.ErrorContains(t, run(t.Context(), []string{"dance"}, nil, &out), "no bench named")
	require.Error(t, run(t.Context(), []string{readerVerb}, strings.NewReader("{"), &out))
}

func TestReasonOfALogLine(t *testing.T) {
	require.Equal(t, `driver "x" does not exist: no driver works here`,
		reason(`time="t" level=warning msg="`+noLazy+`" error="driver \"x\" does not exist: no driver works here"`+"\n"))
	require.Equal(t, "plain", reason("plain\n"))
}

// TestAbsentDriverIsSkipped asks a real daemon.
func TestAbsentDriverIsSkipped(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	testenv.VerifyNoLeaks(t, dir)
	_, err := startHost(t.Context(), dir, "telepathy", nil)
	var not *unusableError
	require.ErrorAs(t, err, &not)
	require.Equal(t, "telepathy", not.driver)
	require.Contains(t, not.reason, "does not exist")
}
