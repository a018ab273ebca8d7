package systemd

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseStatus(t *testing.T) {
	s, err := parseStatus("MainPID=17\nNRestarts=3\nNFileDescriptorStore=6\nActiveState=active\nSubState=running\n")
	require.NoError(t, err)
	require.Equal(t, status{Active: "active", Sub: "running", MainPID: 17, Stored: 6, Restarts: 3}, s)
	require.True(t, s.running())

	s, err = parseStatus("ActiveState=activating\nSubState=auto-restart\nMainPID=0\n")
	require.NoError(t, err)
	require.False(t, s.running())

	for _, bad := range []string{"", "\n", "MainPID=1", "ActiveState", "ActiveState=active\nMainPID=x", "ActiveState=active\nNFileDescriptorStore="} {
		_, err := parseStatus(bad)
		require.Error(t, err, "%q", bad)
	}
}

func TestVariable(t *testing.T) {
	env := "A=1\x00FDSTORE=16384\x00EMPTY=\x00"
	v, ok := variable(env, "FDSTORE")
	require.True(t, ok)
	require.Equal(t, "16384", v)
	v, ok = variable(env, "EMPTY")
	require.True(t, ok)
	require.Empty(t, v)
	_, ok = variable(env, "STORE")
	require.False(t, ok)
}

// The output comes from another program, and a test must fail by its own words.
func FuzzParseStatus(f *testing.F) {
	f.Add("MainPID=17\nNRestarts=3\nNFileDescriptorStore=6\nActiveState=active\nSubState=running\n")
	f.Add("ActiveState=\n=")
	f.Fuzz(func(t *testing.T, out string) {
		s, err := parseStatus(out)
		if err == nil {
			require.NotEmpty(t, s.Active)
		}
		if s.running() {
			require.Positive(t, s.MainPID)
		}
	})
}
