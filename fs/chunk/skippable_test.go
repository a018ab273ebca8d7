package chunk

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

func TestSkippableFrame(t *testing.T) {
	for _, payload := range [][]byte{{}, []byte("index"), bytes.Repeat([]byte{0x28, 0xB5, 0x2F, 0xFD}, 1000)} {
		frame := AppendSkippableFrame([]byte("before"), payload)
		require.Equal(t, "before", string(frame[:6]))
		frame = frame[6:]
		require.Len(t, frame, SkippableHeaderLen+len(payload))
		got, err := SkippablePayload(frame)
		require.NoError(t, err)
		require.True(t, bytes.Equal(payload, got))
	}
}

// TestSkippableFrameIsInvisible shows what the wrapper is for: a plain zstd
// decoder yields the data and nothing of the index.
func TestSkippableFrameIsInvisible(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	blob := AppendSkippableFrame(enc.EncodeAll([]byte("image data"), nil), []byte("an index"))
	dec, err := zstd.NewReader(nil)
	require.NoError(t, err)
	defer dec.Close()
	got, err := dec.DecodeAll(blob, nil)
	require.NoError(t, err)
	require.Equal(t, "image data", string(got))
}

func TestSkippablePayloadRefuses(t *testing.T) {
	good := AppendSkippableFrame(nil, []byte("payload"))
	for m := range uint32(16) {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b, 0x184D2A50+m)
		_, err := SkippablePayload(b)
		require.NoError(t, err, "magic %d", m)
	}
	zstdMagic := bytes.Clone(good)
	binary.LittleEndian.PutUint32(zstdMagic, 0xFD2FB528)
	long := bytes.Clone(good)
	binary.LittleEndian.PutUint32(long[4:], 0xFFFFFFFF)
	for name, b := range map[string][]byte{
		"empty": nil, "7 bytes": good[:7], "cut": good[:len(good)-1], "tail": append(bytes.Clone(good), 0),
		"a real frame": zstdMagic, "length 2^32-1": long,
	} {
		_, err := SkippablePayload(b)
		var ce *CorruptError
		require.ErrorAs(t, err, &ce, name)
	}
}

func FuzzSkippablePayload(f *testing.F) {
	f.Add(AppendSkippableFrame(nil, []byte("payload")))
	f.Add([]byte{0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := SkippablePayload(b)
		if err != nil {
			return
		}
		if again := AppendSkippableFrame(nil, p); !bytes.Equal(again[4:], b[4:]) {
			t.Fatalf("round trip of %x gives %x", b, again)
		}
	})
}
