package fusesession

import (
	"encoding/binary"
	"os"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
)

// A successor's page of a slot is there before read(2) needs it.
func TestASlotIsTouchedBeforeItIsUsed(t *testing.T) {
	first, err := newJournal(8)
	require.NoError(t, err)
	defer func() { require.NoError(t, first.close()) }()
	for i := range int32(8) {
		first.touch(i)
	}
	var fd int
	require.NoError(t, lifetime.Control(first.file, func(raw int) (err error) {
		fd, err = unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 0)
		return err
	}))
	j, err := openJournal(os.NewFile(uintptr(fd), "successor's"))
	require.NoError(t, err)
	defer func() { require.NoError(t, j.close()) }()
	slot, ok := j.get(nil)
	require.True(t, ok)
	j.touch(slot)
	require.True(t, mapped(t, j, slot))
}

// mapped reports whether this process has the first page of a slot in its page
// table (bit 63 of Documentation/admin-guide/mm/pagemap.rst).
func mapped(t *testing.T, j *journal, slot int32) bool {
	f, err := os.Open("/proc/self/pagemap")
	require.NoError(t, err)
	defer f.Close()
	var b [8]byte
	page := uintptr(unsafe.Pointer(&j.slot(slot)[0])) / uintptr(os.Getpagesize())
	_, err = f.ReadAt(b[:], int64(page)*8)
	require.NoError(t, err)
	return binary.NativeEndian.Uint64(b[:])>>63 != 0
}
