package differ

import (
	"archive/tar"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// reportCPU reports what this process computed until the returned function is
// called, which a busy machine does not change as it changes the time.
func reportCPU(b *testing.B) func() {
	used := func() float64 {
		var u unix.Rusage
		require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e6
	}
	before := used()
	return func() { b.ReportMetric((used()-before)/float64(b.N), "cpu-ms/op") }
}

// BenchmarkApply unpacks the tar of the Go toolchain's sources. "kept" is the least
// that a mode could do that keeps the tar and indexes it: read, digest, write and
// sync it, and parse its headers.
func BenchmarkApply(b *testing.B) {
	goroot, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	require.NoError(b, err)
	src := filepath.Join(b.TempDir(), "tar")
	require.NoError(b, exec.CommandContext(b.Context(), "tar", "-C", strings.TrimSpace(string(goroot)), "-cf", src, "src").Run())
	fi, err := os.Stat(src)
	require.NoError(b, err)
	b.Run("apply", func(b *testing.B) {
		b.SetBytes(fi.Size())
		defer reportCPU(b)()
		d := New(oneFile{path: src}, ServiceConfig{})
		for b.Loop() {
			_, mounts := snapshotDir(b, b.TempDir())
			_, err := d.Apply(b.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("x"), Size: fi.Size()}, mounts)
			require.NoError(b, err)
		}
	})
	b.Run("kept", func(b *testing.B) {
		b.SetBytes(fi.Size())
		defer reportCPU(b)()
		for b.Loop() {
			in, err := os.Open(src)
			require.NoError(b, err)
			out, err := os.Create(filepath.Join(b.TempDir(), "kept"))
			require.NoError(b, err)
			tr := tar.NewReader(io.TeeReader(in, io.MultiWriter(out, sha256.New())))
			for {
				if _, err = tr.Next(); err != nil {
					break
				}
			}
			require.ErrorIs(b, err, io.EOF)
			require.NoError(b, out.Sync())
			require.NoError(b, out.Close())
			require.NoError(b, in.Close())
		}
	})
}
