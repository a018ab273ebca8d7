package converter

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestScratchOfAKilledProcessGoes makes the directory of a process that ended
// without Close: old, and with no lock.
func TestScratchOfAKilledProcessGoes(t *testing.T) {
	parent := t.TempDir()
	long := time.Now().Add(-time.Hour)
	dead, young, other := filepath.Join(parent, "x-dead"), filepath.Join(parent, "x-young"), filepath.Join(parent, "y-other")
	for _, d := range []string{dead, young, other} {
		require.NoError(t, os.Mkdir(d, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(d, "file"), nil, 0o600))
	}
	live, err := newScratch(parent, "x-")
	require.NoError(t, err)
	for _, d := range []string{dead, other, live.dir} {
		require.NoError(t, os.Chtimes(d, long, long))
	}
	next, err := newScratch(parent, "x-")
	require.NoError(t, err)
	require.NoDirExists(t, dead)
	for _, d := range []string{young, other, live.dir, next.dir} {
		require.DirExists(t, d)
	}
	for _, s := range []*scratch{live, next, live, nil} {
		require.NoError(t, s.Close())
	}
	require.NoDirExists(t, live.dir)
}

// TestScratchOfOthersStays has a directory of another user in one where everybody may
// make some, which this user could lock but not remove.
func TestScratchOfOthersStays(t *testing.T) {
	testenv.RequireRoot(t)
	parent := t.TempDir()
	others := filepath.Join(parent, "x-others")
	require.NoError(t, os.Mkdir(others, 0o755))
	require.NoError(t, os.Chown(others, 65534, 65534))
	long := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(others, long, long))
	s, err := newScratch(parent, "x-")
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.DirExists(t, others)
}

func TestIngestOfAKilledProcessGoes(t *testing.T) {
	target, err := newLayoutTarget("x", t.TempDir(), "x")
	require.NoError(t, err)
	ingest := filepath.Join(target.dir, "ingest")
	require.NoError(t, os.MkdirAll(ingest, 0o700))
	at := func(name string, mode os.FileMode) string {
		f := filepath.Join(ingest, name)
		require.NoError(t, os.WriteFile(f, nil, mode))
		return f
	}
	old, whole, torn, writing := at("a_1", 0o444), at("a_2", 0o444), at("a_3", 0o600), at("b_4", 0o600)
	long := time.Now().Add(-48 * time.Hour)
	require.NoError(t, os.Chtimes(old, long, long))
	w, err := os.OpenFile(writing, os.O_WRONLY, 0)
	require.NoError(t, err)
	target.sweepIngest("b_")
	for _, f := range []string{old, whole, torn, writing} {
		require.FileExists(t, f)
	}
	target.sweepIngest("")
	require.NoFileExists(t, old)
	require.NoFileExists(t, torn)
	require.FileExists(t, whole, "it is about to get its name")
	require.FileExists(t, writing)
	require.NoError(t, w.Close())
	require.NoError(t, os.Remove(whole))
	target.sweepIngest("")
	require.NoDirExists(t, ingest)
}

// FuzzRecord holds that what parses can be used without further checks, and that
// writing it again changes nothing.
func FuzzRecord(f *testing.F) {
	id := digest.FromString("x")
	good, err := json.Marshal(record{
		Desc:      ocispec.Descriptor{MediaType: chunk.MediaTypeLayer, Digest: id, Size: 5, Annotations: map[string]string{chunk.LabelPinned: "1:2"}},
		TarDiffID: id, Meta: id, Result: LayerResult{DiffID: id}, Repos: []string{"h/r"},
	})
	require.NoError(f, err)
	f.Add(good)
	f.Add([]byte(`{}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := parseRecord(b)
		if err != nil {
			return
		}
		require.NoError(t, rec.Desc.Digest.Validate())
		require.True(t, chunk.IsNative(rec.Desc.MediaType))
		require.Positive(t, rec.Desc.Size)
		again, err := json.Marshal(rec)
		require.NoError(t, err)
		same, err := parseRecord(again)
		require.NoError(t, err)
		require.Equal(t, rec.Desc, same.Desc)
	})
}
