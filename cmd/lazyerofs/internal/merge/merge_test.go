package merge

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
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

// TestOnlyRegularFilesAreReplaced: a device stays a device, a link a link.
func TestOnlyRegularFilesAreReplaced(t *testing.T) {
	testenv.RequireRoot(t)
	text := func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err }
	for name, c := range map[string]struct {
		make func(at string) error
		kind string
	}{
		"device":    {func(at string) error { return unix.Mknod(at, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }, "device"},
		"pipe":      {func(at string) error { return unix.Mkfifo(at, 0o600) }, "pipe"},
		"socket":    {func(at string) error { return unix.Mknod(at, unix.S_IFSOCK|0o600, 0) }, "socket"},
		"directory": {func(at string) error { return os.Mkdir(at, 0o700) }, "directory"},
	} {
		t.Run(name, func(t *testing.T) {
			at := filepath.Join(t.TempDir(), "f")
			require.NoError(t, c.make(at))
			link := at + ".link"
			require.NoError(t, os.Symlink("f", link))
			before, err := os.Lstat(at)
			require.NoError(t, err)
			for _, to := range []string{at, link} {
				var place *converter.PlaceError
				require.ErrorAs(t, create(to, text), &place)
				require.EqualError(t, place, to+" is a "+c.kind+", which is not replaced; name a regular file, or one that does not exist yet")
				_, err = Run(t.Context(), Config{Output: to})
				require.ErrorAs(t, err, &place, "before anything is read")
			}
			after, err := os.Lstat(at)
			require.NoError(t, err)
			require.True(t, os.SameFile(before, after))
		})
	}
	file := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := Run(t.Context(), Config{Output: file, DataDir: file})
	require.EqualError(t, err, file+" is not a directory; name one for the image data")
	at := filepath.Join(t.TempDir(), digest.FromString("x").Encoded()+".erofs")
	require.NoError(t, os.Mkdir(at, 0o700))
	c := Config{DataDir: filepath.Dir(at)}
	err = c.dataPlaces([]ocispec.Descriptor{{Digest: digest.FromString("x")}})
	require.ErrorContains(t, err, at+" is a directory")
}

func TestLinksAreFollowed(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	text := func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err }
	require.NoError(t, os.MkdirAll(in("deep/er"), 0o700))
	require.NoError(t, os.Symlink("deep/er", in("dir")))
	require.NoError(t, os.WriteFile(in("deep/file"), []byte("old"), 0o600))
	for name, to := range map[string]string{
		"absolute": in("deep/file"), "relative": "deep/file", "two": "absolute", "dangling": "deep/none",
		"back": "dir/../back", // which is deep/back, for dir is a link
	} {
		require.NoError(t, os.Symlink(to, in(name)))
	}
	for name, file := range map[string]string{
		"absolute": "deep/file", "relative": "deep/file", "two": "deep/file", "dangling": "deep/none", "back": "deep/back",
	} {
		require.NoError(t, os.RemoveAll(in(file)))
		if name != "dangling" {
			require.NoError(t, os.WriteFile(in(file), []byte("old"), 0o600))
		}
		require.NoError(t, create(in(name), text), name)
		b, err := os.ReadFile(in(file))
		require.NoError(t, err, name)
		require.Equal(t, "new", string(b), name)
		_, err = os.Readlink(in(name))
		require.NoError(t, err, name)
	}
	require.NoError(t, os.Symlink("loop", in("loop")))
	require.ErrorIs(t, create(in("loop"), text), unix.ELOOP)
}

func TestMountCommand(t *testing.T) {
	r := Report{Output: "m", Devices: []Device{{Slot: 1, File: "d/a"}, {Slot: 2}}}
	require.Equal(t, "mount -t erofs -o ro,device=d/a,device=DEVICE2 m DIR", r.mountCommand())
}
