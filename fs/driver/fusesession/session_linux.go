package fusesession

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	clog "github.com/containerd/log"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
)

// Session is one connection, served by this process. It is safe for concurrent
// use.
type Session struct {
	conf   Config
	ctx    context.Context // of the requests; carries the logger
	cancel context.CancelFunc

	dev     *os.File // non-blocking: loops wait in the runtime's poller
	fd      int      // of dev
	journal *journal
	agreed  agreement
	proto   *fuse.ProtocolServer
	files   ResidentReader // FS, or nil

	target   string // "" while the mount is attached nowhere
	helper   bool   // fusermount3 made the mount
	stopping chan struct{}
	loops    sync.WaitGroup
	work     sync.WaitGroup // requests beside the loops
	gone     atomic.Bool    // the connection ended
	done     chan struct{}  // closed when it did and all is given back
	stopped  chan struct{}  // closed when nothing of this session runs any more

	mu      sync.Mutex
	mount   *os.File // detached
	down    bool     // Shutdown was called
	stopErr error

	resident, asked atomic.Uint64
}

// newSession is what Mount and Adopt share.
func newSession(ctx context.Context, conf Config, j *journal) *Session {
	s := &Session{
		conf:     conf,
		journal:  j,
		stopping: make(chan struct{}),
		done:     make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	s.files, _ = conf.FS.(ResidentReader)
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s
}

// protocol makes go-fuse's half, which turns bytes into calls of FS.
func (s *Session) protocol(o fuse.MountOptions) {
	o.Logger = log.New(logWriter{s.ctx}, "", 0)
	s.proto = fuse.NewProtocolServer(s.conf.FS, &o)
	if b, ok := s.conf.FS.(Binder); ok {
		b.Bind(s)
	}
}

// logWriter hands on what go-fuse logs.
type logWriter struct{ ctx context.Context }

func (w logWriter) Write(p []byte) (int, error) {
	clog.G(w.ctx).Debug("fuse: " + string(p))
	return len(p), nil
}

// openDevice makes the descriptor on which this process serves, a duplicate of
// f, which it does not take over. It must be called when there is a mount: the
// poller cannot wait on a device that has none.
func (s *Session) openDevice(f *os.File) error {
	fd, err := lifetime.Duplicate(f)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(fmt.Errorf("taking /dev/fuse: %w", err), unix.Close(fd))
	}
	s.fd = fd
	s.dev = os.NewFile(uintptr(s.fd), "/dev/fuse")
	return nil
}

// serve starts to take requests.
func (s *Session) serve() {
	for range s.conf.Loops {
		s.loops.Go(s.run)
	}
	go s.finish()
}

// finish waits for the end, by Shutdown or of the connection, and gives
// everything back.
func (s *Session) finish() {
	s.loops.Wait()
	s.work.Wait()
	s.cancel()
	gone := s.gone.Load()
	if gone {
		s.conf.FS.OnUnmount()
	}
	err := errors.Join(s.dev.Close(), s.journal.close(), s.Detach())
	if gone {
		err = errors.Join(err, unkeep(s.conf))
	}
	s.mu.Lock()
	s.stopErr = err
	s.mu.Unlock()
	if err != nil {
		s.trouble("ending", err)
	}
	close(s.stopped)
	if gone {
		close(s.done)
	}
}

// Done is closed once the connection has ended, because its last mount, open
// file and superblock above it are gone or because it was aborted, and its
// descriptors are given back to the Keeper. Shutdown does not close it.
func (s *Session) Done() <-chan struct{} { return s.done }

// Context ends when the requests in progress should: in a Shutdown that cannot
// wait, and when the connection is gone. It carries the logger.
func (s *Session) Context() context.Context { return s.ctx }

// Agreed returns the capabilities (CAP_ bits) of the connection.
func (s *Session) Agreed() uint64 { return s.agreed.flags }

// MaxRead is the largest read of the connection in bytes.
func (s *Session) MaxRead() int { return int(s.agreed.maxRead) }

// Counts returns how many reads were answered from resident files, and how many
// other requests FS was asked.
func (s *Session) Counts() (resident, asked uint64) {
	return s.resident.Load(), s.asked.Load()
}

// Shutdown takes no more requests, finishes those that were taken and leaves
// the connection to a successor; readers wait for it. When ctx ends first,
// Context is cancelled, FS must then answer with errors, and the error says so.
func (s *Session) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if s.down {
		s.mu.Unlock()
		return ErrShutdown
	}
	s.down = true
	s.mu.Unlock()
	close(s.stopping)
	// The loops wake from their wait, and what they take next fails. An error
	// says that the device is closed already, because the connection ended.
	_ = s.dev.SetReadDeadline(time.Unix(1, 0))
	var late error
	select {
	case <-s.stopped:
	case <-ctx.Done():
		late = fmt.Errorf("finishing the requests in progress: %w", ctx.Err())
		s.cancel()
		<-s.stopped
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(late, s.stopErr)
}

// StoreCache puts data at off of a node into the kernel's page cache, so that
// reads of it need no request. The kernel refuses it for a node that it does
// not know (ENOENT).
func (s *Session) StoreCache(node uint64, off int64, data []byte) error {
	const head = outHeaderLen + 24 // struct fuse_notify_store_out
	for len(data) > 0 {
		part := data[:min(len(data), int(s.agreed.maxRead))]
		var b [head]byte
		putNotify(b[:], notifyStore, head+len(part))
		out := (*fuse.NotifyStoreOut)(unsafe.Pointer(&b[outHeaderLen]))
		out.Nodeid, out.Offset, out.Size = node, uint64(off), uint32(len(part))
		if err := s.write(b[:], part); err != nil {
			return fmt.Errorf("storing pages of node %d: %w", node, err)
		}
		data, off = data[len(part):], off+int64(len(part))
	}
	return nil
}

// RegisterBacking gives the kernel a file that a later open may name as backing
// file, for reads that never reach this process. It needs Config.Passthrough
// and CAP_SYS_ADMIN in the initial user namespace. The number stays valid when
// the server changes, until UnregisterBacking.
func (s *Session) RegisterBacking(f *os.File) (int32, error) {
	var id uintptr
	err := lifetime.Control(f, func(fd int) error {
		m := fuse.BackingMap{Fd: int32(fd)}
		var errno syscall.Errno
		id, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(s.fd), backingOpen, uintptr(unsafe.Pointer(&m)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("registering a backing file: %w", err)
	}
	return int32(id), nil
}

// UnregisterBacking takes a backing file back; files that are open with it stay
// so.
func (s *Session) UnregisterBacking(id int32) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.fd), backingClose, uintptr(unsafe.Pointer(&id))); errno != 0 {
		return fmt.Errorf("unregistering a backing file: %w", errno)
	}
	return nil
}

// FUSE_DEV_IOC_BACKING_OPEN and _CLOSE (uapi/linux/fuse.h).
const (
	backingOpen  = 0x4010e501
	backingClose = 0x4004e502
)

func (s *Session) trouble(what string, err error) {
	clog.G(s.ctx).WithError(err).WithField("session", s.conf.Name).Error("fuse: " + what)
}

func unkeep(conf Config) error {
	return errors.Join(conf.Keeper.Remove(conf.Name), conf.Keeper.Remove(StateName(conf.Name)))
}
