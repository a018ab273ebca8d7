package erofs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// deviceFile writes a device's content to a file with a path so short that many
// of them fit in the options of mount(2).
func deviceFile(t *testing.T, dir string, k int, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, fmt.Sprint(k))
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "e")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// Files on many devices, on several at once and on the primary one, all in one
// image, mounted with device= options and as one flat file.
func TestWriteDevices(t *testing.T) {
	const devices = 100
	dir := shortDir(t)
	o := WriteOptions{}
	var files []wantFile
	var paths []string
	var flat bytes.Buffer
	for k := 1; k <= devices; k++ {
		data := pattern(4096*(1+k%3), byte(k))
		paths = append(paths, deviceFile(t, dir, k, data))
		flat.Write(data)
		o.Devices = append(o.Devices, Device{Tag: strings.Repeat("ab", 32), Blocks: uint64(len(data) / 4096)})
		files = append(files, wantFile{
			path: fmt.Sprintf("on%d", k), attr: regAttr(0o600),
			runs: []wantRun{{len: int64(len(data)) - 5, device: uint16(k), data: data[:len(data)-5]}},
		})
	}
	files = append(files, wantFile{path: "mixed", attr: Attr{Mode: modeReg, UID: 70000}, xattrs: map[string]string{"user.odd": "1"}, runs: []wantRun{
		{len: 4096, device: 2, data: pattern(4096, 2)}, {off: 4096, len: 8192, data: pattern(8192, 77)},
		{off: 12288, len: 4096, hole: true}, {off: 16384, len: 4096, device: 100, data: pattern(4096, 100)},
		{off: 20480, len: 1, device: 1, addr: 4096, data: pattern(8192, 1)[4096:4097]},
	}}, wantFile{path: "plain", attr: regAttr(0o600), data: pattern(9999, 3)})
	img := buildImage(t, files, o)
	checkKernel(t, mountKernel(t, img.path, paths...), files)
	runFsck(t, img.path, paths...)

	whole, err := os.ReadFile(img.path)
	require.NoError(t, err)
	joined := deviceFile(t, dir, 0, append(whole, flat.Bytes()...))
	checkKernel(t, mountKernel(t, joined), files)
}

// An archive that is the device of its own index: blocks of 512 bytes.
func TestWriteRawTarDevice(t *testing.T) {
	dir := shortDir(t)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "src"), 0o755))
	content := pattern(1234, 5)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "src", "f"), content, 0o644))
	tar := filepath.Join(dir, "t.tar")
	out, err := exec.Command("tar", "--format=ustar", "-C", filepath.Join(dir, "src"), "-cf", tar, "f").CombinedOutput()
	require.NoError(t, err, "%s", out)
	info, err := os.Stat(tar)
	require.NoError(t, err)
	files := []wantFile{{path: "f", attr: regAttr(0o644), runs: []wantRun{{len: 1234, device: 1, addr: 512, data: content}}}}
	img := buildImage(t, files, WriteOptions{BlockBits: 9, Devices: []Device{{Blocks: uint64(info.Size() / 512)}}})
	checkKernel(t, mountKernel(t, img.path, tar), files)
}

// Devices that together exceed 32 bits of blocks get no flat address: kernels
// before 7.1 would take its low bits for blocks of the primary device.
func TestWriteHugeDevices(t *testing.T) {
	dir := shortDir(t)
	o := WriteOptions{}
	var paths []string
	for k := range 3 {
		paths = append(paths, deviceFile(t, dir, k, nil))
		require.NoError(t, os.Truncate(paths[k], 7<<40))
		o.Devices = append(o.Devices, Device{Blocks: 7 << 40 / 4096})
	}
	at := int64(7<<40 - 4096)
	data := pattern(4096, 6)
	h, err := os.OpenFile(paths[2], os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = h.WriteAt(data, at)
	require.NoError(t, err)
	require.NoError(t, h.Close())
	files := []wantFile{
		{path: "far", attr: regAttr(0o600), runs: []wantRun{{len: 4096, device: 3, addr: at, data: data}}},
		{path: "near", attr: regAttr(0o600), data: pattern(50000, 7)},
	}
	img := buildImage(t, files, o)
	checkKernel(t, mountKernel(t, img.path, paths...), files)
}

// overlayfs takes our whiteouts and opaque directories for its own.
func TestWriteOverlay(t *testing.T) {
	lower := []wantFile{
		{path: "gone", attr: regAttr(0o600), data: []byte("x")},
		{path: "kept", attr: regAttr(0o600), data: []byte("kept")},
		{path: "opaque/old", attr: regAttr(0o600), data: []byte("x")},
		{path: "merged/old", attr: regAttr(0o600), data: []byte("old")},
	}
	upper := []wantFile{
		{path: "gone", attr: Attr{Mode: modeChar}},
		{path: "opaque", attr: dirAttr(0o700), xattrs: map[string]string{"trusted.overlay.opaque": "y"}},
		{path: "opaque/new", attr: regAttr(0o600), data: []byte("new")},
		{path: "merged/new", attr: regAttr(0o600), data: []byte("new")},
	}
	a := mountKernel(t, buildImage(t, lower, WriteOptions{}).path)
	b := mountKernel(t, buildImage(t, upper, WriteOptions{}).path)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, "lowerdir="+b+":"+a))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	var got []string
	for _, p := range []string{".", "opaque", "merged"} {
		names, err := os.ReadDir(filepath.Join(dir, p))
		require.NoError(t, err)
		for _, n := range names {
			got = append(got, filepath.Join(p, n.Name()))
		}
	}
	require.Equal(t, []string{"kept", "merged", "opaque", "opaque/new", "merged/new", "merged/old"}, got)
	_, err := os.Lstat(filepath.Join(dir, "gone"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
