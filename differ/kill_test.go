package differ

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
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
// its own. Whenever it read something it prints a line and waits for a byte.
func applyOne(layer, dir string) int {
	b, err := os.ReadFile(layer)
	if err == nil {
		desc := ocispec.Descriptor{MediaType: filepath.Base(filepath.Dir(layer)), Digest: digest.FromBytes(b), Size: int64(len(b))}
		desc.MediaType = map[string]string{"tar": ocispec.MediaTypeImageLayerGzip, "native": chunk.MediaTypeLayerZstd}[desc.MediaType]
		_, err = New(oneFile{path: layer}, ServiceConfig{}).Apply(context.Background(), desc,
			[]mount.Mount{{Type: "bind", Source: filepath.Join(dir, MountDir)}},
			diff.WithProgress(func(ocispec.Descriptor, int64) {
				fmt.Fprintln(os.Stdout, "read")
				_, _ = os.Stdin.Read(make([]byte, 1)) // the end of it will do, too
			}))
	}
	if err != nil {
		fmt.Fprintln(os.Stdout, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, "done")
	return 0
}

// applier is applyOne in a process that can be killed.
type applier struct {
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
	dir string
}

func startApplier(t *testing.T, layer string) *applier {
	self, err := os.Executable()
	require.NoError(t, err)
	a := &applier{}
	a.dir, _ = snapshotDir(t, t.TempDir())
	a.cmd = exec.CommandContext(t.Context(), self, layer, a.dir)
	a.cmd.Env = append(os.Environ(), "DIFFER_TEST_AS=applier")
	a.in, err = a.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := a.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, a.cmd.Start())
	a.out = bufio.NewScanner(out)
	return a
}

// next waits for a line, and reports whether the applier waits behind it.
func (a *applier) next(t *testing.T) bool {
	require.True(t, a.out.Scan(), "the applier ended early")
	return a.out.Text() == "read"
}

func (a *applier) goOn(t *testing.T) {
	_, err := a.in.Write([]byte{1})
	require.NoError(t, err)
}

// kill reports whether the applier was killed before it had ended.
func (a *applier) kill(t *testing.T) bool {
	err := a.cmd.Process.Signal(unix.SIGKILL)
	if err != nil {
		require.ErrorIs(t, err, os.ErrProcessDone)
	}
	return a.cmd.Wait() != nil
}

// TestApplyKilled: a process that is killed at any moment leaves the whole layer
// or nothing, not even a temporary file.
func TestApplyKilled(t *testing.T) {
	src := layerTar(t)
	_, blob := convertBytes(t, src, Config{})
	for kind, layer := range map[string][]byte{"tar": gzipped(t, src), "native": blob} {
		t.Run(kind, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), kind, "layer")
			write(t, p, string(layer))
			whole, reads := startApplier(t, p), 0
			for ; whole.next(t); reads++ {
				whole.goOn(t)
			}
			require.NoError(t, whole.cmd.Wait())
			require.Greater(t, reads, 3)
			want, err := os.ReadFile(filepath.Join(whole.dir, LayerFile))
			require.NoError(t, err)

			killed := func(after int, free bool) {
				a := startApplier(t, p)
				for n := range after {
					require.True(t, a.next(t))
					if n+1 < after || free {
						a.goOn(t)
					}
				}
				dead := a.kill(t)
				require.True(t, dead || free && after == reads, "it waited")
				got, err := os.ReadFile(filepath.Join(a.dir, LayerFile))
				if err == nil {
					require.True(t, bytes.Equal(want, got), "killed after %d reads", after)
					requireOnly(t, a.dir, LayerFile)
					require.True(t, free && after == reads, "a layer that was not read to its end")
					return
				}
				require.ErrorIs(t, err, os.ErrNotExist)
				require.True(t, dead)
				requireOnly(t, a.dir)
			}
			for after := 1; after < reads; after += 1 + after/3 {
				killed(after, after%2 == 0)
			}
			killed(reads, false)
			for range 4 { // anywhere between the last read and the end
				killed(reads, true)
			}
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
