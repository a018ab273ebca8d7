package differ

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// Superblock fields that say how long an image is (fs/erofs/erofs_fs.h).
const (
	superOff   = 1024
	superLen   = 128
	superMagic = 0xE0F5E1E2
	offBlkBits = 12
	offBlocks  = 36
)

// applyRaw copies an image and leaves out what follows it in the blob.
func applyRaw(ctx context.Context, u *unpacking) (ocispec.Descriptor, error) {
	in, err := openAs(ctx, u.src, asIs, nil)
	return u.through(in.close, func() (ocispec.Descriptor, error) {
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		w := &sparseWriter{f: u.f}
		if u.changed { // a program has no end; a blob has one, and is here
			if _, err := CopyImage(w, in, chunk.MaxIndexLen); err != nil {
				return ocispec.Descriptor{}, fmt.Errorf("copying the image: %w", err)
			}
		} else if _, err := io.Copy(w, in); err != nil {
			return ocispec.Descriptor{}, readError("copying the image", err)
		}
		if err := w.flush(); err != nil {
			return ocispec.Descriptor{}, err
		}
		// The unpacker compares a raw layer's own digest with its DiffID, so it
		// must be what the bytes have and not what the descriptor says.
		if !u.changed && in.digest() != u.desc.Digest {
			return ocispec.Descriptor{}, refuse("its bytes do not have its digest")
		}
		if err := acceptImage(u.f, w.n); err != nil {
			return ocispec.Descriptor{}, err
		}
		return ocispec.Descriptor{MediaType: u.desc.MediaType, Digest: in.digest(), Size: in.n}, nil
	})
}

// applyZstd decompresses an image. Its digest is that of all decompressed bytes;
// the chunk index is in a frame that decoders pass over.
func applyZstd(ctx context.Context, u *unpacking) (ocispec.Descriptor, error) {
	in, err := openAs(ctx, u.src, zstdStream, nil)
	return u.through(in.close, func() (ocispec.Descriptor, error) {
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("decompressing the image: %w", err)
		}
		n, err := unpackImage(u.f, in)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("decompressing: %w", err)
		}
		if want := u.desc.Annotations[chunk.AnnotationUncompressedDigest]; want != "" && want != in.digest().String() {
			return ocispec.Descriptor{}, refuse("its decompressed image has digest %s, its annotation says %q", in.digest(), want)
		}
		return ocispec.Descriptor{MediaType: chunk.MediaTypeLayer, Digest: in.digest(), Size: n}, nil
	})
}

// unpackImage copies an image to f, and its length, which may be less than what
// is returned: what was read of src.
func unpackImage(f *os.File, src io.Reader) (int64, error) {
	w := &sparseWriter{f: f}
	if _, err := CopyImage(w, src, 0); err != nil {
		return 0, err
	}
	if err := w.flush(); err != nil {
		return 0, err
	}
	n := w.n
	return n, acceptImage(f, n)
}

// CopyImage copies an image and what follows it to the end of src, and returns the
// length of the image in bytes, which only its superblock says. A small blob can
// decompress to more than any disk holds, so there is a limit: the image and, behind
// it, the largest hash tree that it can have and a chunk index of at most index bytes.
func CopyImage(dst io.Writer, src io.Reader, index int64) (size int64, err error) {
	head := make([]byte, superOff+superLen)
	if _, err := io.ReadFull(src, head); err != nil {
		return 0, readError("reading the image", err)
	}
	if size, err = imageSize(head); err != nil {
		return 0, err
	}
	limit := size + size/64 + 1<<20 + index
	if _, err := dst.Write(head); err != nil {
		return 0, err
	}
	n, err := io.Copy(dst, io.LimitReader(src, limit-int64(len(head))+1))
	if err != nil {
		return 0, readError("reading the image", err)
	}
	if n += int64(len(head)); n > limit {
		return 0, refuse("far more comes than the %d bytes of its image", size)
	}
	return size, isAll(size, n)
}

// isAll refuses an image of size bytes of which only n are there.
func isAll(size, n int64) error {
	if size > n {
		return refuse("its image is %d bytes long, only %d are there", size, n)
	}
	return nil
}

// imageSize reads an image's length in bytes from its first superOff+superLen
// bytes. Everything else in them is the parser's business.
func imageSize(head []byte) (int64, error) {
	sb := head[superOff:]
	if m := binary.LittleEndian.Uint32(sb); m != superMagic {
		return 0, refuseSuper("it is not an EROFS image, its magic is %#08x", m)
	}
	bits := sb[offBlkBits]
	if bits < 9 || bits > 12 {
		return 0, refuseSuper("its block size is 2^%d", bits)
	}
	return int64(binary.LittleEndian.Uint32(sb[offBlocks:])) << bits, nil
}

// acceptImage cuts f, n bytes long, to the image that it begins with and lets
// the strict parser judge it.
func acceptImage(f *os.File, n int64) error {
	head := make([]byte, superOff+superLen)
	if _, err := f.ReadAt(head, 0); err != nil {
		return refuse("its %d bytes are shorter than an EROFS superblock", n)
	}
	size, err := imageSize(head)
	if err != nil {
		return err
	}
	if err := isAll(size, n); err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("sizing layer file: %w", err)
	}
	if _, err := erofs.Parse(f, erofs.DefaultPolicy(size)); err != nil {
		return fmt.Errorf("layer is refused: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// refuseSuper refuses an image as the strict parser, which needs its length first, would.
func refuseSuper(format string, args ...any) error {
	bad := &erofs.RefusedError{Rule: erofs.RuleSuperblock, Detail: fmt.Sprintf(format, args...), Off: superOff}
	return fmt.Errorf("layer is refused: %w: %w", bad, errdefs.ErrInvalidArgument)
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("layer is refused: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
