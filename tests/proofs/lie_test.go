package proofs

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

const always = -1

// lie is one bit of a blob that comes out wrong, whatever range it is asked in.
type lie struct {
	blob string
	at   int64

	mu   sync.Mutex
	left int // how often, or always
	told int
}

// tell makes the shop lie about byte at of the blob desc.
func (s *shop) tell(desc ocispec.Descriptor, at int64, times int) *lie {
	l := &lie{blob: desc.Digest.String(), at: at, left: times}
	s.between(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+l.blob) {
				w = &liar{ResponseWriter: w, lie: l}
			}
			next.ServeHTTP(w, r)
		})
	})
	return l
}

// stop ends the lie and says how often it was told.
func (l *lie) stop() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = 0
	return l.told
}

// spoil flips the bit in p, bytes of the blob from pos on.
func (l *lie) spoil(p []byte, pos int64) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left == 0 || l.at < pos || l.at >= pos+int64(len(p)) {
		return p
	}
	if l.left > 0 {
		l.left--
	}
	l.told++
	p = bytes.Clone(p)
	p[l.at-pos] ^= 0x10
	return p
}

// liar is an answer with the lie in it. It has no ReadFrom on purpose.
type liar struct {
	http.ResponseWriter
	lie *lie
	pos int64
}

func (l *liar) WriteHeader(status int) {
	// The header is the registry's own; a form it does not use leaves pos at 0.
	_, _ = fmt.Sscanf(l.Header().Get("Content-Range"), "bytes %d-", &l.pos)
	l.ResponseWriter.WriteHeader(status)
}

func (l *liar) Write(p []byte) (int, error) {
	n, err := l.ResponseWriter.Write(l.lie.spoil(p, l.pos))
	l.pos += int64(n)
	return n, err
}

// top returns the highest layer of img with its bytes.
func (s *shop) top(img *image) (ocispec.Descriptor, []byte) {
	desc := img.manifest.Layers[len(img.manifest.Layers)-1]
	return desc, s.blob(desc)
}

// imageData returns what a blob encodes: any zstd decoder can do it.
func (s *shop) imageData(desc ocispec.Descriptor, blob []byte) []byte {
	s.t.Helper()
	if !strings.HasSuffix(desc.MediaType, "+zstd") {
		return blob
	}
	d, err := zstd.NewReader(nil)
	require.NoError(s.t, err)
	defer d.Close()
	data, err := d.DecodeAll(blob, nil)
	require.NoError(s.t, err)
	return data
}

// pages reads a file page by page and returns which pages could not be read,
// [first, last], and fails on any wrong byte.
func pages(t *testing.T, file string, want string) (bad []int) {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	buf := make([]byte, 4096)
	for off := 0; off < len(want); off += len(buf) {
		n, err := unix.Pread(int(f.Fd()), buf, int64(off))
		if errors.Is(err, unix.EIO) {
			bad = append(bad, off/len(buf))
			continue
		}
		require.NoError(t, err)
		require.Equal(t, want[off:min(off+len(buf), len(want))], string(buf[:n]), "wrong bytes at %d", off)
	}
	return bad
}

// find returns the lazy mount that holds a file.
func (n *node) find(name string) string {
	n.t.Helper()
	for _, m := range n.mounts() {
		if _, err := os.Lstat(filepath.Join(m, name)); err == nil {
			return filepath.Join(m, name)
		}
	}
	require.Failf(n.t, "no such file", "%s is in no lazy layer", name)
	return ""
}

// A bit is flipped in a data chunk: whoever reads that chunk gets EIO, everything
// else is right, and when the registry tells the truth again, so is the chunk.
func TestFlippedDataChunk(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			s := openShop(t, scratch(t))
			img := s.convert(s.layered(), name, form)
			desc, blob := s.top(img)
			x, _ := s.index(desc, blob)
			want := lines()
			start := int64(bytes.Index(s.imageData(desc, blob), []byte(want)))
			require.Positive(t, start)
			victim := x.At(x.Find(start + int64(len(want))/2))
			l := s.tell(desc, victim.Blob.Off+victim.Blob.Len/2, always)

			n := startNode(t, nil)
			n.pull(img.ref)
			got := n.run(img.ref, "one", "/hello", "/before", "/lines", "/within", "/etc/kept")
			require.Equal(t, "/before: before\nread /lines: input/output error\n/within: within\n/etc/kept: one\n", got)

			bad := pages(t, n.find("lines"), want)
			first := int(victim.Data.Off-start) / 4096
			require.Len(t, bad, int(victim.Data.Len)/4096, "more or less than the chunk could not be read")
			require.Equal(t, first, bad[0])
			require.Equal(t, first+len(bad)-1, bad[len(bad)-1])
			require.Contains(t, n.daemonLog(), "its digest is not")

			require.Positive(t, l.stop())
			require.Equal(t, "/lines: "+want, n.run(img.ref, "two", "/hello", "/lines"), "the truth heals it")
			require.Empty(t, pages(t, n.find("lines"), want))
			for _, r := range s.gets(desc.Digest.String()) {
				require.NotEmpty(t, r.Range)
			}
		})
	}
}

// spots are places of a layer without which it cannot be mounted.
func (s *shop) spots(desc ocispec.Descriptor, blob []byte) map[string]int64 {
	x, at := s.index(desc, blob)
	entry := at.Off + 32 + 20
	if x.Codec() == chunk.CodecZstd {
		entry += chunk.SkippableHeaderLen
	}
	return map[string]int64{"index": entry, "metadata": x.At(0).Blob.Off + x.At(0).Blob.Len/3}
}

// A bit is flipped in the index or in the metadata: the layer is refused in
// words. containerd then downloads it and finds the lie itself; the pull fails
// and says so. Once the registry tells the truth, the layer is lazy.
func TestFlippedIndexOrMetadata(t *testing.T) {
	for name, form := range forms {
		s := openShop(t, scratch(t))
		img := s.convert(s.layered(), name, form)
		desc, blob := s.top(img)
		for spot, at := range s.spots(desc, blob) {
			t.Run(name+"/"+spot, func(t *testing.T) {
				l := s.tell(desc, at, always)
				n := startNode(t, nil)
				err := n.tryPull(img.ref)
				require.ErrorContains(t, err, desc.Digest.String(), "the pull says which layer")
				require.ErrorContains(t, err, "digest")
				t.Log(err)
				log := n.daemonLog()
				require.Contains(t, log, "layer is left to containerd")
				require.Contains(t, log, "reason=corrupt")
				require.Contains(t, log, desc.Digest.String())
				require.Equal(t, `lazyerofs_snapshot_misses_total{reason="corrupt"} 1`, n.metric("lazyerofs_snapshot_misses_total{"))
				require.Len(t, n.mounts(), len(img.manifest.Layers)-1, "a refused layer was mounted")

				require.Positive(t, l.stop())
				s.Reset()
				n.pull(img.ref)
				requireLazy(t, s, img)
				require.Equal(t, testenv.TinyOutput, n.run(img.ref, "one", img.ready...))
			})
		}
	}
}

func requireLazy(t *testing.T, s *shop, img *image) {
	t.Helper()
	for _, l := range img.manifest.Layers {
		for _, r := range s.gets(l.Digest.String()) {
			require.NotEmpty(t, r.Range, "layer %s was downloaded", l.Digest)
		}
	}
}

// A lie that is told only once heals within the same read, wherever it is.
func TestLieToldOnce(t *testing.T) {
	for name, form := range forms {
		s := openShop(t, scratch(t))
		img := s.convert(s.layered(), name, form)
		desc, blob := s.top(img)
		x, _ := s.index(desc, blob)
		spots := s.spots(desc, blob)
		spots["data"] = x.At(x.Len()/2).Blob.Off + 7
		for spot, at := range spots {
			t.Run(name+"/"+spot, func(t *testing.T) {
				s.Reset()
				l := s.tell(desc, at, 1)
				n := startNode(t, nil)
				n.pull(img.ref)
				require.Equal(t, "/lines: "+lines(), n.run(img.ref, "one", "/hello", "/lines"))
				require.Equal(t, 1, l.stop())
				requireLazy(t, s, img)
			})
		}
	}
}
