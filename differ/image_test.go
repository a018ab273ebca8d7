package differ

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestSparseWriter: whatever is written in whatever pieces is in the file, and
// blocks of zeros take no room.
func TestSparseWriter(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "f"))
			require.NoError(t, err)
			defer f.Close()
			rnd := rand.New(rand.NewPCG(seed, 3))
			start := alignUp(rnd.Int64N(3 * blockSize))
			w := sparseWriter{f: f, n: start, started: start}
			want := bytes.NewBuffer(make([]byte, start))
			for range 40 {
				p := make([]byte, rnd.IntN(3*gatherLen/2))
				if rnd.IntN(3) == 0 {
					p = p[:min(len(p), rnd.IntN(9000))]
				}
				if rnd.IntN(3) > 0 {
					copy(p[len(p)/4:], random(rnd.Uint64(), len(p)/2)) // zeros before and behind
				}
				n, err := w.Write(p)
				require.NoError(t, err)
				require.Equal(t, len(p), n)
				want.Write(p)
				if rnd.IntN(2) == 0 {
					w.pad()
					want.Write(make([]byte, alignUp(int64(want.Len()))-int64(want.Len())))
				}
				require.EqualValues(t, want.Len(), w.n)
			}
			require.NoError(t, w.finish())
			got, err := os.ReadFile(f.Name())
			require.NoError(t, err)
			require.True(t, bytes.Equal(want.Bytes(), got))
		})
	}
}

func TestSparseWriterLeavesHoles(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	require.NoError(t, err)
	defer f.Close()
	w := sparseWriter{f: f}
	for range 64 {
		_, err := w.Write(zeros[:])
		require.NoError(t, err)
	}
	_, err = w.Write([]byte("data"))
	require.NoError(t, err)
	w.pad()
	require.NoError(t, w.finish())
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(f.Fd()), &st))
	require.EqualValues(t, 64*len(zeros)+blockSize, st.Size)
	require.Less(t, st.Blocks*512, int64(64<<10))
}

// TestSparseWriterTellsOfAFullDisk: also when the last of it is only gathered.
func TestSparseWriterTellsOfAFullDisk(t *testing.T) {
	d := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", d, "tmpfs", 0, "size=64k"))
	defer func() { require.NoError(t, unix.Unmount(d, 0)) }()
	f, err := os.Create(filepath.Join(d, "f"))
	require.NoError(t, err)
	defer f.Close()
	w := sparseWriter{f: f}
	_, err = w.Write([]byte(random(1, gatherLen/2)))
	require.NoError(t, err, "nothing was written yet")
	require.ErrorIs(t, w.finish(), unix.ENOSPC)
}

func TestRoomFor(t *testing.T) {
	for blob, want := range map[int64]int64{-1: 64 << 10, 0: 64 << 10, 1: 64<<10 + blockSize, 1 << 20: 64<<10 + 4<<20, 4 << 20: roomMost, 1 << 62: roomMost} {
		require.Equal(t, want, roomFor(blob), "a blob of %d bytes", blob)
	}
}
