package fuseblock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// A child of the test binary that mounts a layer and is killed meanwhile.
const (
	mounterEnv = "FUSEBLOCK_MOUNTER" // its mount point
	loopEnv    = "FUSEBLOCK_LOOP"    // through a loop device
	keptFD     = 3                   // where what is to be kept goes
)

// heldLayer answers the first reads of it, and then none.
type heldLayer struct {
	probeLayer
	reads int64
	asked atomic.Int64
	one   atomic.Bool // a read is answered
	taken chan struct{}
}

func newHeldLayer(tb testing.TB, reads int64) *heldLayer {
	image, _, _ := kernel.ProbeImage()
	path := filepath.Join(tb.TempDir(), "image")
	require.NoError(tb, os.WriteFile(path, image, 0o600))
	data, err := os.Open(path)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = data.Close() })
	return &heldLayer{
		probeLayer: probeLayer{data: data, never: make(chan struct{})}, reads: reads, taken: make(chan struct{}),
	}
}

func (*heldLayer) ID() string                   { return "held" }
func (l *heldLayer) Resident(int64, int64) bool { return l.one.Swap(false) }

func (l *heldLayer) Ensure(ctx context.Context, _, _ int64) error {
	n := l.asked.Add(1)
	if n <= l.reads {
		l.one.Store(true)
		return nil
	}
	if n == l.reads+1 {
		close(l.taken)
	}
	<-ctx.Done()
	return ctx.Err()
}

// sender keeps descriptors by sending them to the parent.
type sender struct{ fd int }

func (s sender) Put(name string, f *os.File) error {
	return unix.Sendmsg(s.fd, []byte(name), unix.UnixRights(int(f.Fd())), nil, 0)
}

func (sender) Remove(string) error { return nil }

// childTB is a testing.TB for a process that runs no test.
type childTB struct {
	testing.TB
	dir string
}

func (*childTB) Helper()           {}
func (*childTB) Cleanup(func())    {}
func (t *childTB) TempDir() string { return t.dir }
func (*childTB) Errorf(f string, a ...any) {
	fmt.Fprintf(os.Stderr, f+"\n", a...)
}
func (*childTB) FailNow() { panic("the child failed") }

// mounter is the main of the child. It says which connection it serves and who
// waits for it, and waits to be killed.
func mounter(target string) error {
	unix.CloseOnExec(keptFD)
	conf := Config{Keeper: sender{keptFD}}
	l := newHeldLayer(&childTB{dir: filepath.Dir(target)}, 0)
	if os.Getenv(loopEnv) != "" {
		conf.LoopDevices, l.reads = true, 1 // the first is for the size of blocks, before there is a device
	}
	d, err := New(context.Background(), conf)
	if err != nil {
		return err
	}
	go func() { // the end of its parent is its own
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1) //nolint:forbidigo // this is the main of the child
	}()
	go func() {
		<-l.taken
		fmt.Fprintln(os.Stdout, d.conn(), children())
	}()
	_, err = d.Mount(context.Background(), target, l)
	return fmt.Errorf("the mount ended: %w", err)
}

// conn is the number of the one connection.
func (d *Driver) conn() uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.sessions {
		root, err := f.session.Root()
		if err != nil {
			return 0
		}
		defer root.Close()
		var st unix.Statx_t
		_ = unix.Statx(int(root.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
		return st.Dev_minor
	}
	return 0
}

func children() string {
	var all []string
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		all = append(all, strings.Fields(string(b))...)
	}
	return strings.Join(all, ",")
}

// victim is the child as its parent knows it.
type victim struct {
	*testing.T
	cmd    *exec.Cmd
	target string
	kept   int    // the other end of its keptFD
	conns  string // where fusectl is mounted
	conn   uint32
	inode  uint64 // of its directory: another connection may get the number
	waiter int    // the process that makes the mount
	loop   string // what that has bound, with its sequence number
}

// startVictim returns when the answer to a read of the mounting process is held.
func startVictim(t *testing.T, loop bool) *victim {
	v := &victim{T: t, target: filepath.Join(t.TempDir(), "mnt"), conns: t.TempDir()}
	require.NoError(t, unix.Mount("none", v.conns, "fusectl", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(v.conns, unix.MNT_DETACH)) })
	require.NoError(t, os.Mkdir(v.target, 0o755))
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	v.kept = fds[0]
	t.Cleanup(func() { _ = unix.Close(v.kept) })
	theirs := os.NewFile(uintptr(fds[1]), "kept")
	v.cmd = exec.Command("/proc/self/exe")
	v.cmd.Env = append(os.Environ(), mounterEnv+"="+v.target)
	if loop {
		v.cmd.Env = append(v.cmd.Env, loopEnv+"=1")
	}
	v.cmd.ExtraFiles, v.cmd.Stderr = []*os.File{theirs}, os.Stderr
	out, err := v.cmd.StdoutPipe()
	require.NoError(t, err)
	_, err = v.cmd.StdinPipe() // closed by Wait, or with this process
	require.NoError(t, err)
	require.NoError(t, v.cmd.Start())
	require.NoError(t, theirs.Close())
	t.Cleanup(v.free)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	_, err = fmt.Sscan(line, &v.conn, &v.waiter)
	require.NoError(t, err, line)
	v.inode = inode(v.connection())
	require.NotZero(t, v.inode)
	if loop {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", v.waiter))
		require.NoError(t, err)
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "/dev/loop") && to != "/dev/loop-control" {
				v.loop = filepath.Base(to)
			}
		}
		require.NotEmpty(t, v.loop)
		v.loop += " " + diskSeq(v.loop)
	}
	return v
}

func diskSeq(loop string) string {
	b, _ := os.ReadFile(filepath.Join("/sys/block", loop, "diskseq"))
	return strings.TrimSpace(string(b))
}

func (v *victim) connection() string { return filepath.Join(v.conns, fmt.Sprint(v.conn)) }

// free ends what a failed test left hanging.
func (v *victim) free() {
	if v.conn != 0 && v.Failed() {
		_ = os.WriteFile(filepath.Join(v.connection(), "abort"), []byte("1"), 0)
	}
	if v.cmd.ProcessState == nil {
		_ = v.cmd.Process.Kill()
		_ = v.cmd.Wait()
	}
}

// kill is the moment: it returns when the victim is reaped.
func (v *victim) kill() {
	require.NoError(v, v.cmd.Process.Kill())
	reaped := make(chan error, 1)
	go func() { reaped <- v.cmd.Wait() }()
	select {
	case err := <-reaped:
		var exit *exec.ExitError
		require.True(v, errors.As(err, &exit), "%v", err)
	case <-time.After(patience):
		_ = os.WriteFile(filepath.Join(v.connection(), "abort"), []byte("1"), 0)
		<-reaped
		require.FailNow(v, "the killed process cannot be reaped: it waits for itself")
	}
}

// inherit takes what the victim had kept.
func (v *victim) inherit() driver.Inheritance {
	kept := driver.Inheritance{}
	for {
		var b [256]byte
		oob := make([]byte, unix.CmsgSpace(4))
		n, noob, _, _, err := unix.Recvmsg(v.kept, b[:], oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if n == 0 || err != nil {
			return kept
		}
		messages, err := unix.ParseSocketControlMessage(oob[:noob])
		require.NoError(v, err)
		fds, err := unix.ParseUnixRights(&messages[0])
		require.NoError(v, err)
		name := string(b[:n])
		kept[name] = append(kept[name], os.NewFile(uintptr(fds[0]), name))
	}
}

// nothingStays looks for what the victim may have left.
func (v *victim) nothingStays() {
	require.Eventually(v, func() bool {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.waiter))
		return err != nil || strings.Contains(string(state), ") Z")
	}, patience, time.Millisecond, "the mounting process")
	require.Eventually(v, func() bool { return inode(v.connection()) != v.inode }, patience, time.Millisecond, "the connection")
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(v.target))
	require.NoError(v, err)
	require.Empty(v, mounts)
	if name, seq, ok := strings.Cut(v.loop, " "); ok {
		require.Eventually(v, func() bool {
			return !exists(filepath.Join("/sys/block", name, "loop")) || diskSeq(name) != seq
		}, patience, time.Millisecond, "the loop device")
	}
}

// inode is the number of path, 0 where nothing is.
func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

// A server that is killed while the kernel reads metadata for its new mount can be
// reaped, and nothing of the mount stays once its successor has settled, or, where
// nobody keeps the connection, at once.
func TestKilledWhileMounting(t *testing.T) {
	for name, loop := range map[string]bool{"file": false, "loop": true} {
		t.Run(name+", kept", func(t *testing.T) {
			v := startVictim(t, loop)
			v.kill()
			k := &drivertest.Keeper{}
			inherited := v.inherit()
			require.Len(t, inherited, 2)
			for name, files := range inherited {
				require.NoError(t, k.Put(name, files[0]))
			}
			require.Equal(t, v.inode, inode(v.connection()), "it is kept")
			d := newDriver(t, k, Config{Inherited: inherited})
			ids, err := d.Settle()
			require.NoError(t, err)
			require.Equal(t, []string{"held"}, ids)
			v.nothingStays()
			require.Eventually(t, func() bool { return d.Stats().Served == 0 }, patience, time.Millisecond)
			require.Empty(t, k.Names())
			require.NoError(t, d.Shutdown(t.Context()))
		})
		t.Run(name+", not kept", func(t *testing.T) {
			v := startVictim(t, loop)
			require.NoError(t, unix.Close(v.kept))
			v.kept = -1
			v.kill()
			v.nothingStays()
		})
	}
}

// Whoever no longer wants the mount need not wait for the layer.
func TestMountGivesUp(t *testing.T) {
	for name, end := range map[string]func(*Driver, context.CancelFunc) error{
		"cancelled": func(_ *Driver, cancel context.CancelFunc) error { cancel(); return nil },
		"shut down": func(d *Driver, _ context.CancelFunc) error {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := d.Shutdown(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := &drivertest.Keeper{}
			d := newDriver(t, k, Config{})
			l := newHeldLayer(t, 0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			target, mounted := t.TempDir(), make(chan error, 1)
			go func() {
				_, err := d.Mount(ctx, target, l)
				mounted <- err
			}()
			<-l.taken
			require.NoError(t, end(d, cancel))
			require.ErrorIs(t, <-mounted, context.Canceled)
			if name == "cancelled" {
				require.Empty(t, k.Names())
				require.NoError(t, d.Shutdown(t.Context()))
				return
			}
			inherited, err := k.Inherited()
			require.NoError(t, err)
			d = newDriver(t, k, Config{Inherited: inherited})
			_, err = d.Settle()
			require.NoError(t, err)
			require.Eventually(t, func() bool { return len(k.Names()) == 0 }, patience, time.Millisecond)
			require.NoError(t, d.Shutdown(t.Context()))
		})
	}
}

// A mount that is closed, but read, and a new one of the layer at its place are two
// connections: the end of the first takes nothing from the second.
func TestSamePlaceTwice(t *testing.T) {
	r := newRig(t, Config{})
	reader, err := os.Open(filepath.Join(r.target, bigFile))
	require.NoError(t, err)
	first := r.m
	require.NoError(t, first.Close(t.Context()))
	r.m, err = r.d.Mount(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	require.Len(t, r.keeper.Names(), 4)
	require.NoError(t, reader.Close())
	r.await(first.Done())
	require.Len(t, r.keeper.Names(), 2)

	// Of two, a successor takes the one that is mounted.
	reader, err = os.Open(filepath.Join(r.target, bigFile))
	require.NoError(t, err)
	require.NoError(t, r.m.Close(t.Context()))
	r.m, err = r.d.Mount(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	r.restart()
	r.m, err = r.d.Adopt(t.Context(), r.target, r.layer)
	require.NoError(t, err)
	ids, err := r.d.Settle()
	require.NoError(t, err)
	require.Equal(t, []string{"layer"}, ids)
	require.NoError(t, r.read(bigFile))
	require.NoError(t, reader.Close())
	require.Eventually(t, func() bool { return len(r.keeper.Names()) == 2 }, patience, time.Millisecond)
}
