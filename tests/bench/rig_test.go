package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestDriversOfARealLayer runs the bench of drivers once, with what takes the
// least time, and a driver that nobody has.
func TestDriversOfARealLayer(t *testing.T) {
	testenv.RequireRoot(t)
	dir := t.TempDir()
	testenv.VerifyNoLeaks(t, dir)
	var out bytes.Buffer
	args := []string{"-drivers", "telepathy,fanotify", "-work", "exec,stream", "-rounds", "1", "-dir", dir, "-out", dir}
	require.NoError(t, runDrivers(t.Context(), args, &out), out.String())
	require.Contains(t, out.String(), "skipped telepathy")
	files, err := filepath.Glob(filepath.Join(dir, "*-drivers.json"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	data, err := os.ReadFile(files[0])
	require.NoError(t, err)
	var r driverReport
	require.NoError(t, json.Unmarshal(data, &r))
	require.Len(t, r.Skipped, 1)
	seen := map[string]int{}
	for _, x := range r.Rows {
		require.Positive(t, x.Median, "%+v", x)
		require.Positive(t, x.Ratio, "%+v", x)
		seen[x.Work+" "+x.State]++
	}
	for _, state := range append(states, statePlain) {
		require.Equal(t, 1, seen["exec "+state], state)
	}
	require.Zero(t, seen["stream "+stateCold], "it reads everything before it measures")
	require.Equal(t, 1, seen["stream "+stateResident])
}

func TestDataFileIsTheOnlyOne(t *testing.T) {
	root := t.TempDir()
	h := &host{daemon: &testenv.Daemon{Root: root}}
	at := filepath.Join(root, "cache", "sha256", "abc")
	require.NoError(t, os.MkdirAll(at, 0o755))
	_, err := h.dataFile()
	require.ErrorContains(t, err, "one layer")
	require.NoError(t, os.WriteFile(filepath.Join(at, "data"), nil, 0o600))
	got, err := h.dataFile()
	require.NoError(t, err)
	require.Equal(t, filepath.Join(at, "data"), got)
}

func TestReadAheadOfWhatIsNoEROFS(t *testing.T) {
	kb, err := readAhead(t.TempDir())
	require.NoError(t, err)
	require.Zero(t, kb)
}
