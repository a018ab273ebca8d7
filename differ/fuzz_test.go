package differ

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// FuzzConvert: whatever a tar holds, the conversion ends without a panic, and
// what it writes passes the strict parser.
func FuzzConvert(f *testing.F) {
	f.Add(mkTar(f, dir("d"), file("d/a", "1"), symlink("l", "d"), file("l/b", text(1, 9000))))
	for _, format := range []string{"gnu", "pax"} {
		f.Add(sparseTar(f, format, 300<<10, 0, 200<<10))
	}
	f.Add(mkTar(f, hardlink("a", "b"), file("b", "x"), file(".wh.c", ""), file("d/.wh..wh..opq", "")))
	f.Add(mkTar(f, file("x", "1").xattr("user.a", "b", "trusted.overlay.opaque", "y"), file("x/../y", "")))
	f.Fuzz(func(t *testing.T, src []byte) {
		var out bytes.Buffer
		in := io.LimitReader(bytes.NewReader(src), 1<<20)
		// A sparse member may claim terabytes of zeros.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		res, err := Convert(ctx, in, &limited{w: &out, n: 8 << 20}, Config{Form: Raw, ChunkSize: 8192, Workers: 1, SpoolDir: t.TempDir()})
		if err != nil {
			return
		}
		img := bytes.NewReader(out.Bytes()[:res.ImageSize])
		if _, err := erofs.Parse(img, erofs.DefaultPolicy(res.ImageSize)); err != nil {
			t.Fatalf("the parser refuses what the writer wrote: %v", err)
		}
	})
}

// limited refuses more than n bytes.
type limited struct {
	w io.Writer
	n int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, errors.New("too much for a fuzz test")
	}
	return l.w.Write(p)
}
