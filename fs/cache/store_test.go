package cache

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

func TestStore(t *testing.T) {
	s, err := OpenStore(t.TempDir())
	require.NoError(t, err)
	list, err := s.List()
	require.NoError(t, err)
	require.Empty(t, list)

	l := newLayer(t, "", 16*testChunk)
	f, err := s.OpenFile(l.opts)
	require.NoError(t, err)
	l.write(t, f, 0, 1, 2, 3)
	require.NoError(t, f.Flush(t.Context()))
	require.NoError(t, os.Mkdir(filepath.Join(s.Root(), "layers", "not-a-layer"), 0o700))
	list, err = s.List()
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, l.opts.ID, list[0].ID)
	require.GreaterOrEqual(t, list[0].Bytes, int64(4*testChunk))
	require.Less(t, list[0].Bytes, int64(16*testChunk), "holes take no space")
	require.False(t, list[0].LastUsed.IsZero())

	require.ErrorIs(t, s.Remove(l.opts.ID), ErrInUse)
	require.Equal(t, 4, l.check(t, f), "a refused Remove changes nothing")
	require.NoError(t, f.Close(t.Context()))
	require.NoError(t, s.Remove(l.opts.ID))
	require.NoError(t, s.Remove(l.opts.ID), "removing what is gone")
	_, err = s.Stat(l.opts.ID)
	require.ErrorIs(t, err, os.ErrNotExist)
	graves, err := os.ReadDir(filepath.Join(s.Root(), "trash"))
	require.NoError(t, err)
	require.Empty(t, graves)
}

func TestStoreRefusesNames(t *testing.T) {
	s, err := OpenStore(t.TempDir())
	require.NoError(t, err)
	for _, id := range []digest.Digest{"", "sha256:", "../../etc", "sha256:../../../../etc/passwd", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		_, err := s.Dir(id)
		require.Error(t, err, "%q", id)
		require.Error(t, s.Remove(id), "%q", id)
		_, err = s.Stat(id)
		require.Error(t, err, "%q", id)
		_, err = s.OpenFile(Options{ID: id, Map: testMap(t, nil)})
		require.Error(t, err, "%q", id)
	}
}

func TestSweep(t *testing.T) {
	s, err := OpenStore(t.TempDir())
	require.NoError(t, err)
	grave := filepath.Join(s.Root(), "trash", "123")
	require.NoError(t, os.MkdirAll(filepath.Join(grave, "sha256-abc"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(grave, "sha256-abc", "data"), []byte("x"), 0o600))
	require.NoError(t, s.Sweep(t.Context()))
	_, err = os.Stat(grave)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestHealth(t *testing.T) {
	s, err := OpenStore(t.TempDir())
	require.NoError(t, err)
	h, err := s.Health()
	require.NoError(t, err)
	require.Positive(t, h.TotalBytes)
	require.LessOrEqual(t, h.FreeBytes, h.TotalBytes)
	require.NoError(t, os.RemoveAll(s.Root()))
	_, err = s.Health()
	require.Error(t, err)
}

func testRecord() Record {
	return Record{
		Format: "zstdseek", Size: 12345, Refs: []string{"example.com/image:tag"},
		Descriptor: ocispec.Descriptor{
			MediaType: chunk.MediaTypeLayerZstd, Digest: digest.FromString("blob"), Size: 99,
			Annotations: map[string]string{chunk.LabelPinned: "1:2"},
		},
	}
}

func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layer")
	_, err := LoadRecord(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	want := testRecord()
	require.NoError(t, SaveRecord(dir, want))
	want.Refs = append(want.Refs, "another")
	require.NoError(t, SaveRecord(dir, want))
	got, err := LoadRecord(dir)
	require.NoError(t, err)
	want.Version = recordVersion
	require.Equal(t, want, got)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 1, "no temporary file stays")
}

func TestRecordRefuses(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, SaveRecord(dir, testRecord()))
	good := string(contents(t, dir, recordName))
	for name, text := range map[string]string{
		"empty": "", "cut": good[:len(good)/2], "two": good + good,
		"version":  strings.Replace(good, `"version": 1`, `"version": 2`, 1),
		"digest":   strings.Replace(good, "sha256:", "sha256:../", 1),
		"size":     strings.Replace(good, "12345", "-1", 1),
		"format":   strings.Replace(good, "zstdseek", "", 1),
		"too long": good + strings.Repeat(" ", maxRecordLen),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, recordName), []byte(text), 0o600))
		_, err := LoadRecord(dir)
		var ce *chunk.CorruptError
		require.ErrorAs(t, err, &ce, name)
		require.Equal(t, chunk.OriginDisk, ce.Origin)
	}
}

func TestIndexFile(t *testing.T) {
	dir := t.TempDir()
	_, err := LoadIndex(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, SaveIndex(dir, []byte("index")))
	b, err := LoadIndex(dir)
	require.NoError(t, err)
	require.Equal(t, "index", string(b))
	require.NoError(t, os.Truncate(filepath.Join(dir, indexName), maxIndexLen+1))
	_, err = LoadIndex(dir)
	var ce *chunk.CorruptError
	require.ErrorAs(t, err, &ce)
}

// FuzzSlots holds that a bitmap which was not written by us for this very layer
// is never believed.
func FuzzSlots(f *testing.F) {
	id := &identity{chunks: 70, size: 70 * 4096, tag: tag{1}}
	good := encodeSlot(id, &slot{seq: 3, words: []uint64{5, 1}})
	f.Add(good)
	f.Add(append(good, good...))
	f.Add([]byte(slotMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := loadSlots(id, strings.NewReader(string(b)))
		require.NoError(t, err)
		require.Len(t, s.words, 2)
		if countWords(s.words) == 0 {
			return
		}
		sealed := encodeSlot(id, s)
		n := slotHeaderLen + 16 + 32
		if !strings.Contains(string(b), string(sealed[:n])) {
			t.Fatalf("believed %x", b)
		}
	})
}

// FuzzRecord holds that whatever decodes encodes to the same again.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"descriptor":{"mediaType":"m","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1},"format":"f","size":1}`))
	f.Add([]byte(`{"version":1,"descriptor":{"size":-1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		dir := t.TempDir()
		require.NoError(t, SaveRecord(dir, r))
		again, err := LoadRecord(dir)
		require.NoError(t, err)
		require.Equal(t, r.Descriptor.Digest, again.Descriptor.Digest)
		require.Equal(t, r.Size, again.Size)
	})
}
