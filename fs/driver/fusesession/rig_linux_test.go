package fusesession

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
)

const (
	patience  = 30 * time.Second
	serverEnv = "FUSESESSION_SERVER" // serve what comes as descriptors 3 and 4, in this mode
	name      = "test-session"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(serverEnv); mode != "" {
		if err := childServer(mode); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // this is the main of the child
		}
		os.Exit(0) //nolint:forbidigo // this is the main of the child
	}
	drivertest.Main(m)
}

// files is a file system of one directory; node ids are 2 and up.
type files struct {
	fuse.RawFileSystem
	names   []string
	content [][]byte
	backing *os.File // all contents, one after the other, or nil
	at      []int64

	s      *Session
	unkept atomic.Bool // OnUnmount came
	errno  atomic.Int32
	reads  atomic.Int64

	mu   sync.Mutex
	gate chan struct{}
}

func newFiles(t testing.TB) *files {
	f := &files{RawFileSystem: fuse.NewDefaultRawFileSystem()}
	rnd := rand.NewChaCha8([32]byte{1})
	for i, size := range []int{0, 1, 4096, 100_001, 3 << 20} {
		b := make([]byte, size)
		_, err := rnd.Read(b)
		require.NoError(t, err)
		f.names = append(f.names, fmt.Sprintf("file%d", i))
		f.content = append(f.content, b)
	}
	return f
}

// back puts the contents into a file, from which reads are then answered.
func (f *files) back(t testing.TB) {
	var err error
	f.backing, err = os.Create(filepath.Join(t.TempDir(), "backing"))
	require.NoError(t, err)
	at := int64(0)
	for _, c := range f.content {
		_, err := f.backing.Write(c)
		require.NoError(t, err)
		f.at = append(f.at, at)
		at += int64(len(c))
	}
	t.Cleanup(func() { require.NoError(t, f.backing.Close()) })
}

func (f *files) Bind(s *Session) { f.s = s }

func (f *files) OnUnmount() { f.unkept.Store(true) }

func (f *files) attr(node uint64, a *fuse.Attr) bool {
	*a = fuse.Attr{Ino: node, Mode: unix.S_IFDIR | 0o755, Nlink: 2}
	if node == fuse.FUSE_ROOT_ID {
		return true
	}
	if node-2 >= uint64(len(f.names)) {
		return false
	}
	a.Mode, a.Nlink, a.Size = unix.S_IFREG|0o644, 1, uint64(len(f.content[node-2]))
	return true
}

func (f *files) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	for i, n := range f.names {
		if n == name && h.NodeId == fuse.FUSE_ROOT_ID {
			out.NodeId = uint64(i) + 2
			f.attr(out.NodeId, &out.Attr)
			out.SetAttrTimeout(time.Hour)
			out.SetEntryTimeout(time.Hour)
			return fuse.OK
		}
	}
	return fuse.ENOENT
}

func (f *files) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !f.attr(in.NodeId, &out.Attr) {
		return fuse.ENOENT
	}
	out.SetTimeout(time.Hour)
	return fuse.OK
}

// Flush: the kernel asks once, so that no close waits for a server.
func (f *files) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Read hears of no interrupt, as if all were lost.
func (f *files) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.reads.Add(1)
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		ctx, stop := ReaderContext(f.s.Context(), nil, in.Pid)
		defer stop()
		select {
		case <-gate:
		case <-ctx.Done():
			if stop() {
				return nil, fuse.EINTR
			}
			return nil, fuse.EIO
		}
	}
	if errno := f.errno.Load(); errno != 0 {
		return nil, fuse.Status(errno)
	}
	c := f.content[in.NodeId-2]
	off := min(int(in.Offset), len(c))
	return fuse.ReadResultData(buf[:copy(buf, c[off:])]), fuse.OK
}

// hold makes reads wait until the returned function is called.
func (f *files) hold() func() {
	gate := make(chan struct{})
	f.mu.Lock()
	f.gate = gate
	f.mu.Unlock()
	return sync.OnceFunc(func() {
		f.mu.Lock()
		f.gate = nil
		f.mu.Unlock()
		close(gate)
	})
}

// resident is files with a backing file.
type resident struct{ *files }

func (f resident) Resident(node uint64, off int64, n int) (int, int64, int, bool) {
	c := f.content[node-2]
	return int(f.backing.Fd()), f.at[node-2] + off, min(n, len(c)-int(min(off, int64(len(c))))), true
}

// rig is a mounted session.
type rig struct {
	testing.TB
	fs     *files
	keeper *drivertest.Keeper
	target string
	s      *Session
	fds    int
}

func newRig(t testing.TB, change func(*MountConfig, *Config)) *rig {
	r := &rig{TB: t, fs: newFiles(t), keeper: &drivertest.Keeper{}, target: t.TempDir()}
	r.fds = openFiles(t)
	mc := MountConfig{Target: r.target, Source: "test", Subtype: "session"}
	conf := r.config()
	if change != nil {
		change(&mc, &conf)
	}
	var err error
	r.s, err = Mount(t.Context(), mc, conf)
	require.NoError(t, err)
	t.Cleanup(func() { // what a failed test left
		_ = unix.Unmount(r.target, unix.MNT_FORCE|unix.MNT_DETACH)
		_ = r.keeper.Close()
	})
	return r
}

func (r *rig) config() Config { return Config{Name: name, Keeper: r.keeper, FS: r.fs} }

// end unmounts and looks for what is left.
func (r *rig) end() {
	require.NoError(r, r.s.Unmount())
	r.await(r.s.Done(), "the end of the connection")
	require.Empty(r, r.keeper.Names())
	require.True(r, r.fs.unkept.Load())
	require.LessOrEqual(r, openFiles(r), r.fds) // what others had open then they may have closed
}

func (r *rig) await(c <-chan struct{}, what string) {
	r.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		require.FailNow(r, "waited too long for "+what)
	}
}

// read compares a file with the truth.
func (r *rig) read(i int) error {
	f, err := os.Open(filepath.Join(r.target, r.fs.names[i]))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	got, err := io.ReadAll(f)
	if err == nil && !bytes.Equal(got, r.fs.content[i]) {
		return errors.New("wrong bytes")
	}
	return err
}

func (r *rig) readAll() {
	r.Helper()
	for i := range r.fs.names {
		require.NoError(r, r.read(i), r.fs.names[i])
	}
}

// reader reads in the background.
func (r *rig) reader(i int) <-chan error {
	c := make(chan error, 1)
	go func() { c <- r.read(i) }()
	return c
}

func (r *rig) result(c <-chan error) error {
	r.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(patience):
		require.FailNow(r, "a reader hangs")
		return nil
	}
}

// adopt is what a successor does.
func (r *rig) adopt(conf Config) {
	r.Helper()
	inherited, err := r.keeper.Inherited()
	require.NoError(r, err)
	r.s, err = Adopt(r.Context(), r.target, conf, inherited)
	require.NoError(r, err)
}

// unanswered counts the requests that were taken.
func (r *rig) unanswered() int {
	state := r.state()
	defer state.Close()
	n, err := Unanswered(state)
	require.NoError(r, err)
	return n
}

// readsTaken counts the reads among those requests. Of those that are held it is
// sure; of any other a slot is emptied only after its answer was written, which its
// sender may have seen long before.
func (r *rig) readsTaken() int {
	state := r.state()
	defer state.Close()
	st, err := state.Stat()
	require.NoError(r, err)
	n := 0
	var b [8]byte // the length and the operation of a request
	for at := int64(stateHeader); at < st.Size(); at += slotSize {
		_, err := state.ReadAt(b[:], at)
		require.NoError(r, err)
		if binary.NativeEndian.Uint32(b[:]) != 0 && binary.NativeEndian.Uint32(b[4:]) == opRead {
			n++
		}
	}
	return n
}

func (r *rig) state() *os.File {
	inherited, err := r.keeper.Inherited()
	require.NoError(r, err)
	require.NoError(r, inherited[name][0].Close())
	return inherited[StateName(name)][0]
}

func openFiles(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	n := 0
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(to, "anon_inode:[event") && to != "anon_inode:[pidfd]" {
			n++
		}
	}
	return n
}

// childServer adopts the connection and is killed. In mode "hold" it takes
// reads and answers none.
func childServer(mode string) error {
	k := &drivertest.Keeper{}
	inherited := map[string][]*os.File{
		name:            {os.NewFile(3, "/dev/fuse")},
		StateName(name): {os.NewFile(4, "state")},
	}
	t := &testing.T{}
	fs := newFiles(t)
	if mode == "hold" {
		fs.hold()
	}
	s, err := Adopt(context.Background(), "", Config{Name: name, Keeper: k, FS: fs}, inherited)
	if err != nil {
		return err
	}
	go func() { // the end of its parent is its own
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1) //nolint:forbidigo // this is the main of the child
	}()
	fmt.Fprintln(os.Stdout, "serving")
	<-s.Done()
	return nil
}

// startChild lets another process serve the connection.
func (r *rig) startChild(mode string) *exec.Cmd {
	inherited, err := r.keeper.Inherited()
	require.NoError(r, err)
	self, err := os.Executable()
	require.NoError(r, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serverEnv+"="+mode)
	cmd.ExtraFiles = []*os.File{inherited[name][0], inherited[StateName(name)][0]}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(r, err)
	_, err = cmd.StdinPipe() // closed by Wait, or with this process
	require.NoError(r, err)
	require.NoError(r, cmd.Start())
	for _, f := range cmd.ExtraFiles {
		require.NoError(r, f.Close())
	}
	_, err = io.ReadFull(out, make([]byte, len("serving\n")))
	require.NoError(r, err)
	return cmd
}
