package trees

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// hard is an image whose layers change what is below them in every way.
func hard() testenv.Recipe {
	return testenv.Recipe{Name: "hard", Steps: []testenv.Step{
		{Name: "base", Script: `cd "$ROOT"
mkdir -p keep/deep gone/deep opaque/deep file-to-dir.d dir-to-file/deep dir-to-link was-opaque mode
for f in keep/a keep/deep/b gone/deep/c opaque/deep/d opaque/e file-to-dir dir-to-file/deep/f dir-to-link/g was-opaque/h mode/i; do echo "$f" >$f; done
seq 1 70000 >keep/long
ln keep/a keep/link1; ln keep/a keep/deep/link2; ln keep/a gone/link3
ln keep/long keep/long2
echo x >both1; ln both1 both2
ln -s ../both1 keep/symbolic
mkfifo keep/fifo; mknod keep/null c 1 3
setfattr -n user.a -v one keep/a
setfattr -n user.d -v dir mode
`},
		{Name: "changes", Script: `cd "$ROOT"
rm -r gone
rm keep/link1
rm -r opaque; mkdir opaque; echo new >opaque/new; mkdir opaque/deep; echo again >opaque/deep/d2
rm file-to-dir; mkdir file-to-dir; echo in >file-to-dir/in
rm -r dir-to-file; echo now a file >dir-to-file
rm -r dir-to-link; ln -s keep dir-to-link
rm -r was-opaque; mkdir was-opaque; echo one >was-opaque/one
rm keep/fifo; echo no fifo >keep/fifo
rm both2; echo y >both2; ln both2 both3
chmod 700 mode; chown 7:8 mode; setfattr -n user.d -v changed mode
`},
		{Name: "changes of changes", Script: `cd "$ROOT"
mkdir gone; echo back >gone/back
rm was-opaque/one; echo two >was-opaque/two
rm -r opaque/deep
echo changed >>keep/deep/b
rm both1
mkdir -p a/whole/new/tree; echo t >a/whole/new/tree/t; ln a/whole/new/tree/t a/t
`},
		{Name: "empty", Script: `touch -d @1000000000 "$ROOT/keep"`},
	}}
}

// converted is an image with its lazy form in a layout.
type converted struct {
	img             *testenv.Image
	dir, work, lazy string
	devices, lower  []string // image data of the layers, and where it is mounted
	large           bool
}

// TestImagesThereAndBack converts images and looks at them in four ways: layer by
// layer, through the kernel and exported again, beside what containerd extracts from
// the tars; merged into one image; and under overlayfs beside what containerd
// unpacks.
func TestImagesThereAndBack(t *testing.T) {
	testenv.RequireRoot(t)
	work := t.TempDir() // layers that images share are converted once
	done := map[digest.Digest]bool{}
	tiny := func(context.Context) (testenv.Recipe, error) { return testenv.Tiny() }
	for n, recipe := range []func(context.Context) (testenv.Recipe, error){
		func(context.Context) (testenv.Recipe, error) { return hard(), nil },
		tiny, testenv.GoToolchain, testenv.Python, testenv.Node,
	} {
		r, err := recipe(t.Context())
		require.NoError(t, err)
		t.Run(r.Name, func(t *testing.T) {
			img, err := r.Build(t.Context(), func(s string) { t.Log(s) })
			require.NoError(t, err)
			dir := shortDir(t) // its paths stand in mount options
			i := &converted{img: img, dir: dir, work: work, lazy: filepath.Join(dir, "lazy"), large: n > 2}
			lazyerofs(t, "convert", "-q", "--level", "1", "--work-dir", work, "oci:"+img.Dir, "oci:"+i.lazy)
			lazyerofs(t, "verify", "-q", "oci:"+i.lazy)
			i.mountLayers(t)
			i.requireLayers(t, done)
			i.requireStack(t)
		})
	}
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "t")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// lazyerofs runs the command and returns what it printed.
func lazyerofs(t *testing.T, args ...string) []byte {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.CommandContext(t.Context(), testenv.MustTool(t, "lazyerofs"), args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%v: %s", args, &stderr)
	return out
}

// mountLayers merges the image, and mounts each of its layers.
func (i *converted) mountLayers(t *testing.T) {
	var report struct {
		Size    int64
		Inodes  int
		Fetched int64
		Devices []struct {
			Slot  int
			Layer digest.Digest
			File  string
		}
	}
	require.NoError(t, json.Unmarshal(lazyerofs(t, "merge", "--json", "--data", filepath.Join(i.dir, "d"),
		"--work-dir", i.work, "-o", i.merged(), "oci:"+i.lazy), &report))
	layers := layersOf(t, i.lazy)
	require.Len(t, report.Devices, len(layers))
	t.Logf("merged metadata %d bytes, %d inodes, %d bytes read for it", report.Size, report.Inodes, report.Fetched)
	for k, d := range report.Devices {
		require.Equal(t, k+1, d.Slot)
		require.Equal(t, layers[k].Digest, d.Layer)
		at := filepath.Join(i.dir, "l"+string(rune('a'+k)))
		require.NoError(t, os.Mkdir(at, 0o755))
		mountImage(t, erofs.MountConfig{Source: d.File, Target: at})
		i.devices, i.lower = append(i.devices, d.File), append(i.lower, at)
	}
}

func (i *converted) merged() string { return filepath.Join(i.dir, "m.erofs") }

// requireStack holds the merged image, and an overlay of the layers, against each
// other and against the tree that containerd unpacks.
func (i *converted) requireStack(t *testing.T) {
	order := slices.Clone(i.lower)
	slices.Reverse(order)
	if len(order) == 1 { // overlayfs wants two
		order = append(order, t.TempDir())
	}
	overlay, single := filepath.Join(i.dir, "o"), filepath.Join(i.dir, "s")
	require.NoError(t, os.Mkdir(overlay, 0o755))
	require.NoError(t, os.Mkdir(single, 0o755))
	require.NoError(t, unix.Mount("overlay", overlay, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(order, ":")))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(overlay, 0)) })
	mountImage(t, erofs.MountConfig{Source: i.merged(), Target: single, Devices: i.devices})

	unpacked := filepath.Join(i.dir, "u")
	require.NoError(t, os.Mkdir(unpacked, 0o755))
	for _, l := range i.img.Layers {
		apply(t, blobOf(i.img.Dir, l), unpacked)
	}
	// See extract.
	require.NoError(t, os.Chtimes(unpacked, time.Unix(0, 0), time.Unix(0, 0)))
	requireEqual(t, CompareOverlay, [2]string{overlay, single}, [2]string{overlay, unpacked})
}

func mountImage(t *testing.T, c erofs.MountConfig) {
	t.Helper()
	_, err := erofs.Mount(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, erofs.Unmount(c.Target)) })
}
