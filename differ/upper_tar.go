package differ

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
)

// compressFunc returns a writer that compresses to w. Its Close ends the stream.
type compressFunc func(w io.Writer) (io.WriteCloser, error)

func gzipWriter(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }

// zstdWriter works on one core, so that the cores of a machine never show.
func zstdWriter(w io.Writer) (io.WriteCloser, error) {
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
}

// writeTar writes the changes in u as the tar of a layer.
func writeTar(ctx context.Context, u upperDir, w io.Writer, compress compressFunc) (written, error) {
	out := io.WriteCloser(nopCloser{w})
	if compress != nil {
		var err error
		if out, err = compress(w); err != nil {
			return written{}, fmt.Errorf("compressing the layer: %w", err)
		}
	}
	sum := sha256.New()
	s := &tarSink{w: tar.NewWriter(io.MultiWriter(out, sum)), buf: make([]byte, 256<<10)}
	err := u.walk(ctx, s.add)
	if err == nil {
		err = s.w.Close()
	}
	if cerr := out.Close(); err == nil && cerr != nil { // also after an error: it may have goroutines
		err = fmt.Errorf("compressing the layer: %w", cerr)
	}
	return written{diffID: digest.NewDigest(digest.SHA256, sum)}, err
}

type nopCloser struct{ io.Writer }

// Close implements io.Closer.
func (nopCloser) Close() error { return nil }

// tarSink writes changes as the entries of an OCI layer.
type tarSink struct {
	w   *tar.Writer
	buf []byte
}

func (s *tarSink) add(c *change) error {
	dir, base := splitPath(c.path)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return fmt.Errorf("the name %q would delete a file in a tar layer, ask for a native layer or remove it", c.path)
	}
	if c.gone {
		return s.mark(joinPath(dir, whiteoutPrefix+base))
	}
	h := c.hdr
	if c.path == "" && h.Mode == 0o755 && h.Uid == 0 && h.Gid == 0 && len(h.PAXRecords) == 0 {
		return nil // what a tar without it means
	}
	h.Format = tar.FormatPAX
	h.ModTime = h.ModTime.Truncate(time.Second) // as containerd does: fewer records, and no reader stumbles
	if h.Typeflag == tar.TypeDir {
		h.Name = strings.TrimPrefix(h.Name+"/", "/")
	}
	if c.path == "" {
		h.Name = "./"
	}
	h.PAXRecords = writable(h.PAXRecords)
	if err := s.w.WriteHeader(&h); err != nil {
		return fmt.Errorf("writing %q to a tar: %w", c.path, err)
	}
	if c.data != nil {
		// Hidden methods: io.CopyBuffer must use the buffer.
		if _, err := io.CopyBuffer(struct{ io.Writer }{s.w}, struct{ io.Reader }{c.data}, s.buf); err != nil {
			return fmt.Errorf("writing %q to a tar: %w", c.path, err)
		}
	}
	if c.opaque {
		return s.mark(joinPath(c.path, opaqueName))
	}
	return nil
}

// mark writes an empty entry whose name says it all.
func (s *tarSink) mark(name string) error {
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if err := s.w.WriteHeader(&h); err != nil {
		return fmt.Errorf("writing %q to a tar: %w", name, err)
	}
	return nil
}

// writable returns the records that a tar can hold: the name of an attribute
// ends at its first '=' there.
func writable(records map[string]string) map[string]string {
	var out map[string]string
	for k, v := range records {
		if !strings.Contains(k, "=") {
			out = put(out, k, v)
		}
	}
	return out
}
