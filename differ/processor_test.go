package differ

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/protobuf/proto"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

var testKey = []byte("0123456789abcdef")

// seal encrypts as the decoder below expects.
func seal(t testing.TB, b []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(testKey)
	require.NoError(t, err)
	out := make([]byte, len(b))
	cipher.NewCTR(block, make([]byte, aes.BlockSize)).XORKeyStream(out, b)
	return out
}

// decode is a stream processor as containerd has them, such as ocicrypt's: the key
// is in the payload at descriptor 3, a layer comes in and goes out decrypted.
func decode(in io.Reader, out io.Writer) int {
	fail := func(format string, args ...any) int {
		fmt.Fprintf(os.Stderr, format, args...)
		return 1
	}
	b, err := io.ReadAll(os.NewFile(3, "payload"))
	if err != nil {
		return fail("no payload: %v", err)
	}
	var payload anypb.Any
	var key wrapperspb.BytesValue
	if err := proto.Unmarshal(b, &payload); err != nil {
		return fail("payload: %v", err)
	}
	if err := payload.UnmarshalTo(&key); err != nil {
		return fail("key: %v", err)
	}
	block, err := aes.NewCipher(key.Value)
	if err != nil {
		return fail("missing private key needed for decryption")
	}
	r := cipher.StreamReader{S: cipher.NewCTR(block, make([]byte, aes.BlockSize)), R: in}
	if n := os.Getenv("DIFFER_TEST_STOP_AFTER"); n != "" {
		if _, err := io.CopyN(out, r, 3000); err != nil {
			return fail("%v", err)
		}
		return fail("the key server went away")
	}
	if _, err := io.Copy(out, r); err != nil {
		return fail("%v", err)
	}
	return 0
}

// sealed is the service with the decoder for layers of that type.
func sealed(t testing.TB, store layerStore, mediaType string, env ...string) *Differ {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	return New(store, ServiceConfig{Processors: []diff.Handler{
		diff.BinaryHandler("decoder", mediaType, []string{mediaType + "+encrypted"}, self, nil, append(env, "DIFFER_TEST_AS=decoder")),
	}})
}

func withKey(t testing.TB, key []byte) diff.ApplyOpt {
	t.Helper()
	payload, err := anypb.New(wrapperspb.Bytes(key))
	require.NoError(t, err)
	return diff.WithPayloads(map[string]typeurl.Any{"decoder": payload})
}

// TestApplyEncrypted: layers of all kinds, through a program.
func TestApplyEncrypted(t *testing.T) {
	src := layerTar(t)
	res, blob := convertBytes(t, src, Config{})
	rawRes, raw := convertBytes(t, src, Config{Form: Raw})
	want := mountImage(t, imageOf(t, blob, res))
	for mediaType, tc := range map[string]struct {
		plain  []byte
		diffID digest.Digest
	}{
		ocispec.MediaTypeImageLayer:     {src, digest.FromBytes(src)},
		ocispec.MediaTypeImageLayerGzip: {gzipped(t, src), digest.FromBytes(src)},
		chunk.MediaTypeLayerZstd:        {blob, res.DiffID},
		chunk.MediaTypeLayer:            {raw, rawRes.DiffID},
	} {
		t.Run(mediaType, func(t *testing.T) {
			before := openFiles(t)
			store := newLayerStore(t)
			desc := store.add(t, mediaType+"+encrypted", seal(t, tc.plain))
			dir, mounts := snapshotDir(t, t.TempDir())
			var last int64
			got, err := sealed(t, store, mediaType).Apply(t.Context(), desc, mounts, withKey(t, testKey),
				diff.WithProgress(func(_ ocispec.Descriptor, n int64) { last = n }))
			require.NoError(t, err)
			require.Equal(t, tc.diffID, got.Digest)
			require.Equal(t, desc.Size, last)
			requireOnly(t, dir, LayerFile)
			requireSame(t, want, mountFile(t, dir+"/"+LayerFile))
			closesAll(t, before)
		})
	}
}

// closesAll waits until no more files are open than before: what belongs to a program
// that has ended is closed by a goroutine that waited for it.
func closesAll(t *testing.T, before int) {
	t.Helper()
	require.Eventually(t, func() bool { return openFiles(t) <= before }, time.Minute, time.Millisecond)
}

// TestApplyEncryptedFails: what the program says is what the caller gets, and
// nothing is left.
func TestApplyEncryptedFails(t *testing.T) {
	src := gzipped(t, layerTar(t))
	for name, tc := range map[string]struct {
		key  []byte
		env  string
		want string
	}{
		"no key":          {nil, "A=1", "missing private key needed for decryption"},
		"wrong key":       {bytes.Repeat([]byte("x"), 16), "A=1", "not a tar archive"},
		"ends in between": {testKey, "DIFFER_TEST_STOP_AFTER=1", "the key server went away"},
	} {
		t.Run(name, func(t *testing.T) {
			store := newLayerStore(t)
			desc := store.add(t, ocispec.MediaTypeImageLayerGzip+"+encrypted", seal(t, src))
			dir, mounts := snapshotDir(t, t.TempDir())
			before := openFiles(t)
			_, err := sealed(t, store, ocispec.MediaTypeImageLayerGzip, tc.env).Apply(t.Context(), desc, mounts, withKey(t, tc.key))
			require.ErrorContains(t, err, tc.want)
			requireOnly(t, dir)
			closesAll(t, before)
		})
	}
}

// TestApplyEncryptedCancelled ends the program too, which would wait for ever.
func TestApplyEncryptedCancelled(t *testing.T) {
	store := newLayerStore(t)
	desc := store.add(t, "application/x", []byte("1"))
	dir, mounts := snapshotDir(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	d := New(store, ServiceConfig{Processors: []diff.Handler{
		diff.BinaryHandler("slow", ocispec.MediaTypeImageLayer, []string{"application/x"}, "/bin/sh", []string{"-c", "echo; cat; exec sleep 600"}, nil),
	}})
	_, err := d.Apply(ctx, desc, mounts, diff.WithProgress(func(ocispec.Descriptor, int64) { cancel() }))
	require.ErrorIs(t, err, context.Canceled)
	requireOnly(t, dir)
}

// TestApplyProcessorThatStays: a program whose output is refused is not waited for,
// neither while the layer is opened nor later.
func TestApplyProcessorThatStays(t *testing.T) {
	store := newLayerStore(t)
	var cut string // a frame of which the decoder says that it ends early, whatever follows
	for at := 9; cut == ""; at++ {
		b := zstded(t, []byte(text(1, 100000)))
		b[at] ^= 1
		zr, err := zstd.NewReader(io.MultiReader(bytes.NewReader(b), io.LimitReader(endlessZeros{}, 300000)))
		require.NoError(t, err)
		if _, err = io.Copy(io.Discard, zr); errors.Is(err, io.ErrUnexpectedEOF) {
			for _, c := range b {
				cut += fmt.Sprintf("\\%03o", c)
			}
		}
		zr.Close()
	}
	for name, tc := range map[string]struct{ mediaType, head, want string }{
		"gzip header": {ocispec.MediaTypeImageLayerGzip, `\037\213\007`, "reading gzip layer"},
		"gzip block":  {ocispec.MediaTypeImageLayerGzip, `\037\213\010\000\000\000\000\000\000\000\007`, "reading entry 1"},
		"zstd":        {ocispec.MediaTypeImageLayerZstd, `\050\265\057\375\377\377\377`, "reading entry 1"},
		"zstd block":  {ocispec.MediaTypeImageLayerZstd, cut, "truncated"},
		"tar":         {ocispec.MediaTypeImageLayer, "garbage", "not a tar"},
		"native":      {chunk.MediaTypeLayerZstd, "garbage", "decompressing"},
	} {
		t.Run(name, func(t *testing.T) {
			before := openFiles(t)
			dir, mounts := snapshotDir(t, t.TempDir())
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := New(store, ServiceConfig{Processors: []diff.Handler{
				diff.BinaryHandler("stays", tc.mediaType, []string{"application/x"}, "/bin/sh", []string{"-c", "printf '" + tc.head + "'; head -c 300000 /dev/zero; exec sleep 600"}, nil),
			}}).Apply(ctx, store.add(t, "application/x", []byte(name)), mounts)
			require.ErrorContains(t, err, tc.want)
			require.NoError(t, ctx.Err(), "only the end of the context ended it")
			requireOnly(t, dir)
			closesAll(t, before)
		})
	}
}

// TestApplyProcessorThatGoesOn: what follows an image has a limit, or a program could
// fill the disk.
func TestApplyProcessorThatGoesOn(t *testing.T) {
	store := newLayerStore(t)
	res, raw := convertBytes(t, layerTar(t), Config{Form: Raw})
	for more, want := range map[int64]string{
		1 << 20: "",
		chunk.MaxIndexLen + 2<<20 + res.ImageSize/64: "far more comes than",
	} {
		dir, mounts := snapshotDir(t, t.TempDir())
		got, err := New(store, ServiceConfig{Processors: []diff.Handler{
			diff.BinaryHandler("goes on", chunk.MediaTypeLayer, []string{"application/x"}, "/bin/sh", []string{"-c", fmt.Sprintf("cat; exec head -c %d /dev/zero", more)}, nil),
		}}).Apply(t.Context(), store.add(t, "application/x", raw), mounts)
		if want != "" {
			require.ErrorContains(t, err, want)
			requireOnly(t, dir)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, int64(len(raw))+more, got.Size)
		img, err := os.ReadFile(filepath.Join(dir, LayerFile))
		require.NoError(t, err)
		require.True(t, bytes.Equal(raw[:res.ImageSize], img))
	}
}

// TestApplyProcessors: one behind the other, but not in circles, and one that
// makes what nobody can unpack.
func TestApplyProcessors(t *testing.T) {
	store := newLayerStore(t)
	src := mkTar(t, file("a", "1"))
	cat := func(from, to string) diff.Handler {
		return diff.BinaryHandler(from, to, []string{from}, "/bin/cat", nil, nil)
	}
	apply := func(d *Differ) (string, error) {
		dir, mounts := snapshotDir(t, t.TempDir())
		_, err := d.Apply(t.Context(), store.add(t, "application/x", src), mounts)
		return dir, err
	}
	dir, err := apply(New(store, ServiceConfig{Processors: []diff.Handler{cat("application/x", "application/y"), cat("application/y", ocispec.MediaTypeImageLayer)}}))
	require.NoError(t, err)
	require.Equal(t, []string{rootLine, "a -644 0:0 size=1 nlink=1"}, list(t, mountFile(t, dir+"/"+LayerFile)))

	// One that is configured comes before what is built in, which could do the same.
	dir, mounts := snapshotDir(t, t.TempDir())
	ran := filepath.Join(t.TempDir(), "ran")
	_, err = New(store, ServiceConfig{Processors: []diff.Handler{
		diff.BinaryHandler("gunzip", ocispec.MediaTypeImageLayer, []string{ocispec.MediaTypeImageLayerGzip}, "/bin/sh", []string{"-c", "touch " + ran + "; exec gzip -d"}, nil),
	}}).Apply(t.Context(), store.add(t, ocispec.MediaTypeImageLayerGzip, gzipped(t, src)), mounts)
	require.NoError(t, err)
	requireOnly(t, dir, LayerFile)
	require.FileExists(t, ran)

	dir, err = apply(New(store, ServiceConfig{Processors: []diff.Handler{cat("application/x", "application/x")}}))
	require.ErrorContains(t, err, "more than 8 stream processors")
	requireOnly(t, dir)
	dir, err = apply(New(store, ServiceConfig{Processors: []diff.Handler{cat("application/x", "application/y")}}))
	require.True(t, errdefs.IsNotImplemented(err), "%v", err)
	requireOnly(t, dir)
	dir, err = apply(New(store, ServiceConfig{Processors: []diff.Handler{
		diff.BinaryHandler("x", ocispec.MediaTypeImageLayer, []string{"application/x"}, "/no/such/program", nil, nil)}}))
	require.ErrorContains(t, err, `starting the stream processor for "application/x"`)
	requireOnly(t, dir)
}
