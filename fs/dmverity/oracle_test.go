//go:build !guest

package dmverity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/go-dmverity/pkg/verity"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// The whole file is what containerd's library writes for it, and what the
// distribution's veritysetup accepts.
func TestTreeIsWhatOthersMake(t *testing.T) {
	for _, blocks := range sizes {
		t.Run(fmt.Sprint(blocks), func(t *testing.T) {
			image := randomImage(blocks)
			v, tree := build(t, image)
			require.Equal(t, int64(len(image)), v.HashOffset)
			require.Zero(t, len(tree)%blockSize)

			path := filepath.Join(t.TempDir(), "image")
			require.NoError(t, os.WriteFile(path, append(bytes.Clone(image), make([]byte, len(tree))...), 0o600))
			sb, err := verity.DeserializeSuperblock(tree)
			require.NoError(t, err)
			p := verity.DefaultParams()
			p.HashType, p.DataBlockSize, p.HashBlockSize = hashType, blockSize, blockSize
			p.HashName, p.DataBlocks, p.HashAreaOffset, p.UUID = hashName, uint64(blocks), uint64(len(image)), sb.UUID
			p.Salt, p.SaltSize = make([]byte, sha256.Size), sha256.Size
			root, err := verity.Create(&p, path, path)
			require.NoError(t, err)
			require.Equal(t, hex.EncodeToString(root), v.Hex())
			theirs, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, bytes.Equal(append(image, tree...), theirs), "the trees differ")

			require.NoError(t, os.WriteFile(path, append(image, tree...), 0o600))
			out, err := exec.CommandContext(t.Context(), testenv.MustTool(t, "veritysetup"), "verify", "--debug",
				fmt.Sprintf("--hash-offset=%d", v.HashOffset), path, path, v.Hex()).CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
}
