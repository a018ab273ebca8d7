package merge

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFilesAppearWhole(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "f")
	write := func(text string, err error) func(io.Writer) error {
		return func(w io.Writer) error {
			_, werr := io.WriteString(w, text)
			return errors.Join(werr, err)
		}
	}
	require.NoError(t, create(at, write("old", nil)))
	require.ErrorContains(t, create(at, write("half", errors.New("broken"))), "writing "+at+": broken")
	b, err := os.ReadFile(at)
	require.NoError(t, err)
	require.Equal(t, "old", string(b))
	require.NoError(t, create(at, write("new", nil)))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.ErrorContains(t, create(filepath.Join(dir, "absent", "f"), write("", nil)), "no such file")
}

func TestMountCommand(t *testing.T) {
	r := Report{Output: "m", Devices: []Device{{Slot: 1, File: "d/a"}, {Slot: 2}}}
	require.Equal(t, "mount -t erofs -o ro,device=d/a,device=DEVICE2 m DIR", r.mountCommand())
}
