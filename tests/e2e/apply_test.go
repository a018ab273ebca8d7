package e2e

import (
	"bytes"
	"encoding/hex"
	"os/exec"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/opencontainers/go-digest"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// relayer pushes image with other layers and returns its reference. change gives
// the media type and the bytes of a layer.
func (n *node) relayer(image *testenv.Image, tag string, change func(blob []byte, desc ocispec.Descriptor) (string, []byte, digest.Digest)) string {
	n.t.Helper()
	src, err := oci.NewWithContext(n.t.Context(), image.Dir)
	require.NoError(n.t, err)
	ref := n.reg.Addr() + "/tiny:" + tag
	dst, err := remote.NewRepository(ref)
	require.NoError(n.t, err)
	dst.PlainHTTP = true
	var manifest ocispec.Manifest
	read(n, src, image.Manifest, &manifest)
	var config ocispec.Image
	read(n, src, manifest.Config, &config)
	for i, l := range manifest.Layers {
		blob, err := content.FetchAll(n.t.Context(), src, l)
		require.NoError(n.t, err)
		mediaType, b, diffID := change(blob, l)
		if diffID != "" {
			config.RootFS.DiffIDs[i] = diffID
		}
		manifest.Layers[i] = ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		n.push(dst, manifest.Layers[i], b)
	}
	manifest.Config = n.pushJSON(dst, manifest.Config.MediaType, config)
	require.NoError(n.t, dst.Tag(n.t.Context(), n.pushJSON(dst, image.Manifest.MediaType, manifest), tag))
	return ref
}

// aes is an openssl command that encrypts or decrypts its input.
func aes(mode string) []string {
	return []string{"enc", mode, "-aes-128-ctr", "-K", hex.EncodeToString([]byte("0123456789abcdef")), "-iv", hex.EncodeToString(make([]byte, 16))}
}

// Encrypted layers are decrypted by the program that the configuration names, in
// the daemon, under the transfer service.
func TestEncryptedImage(t *testing.T) {
	sealed := map[string]any{}
	for _, mediaType := range []string{ocispec.MediaTypeImageLayerGzip, "application/vnd.erofs.layer.v1+zstd"} {
		sealed[mediaType] = map[string]any{
			"accepts": []string{mediaType + "+encrypted"}, "returns": mediaType, "path": "openssl", "args": aes("-d"),
		}
	}
	n := start(t, map[string]any{"stream_processors": sealed})
	_, image := n.tiny()
	seal := func(b []byte) []byte {
		cmd := exec.CommandContext(t.Context(), "openssl", aes("-e")...)
		cmd.Stdin = bytes.NewReader(b)
		out, err := cmd.Output()
		require.NoError(t, err)
		return out
	}
	tar := n.relayer(image, "sealed-tar", func(blob []byte, desc ocispec.Descriptor) (string, []byte, digest.Digest) {
		require.Equal(t, ocispec.MediaTypeImageLayerGzip, desc.MediaType)
		return desc.MediaType + "+encrypted", seal(blob), ""
	})
	n.pull(tar)
	require.Equal(t, testenv.TinyOutput, n.run(tar, "one", image.Ready...))

	native := n.relayer(image, "sealed-erofs", func(blob []byte, _ ocispec.Descriptor) (string, []byte, digest.Digest) {
		var out bytes.Buffer
		res, err := differ.Convert(t.Context(), bytes.NewReader(blob), &out, differ.Config{})
		require.NoError(t, err)
		return res.Descriptor.MediaType + "+encrypted", seal(out.Bytes()), res.DiffID
	})
	n.pull(native)
	require.Equal(t, testenv.TinyOutput, n.run(native, "two", image.Ready...))
}

// A layer that nobody can unpack fails the pull, and our log says what to do.
func TestUnknownLayers(t *testing.T) {
	n := start(t, nil)
	_, image := n.tiny()
	for tag, suffix := range map[string]string{"sealed": "+encrypted", "odd": "+xz"} {
		ref := n.relayer(image, tag, func(blob []byte, desc ocispec.Descriptor) (string, []byte, digest.Digest) {
			return "application/vnd.oci.image.layer.v1.tar" + suffix, blob, ""
		})
		_, err := n.Ctr(t.Context(), "images", "pull", "--plain-http", "--snapshotter", "lazyerofs", ref)
		require.Error(t, err)
	}
	log, err := n.daemon.Log()
	require.NoError(t, err)
	require.Contains(t, log, "is encrypted (application/vnd.oci.image.layer.v1.tar+encrypted): name a program that decrypts")
	require.Contains(t, log, "application/vnd.oci.image.layer.v1.tar+xz")
	require.Contains(t, log, "rebuild the image with such layers")
}
