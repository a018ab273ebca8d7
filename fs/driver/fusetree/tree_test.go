package fusetree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// everything has every kind of inode.
func everything() []entry {
	big := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	clear(big[8192:])
	return []entry{
		{path: "", attr: erofs.Attr{Mode: unix.S_IFDIR | 0o711, UID: 3, Mtime: 77, MtimeNsec: 5}, xattrs: map[string]string{"user.root": "r"}},
		dir("d", 0o750), dir("d/sub", 0o700), file("d/one", "one"), file("d/empty", ""),
		{path: "d/hard", link: "d/one"},
		{path: "link", target: "d/one"}, {path: "dangling", target: strings.Repeat("x", 3000)},
		{path: "pipe", attr: erofs.Attr{Mode: unix.S_IFIFO | 0o600}}, {path: "sock", attr: erofs.Attr{Mode: unix.S_IFSOCK | 0o600}},
		{path: "tty", attr: erofs.Attr{Mode: unix.S_IFCHR | 0o620, Rdev: 5<<8 | 1}},
		{path: "big-minor", attr: erofs.Attr{Mode: unix.S_IFBLK | 0o600, Rdev: 259<<8 | 70000&0xff | 70000&^0xff<<12}},
		{path: "white", attr: erofs.Attr{Mode: unix.S_IFCHR}},
		{path: "suid", attr: erofs.Attr{Mode: unix.S_IFREG | 0o4755, UID: 70000, GID: 80000, Mtime: -1}, data: []byte("s"),
			xattrs: map[string]string{"user.a": "1", "user.b": "", "security.test": "cap"}},
		{path: "sparse", attr: erofs.Attr{Mode: unix.S_IFREG | 0o644}, data: big, holeAt: 8192},
		{path: "opaque", attr: erofs.Attr{Mode: unix.S_IFDIR | 0o755}, xattrs: map[string]string{"trusted.overlay.opaque": "y"}},
	}
}

func TestALayerIsShownAsItIs(t *testing.T) {
	r := newRig(t, Config{})
	img := buildLayer(t, everything()...)
	l := r.layer("l", img)
	root, m := r.mount(l)
	kernel := r.TempDir() // the same by the kernel's EROFS
	full := r.layer("full", img)
	require.NoError(t, full.Fill(r.ctx))
	plain, err := r.driver.Mount(r.ctx, kernel, full)
	require.NoError(t, err)
	r.undo(kernel)
	super, err := erofs.SuperblockOf(kernel)
	require.NoError(t, err, "a complete layer is not on FUSE")
	require.NotEmpty(t, super)

	require.Equal(t, names(t, kernel), names(t, root))
	require.NoError(t, filepath.WalkDir(kernel, func(path string, _ os.DirEntry, err error) error {
		rel, _ := filepath.Rel(kernel, path)
		require.NoError(t, err)
		require.Equal(t, shown(t, path), shown(t, filepath.Join(root, rel)), rel)
		return nil
	}))
	r.requireFiles(root, img.Files)
	_, err = os.Lstat(filepath.Join(root, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
	var a, b unix.Stat_t
	require.NoError(t, unix.Lstat(filepath.Join(root, "d/one"), &a))
	require.NoError(t, unix.Lstat(filepath.Join(root, "d/hard"), &b))
	require.Equal(t, a.Ino, b.Ino)
	require.ErrorIs(t, os.WriteFile(filepath.Join(root, "new"), nil, 0o600), unix.EROFS)
	r.end(m)
	r.end(plain)
}

// shown is what stat, readlink and getxattr say.
func shown(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	s := fmt.Sprint(st.Mode, st.Uid, st.Gid, st.Rdev, st.Nlink, st.Mtim, st.Ctim)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s += fmt.Sprint(" ", st.Size)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		to, err := os.Readlink(path)
		require.NoError(t, err)
		s += " " + to
	}
	n, err := unix.Llistxattr(path, nil)
	require.NoError(t, err)
	buf := make([]byte, n+1)
	n, err = unix.Llistxattr(path, buf)
	require.NoError(t, err)
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		value := make([]byte, 100)
		n, err := unix.Lgetxattr(path, name, value)
		if name != "" {
			require.NoError(t, err, name)
			s += fmt.Sprintf(" %s=%q", name, value[:n])
		}
	}
	_, err = unix.Lgetxattr(path, "user.none", make([]byte, 10))
	return s + fmt.Sprint(" ", err)
}

func TestBigDirectoriesAndSeeking(t *testing.T) {
	r := newRig(t, Config{})
	var entries []entry
	for k := range 5000 {
		entries = append(entries, file(fmt.Sprintf("many/file-with-a-longer-name-%05d", k), "x"))
	}
	root, m := r.mount(r.layer("l", buildLayer(t, entries...)))
	for range 2 { // the second time from the kernel's cache
		got, err := os.ReadDir(filepath.Join(root, "many"))
		require.NoError(t, err)
		require.Len(t, got, len(entries))
	}
	d, err := os.Open(filepath.Join(root, "many"))
	require.NoError(t, err)
	first, err := d.Readdirnames(700)
	require.NoError(t, err)
	rest, err := d.Readdirnames(-1)
	require.NoError(t, err)
	require.Len(t, append(first, rest...), len(entries))
	_, err = d.Seek(0, io.SeekStart)
	require.NoError(t, err)
	again, err := d.Readdirnames(700)
	require.NoError(t, err)
	require.Equal(t, first, again)
	require.NoError(t, d.Close())
	r.end(m)
}

func TestHolesAreFound(t *testing.T) {
	r := newRig(t, Config{})
	entries := everything()
	root, m := r.mount(r.layer("l", buildLayer(t, entries...)))
	fd, err := unix.Open(filepath.Join(root, "sparse"), unix.O_RDONLY, 0)
	require.NoError(t, err)
	size := int64(16 * 20000)
	for _, c := range []struct {
		off    int64
		whence int
		want   int64
		err    error
	}{
		{0, unix.SEEK_DATA, 0, nil},
		{5000, unix.SEEK_DATA, 5000, nil},
		{0, unix.SEEK_HOLE, 8192, nil},
		{9000, unix.SEEK_HOLE, 9000, nil},
		{9000, unix.SEEK_DATA, -1, unix.ENXIO},
		{size, unix.SEEK_HOLE, -1, unix.ENXIO},
	} {
		got, err := unix.Seek(fd, c.off, c.whence)
		require.ErrorIs(t, err, c.err)
		require.Equal(t, c.want, got, "%+v", c)
	}
	require.NoError(t, unix.Close(fd))
	one, err := os.Open(filepath.Join(root, "d/one"))
	require.NoError(t, err)
	at, err := one.Seek(1, unix.SEEK_HOLE)
	require.NoError(t, err)
	require.Equal(t, int64(3), at)
	require.NoError(t, one.Close())
	r.end(m)
}

func TestAnImageIsShownAsOverlayWould(t *testing.T) {
	r := newRig(t, Config{ReadAheadKB: 1024})
	white := func(path string) entry { return entry{path: path, attr: erofs.Attr{Mode: unix.S_IFCHR}} }
	bottom := r.layer("bottom", buildLayer(t, file("kept", "kept"), file("gone", "gone"), file("d/old", "old"), file("o/old", "old")))
	upper := r.layer("upper", buildLayer(t, white("gone"), file("d/new", "new"), file("o/new", "new"),
		entry{path: "o", attr: erofs.Attr{Mode: unix.S_IFDIR | 0o700}, xattrs: map[string]string{"trusted.overlay.opaque": "y"}}))
	root, m := r.image(bottom, upper)
	r.requireFiles(root, map[string][]byte{"kept": []byte("kept"), "d/old": []byte("old"), "d/new": []byte("new"), "o/new": []byte("new")})
	require.Equal(t, []string{"d d---------", "kept ----------", "o d---------"}, names(t, root))
	require.Equal(t, []string{"new ----------"}, names(t, filepath.Join(root, "o")))
	n, err := unix.Llistxattr(filepath.Join(root, "o"), nil)
	require.NoError(t, err)
	require.Zero(t, n)
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(root, &st))
	require.Equal(t, uint64(len(bottomBlocks(bottom))+len(bottomBlocks(upper))), st.Blocks)
	r.end(m)
	require.Empty(t, r.keeper.Names())
	_, err = r.driver.MountImage(r.ctx, root, nil)
	require.Error(t, err)
}

// Layers of an image may differ in the size of their blocks and in where their
// metadata is. What is made of them is given back with the mount.
func TestAnImageOfUnlikeLayers(t *testing.T) {
	r := newRig(t, Config{})
	small := buildBlocks(t, 9, file("small/a", strings.Repeat("a", 700)), file("small/b", "b"), file("dir0/file9", "below"))
	split := drivertest.NewImage(t, 1, true)
	plain := buildLayer(t, file("plain", "plain"), file("small/b", "above"))
	layers := []driver.Layer{r.layer("small", small), r.layer("split", split), r.layer("plain", plain)}
	root, m := r.image(layers...)
	want := maps.Clone(split.Files)
	maps.Copy(want, map[string][]byte{"small/a": small.Files["small/a"], "small/b": []byte("above"), "plain": []byte("plain")})
	r.requireFiles(root, want)
	require.Equal(t, 1, images(t))
	require.NoError(t, r.driver.Shutdown(r.ctx))
	require.Zero(t, images(t), "after a shutdown")
	r.succeed()
	m, err := r.driver.AdoptImage(r.ctx, m.Target(), layers)
	require.NoError(t, err)
	r.requireFiles(root, want) // by the numbers of the predecessor
	_, err = r.driver.AdoptImage(r.ctx, t.TempDir(), layers)
	require.ErrorIs(t, err, ErrNotInherited)
	require.Equal(t, 1, images(t))
	r.end(m)
	require.Zero(t, images(t), "after the end")
}

// images counts the merged metadata that this process holds.
func images(t *testing.T) int {
	t.Helper()
	open, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	n := 0
	for _, fd := range open {
		if to, err := os.Readlink(fd); err == nil && strings.Contains(to, "lazyerofs-image") {
			n++
		}
	}
	return n
}

func bottomBlocks(l *drivertest.Layer) []struct{} {
	st, err := l.Data().Stat()
	if err != nil {
		return nil
	}
	return make([]struct{}, (st.Size()+4095)/4096)
}

func TestErrorsAreForOneRead(t *testing.T) {
	r := newRig(t, Config{})
	img := drivertest.NewImage(t, 1, false)
	l := r.layer("l", img)
	root, m := r.mount(l)
	for err, want := range map[error]error{errors.New("registry is down"): unix.EIO, unix.ENOSPC: unix.ENOSPC} {
		l.Fail(err)
		_, got := os.ReadFile(filepath.Join(root, "dir0/file9"))
		require.ErrorIs(t, got, want)
	}
	require.NotZero(t, r.driver.Stats().Denied)
	l.Fail(nil)
	r.requireFiles(root, img.Files)
	s := r.driver.Stats()
	require.NotZero(t, s.Misses)
	require.Equal(t, 1, s.Served)
	r.end(m)
	require.Zero(t, r.driver.Stats().Served)
}

// A reader that is killed does not wait for the registry, one that is only
// interrupted does.
func TestAKilledReaderLeaves(t *testing.T) {
	r := newRig(t, Config{})
	l := r.layer("l", drivertest.NewImage(t, 1, false))
	root, m := r.mount(l)
	release := l.Hold()
	// O_DIRECT: the read is the reader's own and not one of read-ahead, for which it
	// would wait killably anyway.
	cmd := exec.Command("dd", "if="+filepath.Join(root, "dir0/file9"), "of=/dev/null", "bs=64k", "iflag=direct", "status=none")
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		// Not wchan, which is 0 on x86 before Linux 5.16.
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stack", cmd.Process.Pid))
		return err == nil && strings.Contains(string(b), "request_wait")
	}, deadline, pollEvery)
	require.NoError(t, cmd.Process.Signal(syscall.SIGWINCH))
	require.NoError(t, cmd.Process.Kill())
	err := cmd.Wait()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.False(t, exit.Exited())
	release()
	r.end(m)
}

func TestAdoptionAndSettling(t *testing.T) {
	r := newRig(t, Config{})
	img := drivertest.NewImage(t, 1, false)
	l, other := r.layer("l", img), r.layer("other", img)
	image, _ := r.image(l, other)
	single, _ := r.mount(l)
	lost, _ := r.mount(other)
	r.requireFiles(image, map[string][]byte{"dir0/file9": img.Files["dir0/file9"]})
	require.NoError(t, r.driver.Shutdown(r.ctx))
	require.ErrorIs(t, r.driver.Shutdown(r.ctx), ErrShutdown)
	_, err := r.driver.Mount(r.ctx, t.TempDir(), l)
	require.ErrorIs(t, err, ErrShutdown)

	read := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(image, "dir2/file8")) // waits for the successor
		read <- err
	}()
	r.succeed()
	mounts := []driver.Mount{}
	m, err := r.driver.AdoptImage(r.ctx, image, []driver.Layer{l, other})
	require.NoError(t, err)
	require.NoError(t, <-read)
	mounts = append(mounts, m)
	_, err = r.driver.Adopt(r.ctx, single, other)
	require.ErrorIs(t, err, ErrNotInherited, "it is another layer's")
	m, err = r.driver.Adopt(r.ctx, single, l)
	require.NoError(t, err)
	mounts = append(mounts, m)
	orphans, err := r.driver.Settle()
	require.NoError(t, err)
	require.Equal(t, []string{"other"}, orphans)
	_, err = os.ReadFile(filepath.Join(lost, "dir0/file9"))
	require.Error(t, err)
	r.requireFiles(image, img.Files)
	r.requireFiles(single, img.Files)
	for _, m := range mounts {
		r.end(m)
	}
	require.Empty(t, r.keeper.Names())
	_, err = r.driver.Adopt(r.ctx, single, l)
	require.ErrorIs(t, err, ErrNotInherited)
}

func TestProbeLeavesNothing(t *testing.T) {
	r := newRig(t, Config{})
	require.NoError(t, r.driver.Probe(t.TempDir()))
	require.Empty(t, r.keeper.Names())
	require.Equal(t, "fusetree", r.driver.Name())
	_, err := New(r.ctx, Config{})
	require.Error(t, err)
}

func TestMetadataThatIsRefused(t *testing.T) {
	r := newRig(t, Config{})
	img := drivertest.NewImage(t, 1, false)
	img.Data = bytes.Clone(img.Data)
	img.Data[1024] ^= 1
	_, err := r.driver.Mount(r.ctx, t.TempDir(), r.layer("bad", img))
	var refused *erofs.RefusedError
	require.ErrorAs(t, err, &refused)
	split := drivertest.NewImage(t, 1, true)
	split.Meta = []byte("short")
	_, err = r.driver.Mount(r.ctx, t.TempDir(), r.layer("short", split))
	require.ErrorIs(t, err, io.EOF)
	require.Empty(t, r.keeper.Names())
}
