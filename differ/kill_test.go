package differ

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// oneFile is a content store that gives one file for every digest.
type oneFile struct {
	content.Store // nil: only reads are answered
	path          string
}

type fileReader struct {
	*os.File
	size int64
}

func (f fileReader) Size() int64 { return f.size }

func (s oneFile) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	return fileReader{f, fi.Size()}, err
}

// applyOne applies the layer in a file to a snapshot's directory, in a process of
// its own, and prints a line whenever it read something.
func applyOne(layer, dir string) int {
	b, err := os.ReadFile(layer)
	if err == nil {
		desc := ocispec.Descriptor{MediaType: filepath.Base(filepath.Dir(layer)), Digest: digest.FromBytes(b), Size: int64(len(b))}
		desc.MediaType = map[string]string{"tar": ocispec.MediaTypeImageLayerGzip, "native": chunk.MediaTypeLayerZstd}[desc.MediaType]
		_, err = New(oneFile{path: layer}, ServiceConfig{}).Apply(context.Background(), desc,
			[]mount.Mount{{Type: "bind", Source: filepath.Join(dir, MountDir)}},
			diff.WithProgress(func(ocispec.Descriptor, int64) { fmt.Fprintln(os.Stdout, "read") }))
	}
	if err != nil {
		fmt.Fprintln(os.Stdout, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, "done")
	return 0
}

// TestApplyKilled: a process that is killed at any moment leaves the whole layer
// or nothing, not even a temporary file.
func TestApplyKilled(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	src := layerTar(t)
	_, blob := convertBytes(t, src, Config{})
	for kind, layer := range map[string][]byte{"tar": gzipped(t, src), "native": blob} {
		t.Run(kind, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), kind, "layer")
			write(t, p, string(layer))
			run := func(lines int) (string, bool) {
				dir, _ := snapshotDir(t, t.TempDir())
				cmd := exec.CommandContext(t.Context(), self, p, dir)
				cmd.Env = append(os.Environ(), "DIFFER_TEST_AS=applier")
				out, err := cmd.StdoutPipe()
				require.NoError(t, err)
				require.NoError(t, cmd.Start())
				s := bufio.NewScanner(out)
				for range lines {
					if !s.Scan() || s.Text() == "done" {
						require.NoError(t, cmd.Wait())
						return dir, true
					}
				}
				require.NoError(t, cmd.Process.Signal(unix.SIGKILL))
				require.Error(t, cmd.Wait())
				return dir, false
			}
			whole, ok := run(1 << 20)
			require.True(t, ok)
			want, err := os.ReadFile(filepath.Join(whole, LayerFile))
			require.NoError(t, err)
			killed := 0
			for lines := 1; ; lines += 1 + lines/3 {
				dir, ended := run(lines)
				got, err := os.ReadFile(filepath.Join(dir, LayerFile))
				if err == nil {
					require.True(t, bytes.Equal(want, got), "killed after %d reads", lines)
					requireOnly(t, dir, LayerFile)
				} else {
					require.ErrorIs(t, err, os.ErrNotExist)
					require.False(t, ended)
					requireOnly(t, dir)
					killed++
				}
				if ended {
					break
				}
			}
			require.Greater(t, killed, 3)
		})
	}
}

// TestApplyAgain: a second try takes the place of the first layer.
func TestApplyAgain(t *testing.T) {
	store := newLayerStore(t)
	dir, mounts := snapshotDir(t, t.TempDir())
	for _, name := range []string{"a", "b"} {
		_, err := New(store, ServiceConfig{}).Apply(t.Context(), store.add(t, ocispec.MediaTypeImageLayer, mkTar(t, file(name, "1"))), mounts)
		require.NoError(t, err)
		requireOnly(t, dir, LayerFile)
	}
	require.Equal(t, []string{rootLine, "b -644 0:0 size=1 nlink=1"}, list(t, mountFile(t, filepath.Join(dir, LayerFile))))
}
