package dmverity

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/go-dmverity/pkg/verity"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

func randomImage(blocks int) []byte {
	var seed [32]byte
	seed[0] = byte(blocks)
	image := make([]byte, blocks*blockSize)
	_, _ = rand.NewChaCha8(seed).Read(image)
	return image
}

// build makes the tree of image, whose blocks come in pieces.
func build(t testing.TB, image []byte) (chunk.Verity, []byte) {
	t.Helper()
	b, err := NewBuilder(t.TempDir())
	require.NoError(t, err)
	for rest, n := image, 1; len(rest) > 0; n++ {
		piece := min(len(rest), n*blockSize)
		require.NoError(t, b.Add(AppendLeaves(nil, rest[:piece])))
		rest = rest[piece:]
	}
	require.NoError(t, b.Add(nil))
	tree, err := b.Finish()
	require.NoError(t, err)
	var out bytes.Buffer
	n, err := tree.WriteTo(&out)
	require.NoError(t, err)
	require.Equal(t, tree.Size, n)
	require.NoError(t, errors.Join(tree.Close(), b.Close()))
	return tree.Verity, out.Bytes()
}

// sizes are those at which a tree gains a block or a level, in blocks.
var sizes = []int{1, 2, 3, 127, 128, 129, 256, 300, 128*128 + 1}

func TestTreeIsTheSameEachTime(t *testing.T) {
	image := randomImage(300)
	v1, t1 := build(t, image)
	v2, t2 := build(t, image)
	require.Equal(t, v1, v2)
	require.True(t, bytes.Equal(t1, t2))
	image[1000]++
	v3, _ := build(t, image)
	require.NotEqual(t, v1.Root, v3.Root)
}

func TestNoImage(t *testing.T) {
	b, err := NewBuilder(t.TempDir())
	require.NoError(t, err)
	_, err = b.Finish()
	require.ErrorContains(t, err, "no image")
	require.NoError(t, b.Close())
	_, err = NewBuilder(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// check feeds data to a Checker in pieces of n bytes.
func check(t testing.TB, data []byte, v chunk.Verity, n int) (err error) {
	t.Helper()
	c, err := NewChecker(t.TempDir(), bytes.NewReader(data), v)
	if err != nil {
		return err
	}
	defer func() { require.NoError(t, c.Close()) }()
	for rest := data; len(rest) > 0; {
		p := rest[:min(n, len(rest))]
		if _, err := c.Write(p); err != nil {
			return err
		}
		rest = rest[len(p):]
	}
	return c.Finish()
}

func TestChecker(t *testing.T) {
	for _, blocks := range sizes[:8] {
		image := randomImage(blocks)
		v, tree := build(t, image)
		data := append(bytes.Clone(image), tree...)
		for _, n := range []int{777, 4096, 1 << 20} {
			require.NoError(t, check(t, data, v, n))
		}
		for _, at := range []int{0, len(image) - 1, len(data) - 1, len(image), len(image) + 8, len(image) + 90} {
			bad := bytes.Clone(data)
			bad[at] ^= 1
			err := check(t, bad, v, 1<<20)
			if at == len(data)-1 && blocks == 1 {
				require.NoError(t, err, "the padding of the superblock")
				continue
			}
			require.ErrorIs(t, err, ErrMismatch, "byte %d of %d blocks", at, blocks)
		}
		require.ErrorIs(t, check(t, append(bytes.Clone(data), 0), v, 4096), ErrMismatch, "a byte more")
		require.Error(t, check(t, data[:len(data)-1], v, 4096), "a byte less")
		other := v
		other.Root = digest.FromString("other")
		require.ErrorIs(t, check(t, data, other, 4096), ErrMismatch)
	}
}

// Trees of other tools have a salt and blocks of their own choice.
func TestCheckerAcceptsOtherForms(t *testing.T) {
	image := randomImage(40)
	for _, block := range []int{512, 1024, 4096} {
		path := filepath.Join(t.TempDir(), "image")
		require.NoError(t, os.WriteFile(path, image, 0o600))
		p := verity.DefaultParams()
		p.HashType, p.HashName, p.DataBlockSize, p.HashBlockSize = hashType, hashName, uint32(block), uint32(block)
		p.DataBlocks, p.HashAreaOffset = uint64(len(image)/block), uint64(len(image))
		p.Salt, p.SaltSize, p.UUID = []byte("pepper"), 6, [16]byte{1}
		root, err := verity.Create(&p, path, path)
		require.NoError(t, err)
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		data = append(data, make([]byte, -len(data)&(block-1))...)
		v := chunk.Verity{HashOffset: int64(len(image)), Root: digest.NewDigestFromBytes(digest.SHA256, root), BlockSize: int64(block)}
		require.NoError(t, check(t, data, v, 1000), "blocks of %d", block)
		salt, err := Super(bytes.NewReader(data), v)
		require.NoError(t, err)
		require.Equal(t, "pepper", string(salt))
	}
}

func TestSuperRefuses(t *testing.T) {
	image := randomImage(2)
	v, tree := build(t, image)
	data := append(image, tree...)
	super := func(change func([]byte, *chunk.Verity)) error {
		d, w := bytes.Clone(data), v
		change(d[len(image):], &w)
		_, err := Super(bytes.NewReader(d), w)
		return err
	}
	require.NoError(t, super(func([]byte, *chunk.Verity) {}))
	for what, change := range map[string]func([]byte, *chunk.Verity){
		"magic":        func(b []byte, _ *chunk.Verity) { b[0]++ },
		"version":      func(b []byte, _ *chunk.Verity) { b[8]++ },
		"hash type":    func(b []byte, _ *chunk.Verity) { b[12] = 0 },
		"no uuid":      func(b []byte, _ *chunk.Verity) { clear(b[16:32]) },
		"algorithm":    func(b []byte, _ *chunk.Verity) { copy(b[32:], "sha512") },
		"data block":   func(b []byte, _ *chunk.Verity) { b[65] = 2 },
		"hash block":   func(b []byte, _ *chunk.Verity) { b[69] = 2 },
		"blocks":       func(b []byte, _ *chunk.Verity) { b[72]++ },
		"salt":         func(b []byte, _ *chunk.Verity) { b[81] = 2 },
		"other blocks": func(_ []byte, v *chunk.Verity) { v.BlockSize = 512 },
		"other place":  func(_ []byte, v *chunk.Verity) { v.HashOffset -= blockSize },
	} {
		require.ErrorIs(t, super(change), ErrMismatch, what)
	}
	v.HashOffset = int64(len(data))
	_, err := Super(bytes.NewReader(data), v)
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrMismatch, "what could not be read says nothing")
}

func FuzzSuper(f *testing.F) {
	v, tree := build(f, randomImage(2))
	f.Add(tree[:verity.SuperblockSize], v.BlockSize)
	f.Fuzz(func(t *testing.T, super []byte, block int64) {
		v := chunk.Verity{HashOffset: 0, BlockSize: max(block, 1)}
		salt, err := Super(bytes.NewReader(super), v)
		if err == nil {
			require.LessOrEqual(t, len(salt), 256)
		}
	})
}
