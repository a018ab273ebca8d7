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

// FuzzConvert: whatever a tar holds, the conversion ends without a panic, what it
// writes passes the strict parser, and a file gives the same as a stream.
func FuzzConvert(f *testing.F) {
	f.Add(mkTar(f, dir("d"), file("d/a", "1"), symlink("l", "d"), file("l/b", text(1, 9000))))
	for _, format := range []string{"gnu", "pax"} {
		f.Add(sparseTar(f, format, 300<<10, 0, 200<<10))
	}
	f.Add(mkTar(f, hardlink("a", "b"), file("b", "x"), file(".wh.c", ""), file("d/.wh..wh..opq", "")))
	f.Add(mkTar(f, file("x", "1").xattr("user.a", "b", "trusted.overlay.opaque", "y"), file("x/../y", "")))
	f.Fuzz(func(t *testing.T, src []byte) {
		var out bytes.Buffer
		src = src[:min(len(src), 1<<20)]
		cfg := Config{Form: Raw, ChunkSize: 8192, Workers: 1, SpoolDir: t.TempDir()}
		// A sparse member may claim terabytes of zeros.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		res, err := Convert(ctx, bytes.NewReader(src), &limited{w: &out, n: 8 << 20}, cfg)
		var at bytes.Buffer
		_, errAt := ConvertAt(ctx, bytes.NewReader(src), int64(len(src)), &limited{w: &at, n: 8 << 20}, cfg)
		if ctx.Err() != nil {
			return
		}
		if (err == nil) != (errAt == nil) || err == nil && !bytes.Equal(out.Bytes(), at.Bytes()) {
			t.Fatalf("a stream gives %d bytes, %v, a file %d, %v", out.Len(), err, at.Len(), errAt)
		}
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
