package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/coldstart"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestMemoryOfARealDaemon runs the bench on an image that is small.
func TestMemoryOfARealDaemon(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	testenv.VerifyNoLeaks(t, dir)
	bed, err := coldstart.NewBed(dir, testenv.Profile{})
	require.NoError(t, err)
	defer func() { require.NoError(t, bed.Close()) }()
	ref := bed.Registry.Addr() + "/many:lazy"
	require.NoError(t, publishMany(t.Context(), dir, ref, 3, 250))
	rows, err := measureMemory(t.Context(), dir, "", ref, memoryOptions{layers: 3, files: 250, keep: dir})
	require.NoError(t, err)
	require.Len(t, rows, 4)
	for _, r := range rows {
		require.Positive(t, r.Resident, r.When)
		require.Positive(t, r.Anon, r.When)
		require.LessOrEqual(t, r.Resident, r.Peak)
	}
	profile, err := os.Stat(filepath.Join(dir, "-read.pprof"))
	require.NoError(t, err)
	require.Positive(t, profile.Size())
	r := memoryReport{Rows: rows, Skipped: []string{"fusetree: no"}}
	require.Contains(t, r.table(), "mounted")
	require.Contains(t, r.table(), "skipped fusetree: no")
}

func TestLayersAreDeterministicAndDiffer(t *testing.T) {
	layer := func(l int) []byte {
		var b bytes.Buffer
		require.NoError(t, writeLayer(&b, l, 2*filesPerDir+1))
		return b.Bytes()
	}
	one := layer(1)
	require.Equal(t, one, layer(1))
	require.NotEqual(t, one, layer(2))
	files, dirs := 0, 0
	for r := tar.NewReader(bytes.NewReader(one)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if h.Typeflag == tar.TypeDir {
			dirs++
			continue
		}
		require.Equal(t, manyName(1, files), h.Name)
		require.Positive(t, h.Size)
		files++
	}
	require.Equal(t, 2*filesPerDir+1, files)
	require.Equal(t, 1+3, dirs)
}

func TestSomeFilesLeaveEveryLayerIncomplete(t *testing.T) {
	for _, n := range []struct{ layers, files int }{{100, 10_000}, {2, 5}, {1, 2}} {
		names, err := someFiles(n.layers, n.files)
		require.NoError(t, err)
		require.NotEmpty(t, names)
		require.LessOrEqual(t, 2*len(names), n.layers*n.files+1)
	}
	_, err := someFiles(1, 1)
	require.Error(t, err)
}

func TestParseStatus(t *testing.T) {
	row, err := parseStatus("Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nRssAnon:\t 100 kB\n")
	require.NoError(t, err)
	require.Equal(t, memoryRow{Resident: 200, Peak: 300, Anon: 100}, row)
	for _, bad := range []string{"", "VmRSS:\t1 kB\n", "VmRSS:\tmuch kB\n"} {
		_, err := parseStatus(bad)
		require.Error(t, err, bad)
	}
}

func TestParseTimes(t *testing.T) {
	d, err := parseTimes("7 (a ) b) S 1 7 7 0 -1 0 0 0 0 0 120 34 0 0 20 0")
	require.NoError(t, err)
	require.Equal(t, 1540*time.Millisecond, d)
	for _, bad := range []string{"", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 0 0 0 0 0 x 34", "7 (a) S 1 7 7 0 -1 0 0 0 0 0 1 x"} {
		_, err := parseTimes(bad)
		require.Error(t, err, bad)
	}
}

func TestParseMemory(t *testing.T) {
	for _, args := range [][]string{{"-layers", "0"}, {"-files", "-1"}, {"fanotify"}} {
		_, err := parseMemory(args)
		require.Error(t, err, "%q", args)
	}
	o, err := parseMemory([]string{"-layers", "3", "-drivers", "fanotify"})
	require.NoError(t, err)
	require.Equal(t, 3, o.layers)
	require.Equal(t, []string{"fanotify"}, o.drivers)
}

func TestModelOfAProcessor(t *testing.T) {
	require.Equal(t, "Some CPU", model("processor\t: 0\nmodel name\t: Some CPU\n"))
	require.NotEmpty(t, model(""))
}
