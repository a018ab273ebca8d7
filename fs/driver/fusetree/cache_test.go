package fusetree

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/tests/testenv/caches"
)

// requests counts what do makes the kernel ask.
func (r *rig) requests(m driver.Mount, do func()) uint64 {
	before := asked(m)
	do()
	return asked(m) - before
}

// A listing brings the attributes along (READDIRPLUS), and what was said once holds
// for ever: names, also those that are not there, attributes, links, listings, data,
// and that nothing need be opened or closed.
func TestTheKernelAsksOnce(t *testing.T) {
	r := newRig(t, Config{})
	var entries []entry
	for k := range 300 {
		entries = append(entries, file(fmt.Sprintf("many/%03d", k), "x"))
	}
	entries = append(entries, entry{path: "link", target: "many/000"})
	root, m := r.mount(r.layer("l", buildLayer(t, entries...)))
	look := func() {
		list, err := os.ReadDir(filepath.Join(root, "many"))
		require.NoError(t, err)
		require.Len(t, list, 300)
		for _, e := range list {
			st, err := e.Info()
			require.NoError(t, err)
			require.Equal(t, int64(1), st.Size())
		}
		to, err := os.Readlink(filepath.Join(root, "link"))
		require.NoError(t, err)
		require.Equal(t, "many/000", to)
		_, err = os.Lstat(filepath.Join(root, "none"))
		require.ErrorIs(t, err, os.ErrNotExist)
		data, err := os.ReadFile(filepath.Join(root, "many/299"))
		require.NoError(t, err)
		require.Equal(t, "x", string(data))
	}
	release := caches.Hold(t)
	require.Less(t, r.requests(m, look), uint64(30), "attributes do not come with names")
	require.Zero(t, r.requests(m, look), "the kernel has forgotten")
	release()
	r.end(m)
}

// What is asked of extended attributes, by both calls and with every length of
// buffer. The kernel keeps none, so each call is a request.
func TestXattrsOfEveryKind(t *testing.T) {
	r := newRig(t, Config{})
	long := strings.Repeat("v", 60_000)
	shared := map[string]string{"user.shared": strings.Repeat("s", 100), "security.test": "1"}
	entries := []entry{file("none", "")}
	for k := range 5 { // often enough to be stored once
		e := file(fmt.Sprintf("shared%d", k), "")
		e.xattrs = shared
		entries = append(entries, e)
	}
	e := file("long", "")
	e.xattrs = map[string]string{"user.long": long, "user.empty": "", "user.é": "x"}
	root, m := r.mount(r.layer("l", buildLayer(t, append(entries, e)...)))
	for name, want := range map[string]map[string]string{"none": {}, "shared4": shared, "long": e.xattrs} {
		path := filepath.Join(root, name)
		n, err := unix.Listxattr(path, nil)
		require.NoError(t, err)
		buf := make([]byte, n)
		if n > 0 {
			_, err = unix.Listxattr(path, buf[:n-1])
			require.ErrorIs(t, err, unix.ERANGE)
			_, err = unix.Listxattr(path, buf)
			require.NoError(t, err)
		}
		require.Len(t, strings.Split(string(buf), "\x00"), len(want)+1)
		for key, value := range want {
			n, err := unix.Getxattr(path, key, nil)
			require.NoError(t, err, key)
			require.Len(t, value, n)
			got := make([]byte, n)
			_, err = unix.Getxattr(path, key, got)
			require.NoError(t, err)
			require.Equal(t, value, string(got))
			if n > 1 {
				_, err = unix.Getxattr(path, key, got[:n-1])
				require.ErrorIs(t, err, unix.ERANGE)
			}
		}
		_, err = unix.Getxattr(path, "user.other", make([]byte, 10))
		require.ErrorIs(t, err, unix.ENODATA)
	}
	r.end(m)
}

// A read of a mebibyte is one request, and read-ahead asks for as much as it was
// set to.
func TestReadsAreLarge(t *testing.T) {
	r := newRig(t, Config{ReadAheadKB: 1024})
	const size = 8 << 20
	img := drivertest.NewBigImage(t, size)
	root, m := r.mount(r.layer("l", img))
	own, ok := m.(*mount)
	require.True(t, ok)
	require.Equal(t, 1<<20, own.session.MaxRead())
	direct, err := os.OpenFile(filepath.Join(root, "big"), os.O_RDONLY|unix.O_DIRECT, 0)
	require.NoError(t, err)
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // page aligned
	require.NoError(t, err)
	require.LessOrEqual(t, r.requests(m, func() {
		n, err := direct.ReadAt(buf, 1<<20)
		require.NoError(t, err)
		require.Equal(t, len(buf), n)
	}), uint64(1))
	require.Equal(t, img.Files["big"][1<<20:2<<20], buf)
	require.NoError(t, unix.Munmap(buf))
	require.NoError(t, direct.Close())
	require.LessOrEqual(t, r.requests(m, func() {
		r.requireFiles(root, img.Files)
	}), uint64(2*size>>20))
	r.end(m)
}
