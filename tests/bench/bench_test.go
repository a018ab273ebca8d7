package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/coldstart"
)

func results(ms ...int) []coldstart.Result {
	var out []coldstart.Result
	for _, m := range ms {
		out = append(out, coldstart.Result{Pull: time.Duration(m) * time.Millisecond, Run: time.Second, Received: int64(m)})
	}
	return out
}

func TestReportTakesMediansAndRatios(t *testing.T) {
	r, err := newReport()
	require.NoError(t, err)
	r.add("python", "lan", 42, map[string][]coldstart.Result{
		"overlayfs": results(9000, 5000, 7000), "lazyerofs": results(100, 1000, 600, 50, 900),
	})
	require.Len(t, r.Rows, 2)
	require.Equal(t, "overlayfs", r.Rows[0].System)
	require.EqualValues(t, 8000, r.Rows[0].Ready)
	require.EqualValues(t, 6000, r.Rows[0].Min)
	require.EqualValues(t, 10000, r.Rows[0].Max)
	require.InDelta(t, 1.0, r.Rows[0].Speedup, 0)
	require.EqualValues(t, 1600, r.Rows[1].Ready)
	require.InDelta(t, 5.0, r.Rows[1].Speedup, 0)
	require.Contains(t, r.table(), "5.00x")

	dir := filepath.Join(t.TempDir(), "results")
	require.NoError(t, r.write(dir))
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 1)
	data, err := os.ReadFile(filepath.Join(dir, files[0].Name()))
	require.NoError(t, err)
	var back report
	require.NoError(t, json.Unmarshal(data, &back))
	require.Equal(t, r.Rows[1].Received, back.Rows[1].Received)
	require.Len(t, back.Rows[1].Runs, 5)
}

func TestSpreadOfNothing(t *testing.T) {
	low, mid, high := spread(nil, nil)
	require.Zero(t, low+mid+high)
	_, mid, _ = spread(results(1, 2), func(r coldstart.Result) int64 { return r.Received })
	require.EqualValues(t, 1, mid)
}

func TestParseRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, args := range [][]string{{"-images", "ruby"}, {"-lines", "moon"}, {"-rounds", "0"}} {
		_, err := parse(args)
		require.Error(t, err, "%q", args)
	}
	o, err := parse([]string{"-images", "go", "-lines", "wan", "-rounds", "1"})
	require.NoError(t, err)
	require.Equal(t, []string{"go"}, o.images)
}
