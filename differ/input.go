package differ

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
)

// MaxWindow bounds in bytes what a zstd frame of a layer can make a decoder keep:
// the largest window that the zstd command line reads without being told
// (--long=27).
const MaxWindow = 128 << 20

// input is a layer's uncompressed tar stream. It counts what goes through it,
// digests it, and ends early when its context does.
type input struct {
	r        io.Reader
	close    func() // waits for a Read of the source that has begun
	sum      hash.Hash
	n        int64
	progress func(int64)
}

// compression is what the bytes of a layer are compressed with.
type compression uint8

const (
	asIs compression = iota
	gzipStream
	zstdStream
)

// openInput finds out how src is compressed by its first bytes, because media
// types are often wrong about it. Call close when done, also when it fails: a Read of
// src may have begun that somebody else can end.
func openInput(ctx context.Context, src io.Reader, progress func(int64)) (*input, error) {
	br := bufio.NewReaderSize(src, aheadLen)
	magic, err := br.Peek(magicLen)
	if err != nil && err != io.EOF {
		return &input{close: func() {}}, readError("reading layer", err)
	}
	return openAs(ctx, br, compressionOf(magic), progress)
}

// magicLen is how many bytes of a layer tell how it is compressed.
const magicLen = 4

// compressionOf looks at the first magicLen bytes of a layer.
func compressionOf(magic []byte) compression {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzipStream
	case isZstd(magic):
		return zstdStream
	}
	return asIs
}

// openAs is openInput for a stream of which that is known. What is compressed is
// read while what came before it is decompressed: containerd is asked for each
// piece of a blob, and a registry is far away.
func openAs(ctx context.Context, src io.Reader, how compression, progress func(int64)) (*input, error) {
	in := &input{sum: sha256.New(), progress: progress}
	if how == asIs {
		a := readAhead(ctx, src, in.sum)
		in.r, in.close = a, a.close
		return in, nil
	}
	raw := readAhead(ctx, src, nil)
	data, release, err := decompress(bufio.NewReaderSize(raw, 64<<10), how)
	if err != nil {
		return &input{close: raw.close}, err
	}
	a := readAhead(ctx, data, in.sum)
	in.r, in.close = a, func() {
		raw.stop() // or what decompresses would be waited for while it waits
		a.close()
		release()
		raw.ends.Wait()
	}
	return in, nil
}

func decompress(src io.Reader, how compression) (io.Reader, func(), error) {
	if how == gzipStream {
		zr, err := gzip.NewReader(src)
		if err != nil {
			return nil, nil, readError("reading gzip layer", err)
		}
		return zr, func() {}, nil
	}
	zr, err := zstd.NewReader(src, zstd.WithDecoderMaxWindow(MaxWindow))
	if err != nil {
		return nil, nil, fmt.Errorf("reading zstd layer: %w", err)
	}
	return zr, zr.Close, nil
}

// isZstd reports whether a stream starts with a zstd frame or a skippable one.
func isZstd(magic []byte) bool {
	if len(magic) < magicLen {
		return false
	}
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}

// isImage reports whether the stream, of which nothing was read, is an EROFS
// image and not a tar.
func (in *input) isImage() bool {
	const ustar = 257 // where a tar header says so
	br := bufio.NewReaderSize(in.r, superOff+superLen)
	in.r = br
	head, err := br.Peek(superOff + superLen)
	if err != nil {
		return false // too short; the error comes again when it is read
	}
	return binary.LittleEndian.Uint32(head[superOff:]) == superMagic && !bytes.HasPrefix(head[ustar:], []byte("ustar"))
}

// Read implements io.Reader.
func (in *input) Read(p []byte) (int, error) {
	n, err := in.r.Read(p)
	in.n += int64(n)
	if in.progress != nil && n > 0 {
		in.progress(in.n)
	}
	return n, err
}

// drain reads what follows the tar's end marker, which counts for the DiffID.
func (in *input) drain() error {
	buf := make([]byte, 64<<10)
	for {
		_, err := in.Read(buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return readError("reading the end of the layer", err)
		}
	}
}

// digest returns the digest of the whole stream, after drain.
func (in *input) digest() digest.Digest {
	return digest.NewDigest(digest.SHA256, in.sum)
}
