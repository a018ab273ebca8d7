package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/coldstart"
)

func TestParsePull(t *testing.T) {
	for _, args := range [][]string{{"-images", "ruby"}, {"-lines", "moon"}, {"-rounds", "0"}, {"extra"}} {
		_, err := parsePull(args)
		require.Error(t, err, "%q", args)
	}
	o, err := parsePull([]string{"-images", "go", "-lines", "none,wan"})
	require.NoError(t, err)
	require.Equal(t, []string{"none", "wan"}, o.lines)
}

func TestPullReport(t *testing.T) {
	runs := func(disk int64, ms ...int) (all []coldstart.Result) {
		for _, m := range ms {
			all = append(all, coldstart.Result{Pull: time.Duration(m) * time.Millisecond, CPU: time.Second, Run: 2 * time.Second, Disk: disk})
		}
		return all
	}
	r := &pullReport{}
	all := map[string][]coldstart.Result{}
	for n, s := range pullers {
		all[s.Name()] = runs(int64(n)<<20, 100*(n+1), 200*(n+1), 300)
	}
	r.add("go", "lan", 42, all)
	require.Len(t, r.Rows, len(pullers))
	require.InDelta(t, 1.0, r.Rows[0].Ratio, 1e-9)
	require.InDelta(t, 2.0, r.Rows[1].Ratio, 1e-9)
	require.InDelta(t, 1.0, r.Rows[1].Low, 1e-9)
	require.EqualValues(t, 1000, r.Rows[1].CPU)
	require.EqualValues(t, 1<<20, r.Rows[1].Disk)
	require.Contains(t, r.table(), "erofs")
	low, mid, high := lowMidHigh(nil)
	require.Zero(t, low+mid+high)
}
