package differ

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

// A disk that gives back other bytes than were written must not find its way
// into a layer with digests that are right for them.
func TestSpoolThatGivesOtherBytes(t *testing.T) {
	for name, size := range map[string]int64{"a small file": 5000, "a chunk of a big file": 2 * DefaultChunkSize} {
		t.Run(name, func(t *testing.T) {
			cfg, err := Config{SpoolDir: t.TempDir()}.withDefaults()
			require.NoError(t, err)
			st, err := newStore(t.Context(), cfg)
			require.NoError(t, err)
			defer func() { require.NoError(t, st.close()) }()
			_, err = st.put(t.Context(), bytes.NewReader(bytes.Repeat([]byte{7}, int(size))), size)
			require.NoError(t, err)
			require.NoError(t, st.finish())

			p, s := &plan{}, st.big
			j := &job{}
			if !st.records[0].big {
				s = st.small
				p.smalls = []int{0}
				j.piece = piece{rec: -1, to: 1}
			}
			c, err := newCodec(cfg)
			require.NoError(t, err)
			defer c.close()
			e := newEmitter(cfg, st, p, io.Discard)
			require.NoError(t, e.load(c, j))

			_, err = s.f.WriteAt([]byte{8}, 3)
			require.NoError(t, err)
			require.ErrorContains(t, e.load(c, j), "other bytes than were written, check the disk")
		})
	}
}
