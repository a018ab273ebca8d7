package fusesession

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
	"github.com/lazyerofs/lazyerofs/fs/driver/mountproc"
	"github.com/lazyerofs/lazyerofs/fs/kernel"
)

// initWait bounds the wait for the kernel's first request, which is queued when
// the superblock is made.
const initWait = 10 * time.Second

// MountConfig says where a new connection is shown.
type MountConfig struct {
	// Target is an existing directory. Empty means a detached mount, which only
	// who is given Session.Root can reach; it needs CAP_SYS_ADMIN.
	Target string
	// Source and Subtype are shown in mountinfo.
	Source, Subtype string
	// AllowOther lets users other than the mounting one in; an ordinary user needs
	// user_allow_other in /etc/fuse.conf for it.
	AllowOther bool
	// DefaultPermissions makes the kernel check modes and owners.
	DefaultPermissions bool
	// Suid and Dev make set-user-ID bits and device nodes work, where the caller
	// may ask for it.
	Suid, Dev bool
	// Helper makes fusermount3 mount, even if this process could.
	Helper bool
}

// Mount makes a connection and serves it. /dev/fuse and its state are with the
// Keeper before the file system can be reached. The errors carry the errno;
// those of fusermount3 its words.
func Mount(ctx context.Context, mc MountConfig, conf Config) (*Session, error) {
	if err := conf.defaults(); err != nil {
		return nil, err
	}
	s, err := mount(ctx, mc, conf)
	if err != nil {
		return nil, fmt.Errorf("mounting FUSE session %s: %w", conf.Name, err)
	}
	return s, nil
}

func mount(ctx context.Context, mc MountConfig, conf Config) (*Session, error) {
	j, err := newJournal(conf.MaxInFlight)
	if err != nil {
		return nil, err
	}
	s := newSession(ctx, conf, j)
	b := &birth{s: s, mc: mc}
	if err := b.bear(ctx); err != nil {
		return nil, errors.Join(err, b.undo())
	}
	s.serve()
	if err := errors.Join(b.show(ctx), b.drop()); err != nil {
		err = errors.Join(err, s.Detach(), s.Unmount(), s.Shutdown(ctx), unkeep(conf))
		return nil, err
	}
	return s, nil
}

// birth is a connection on its way to be served.
type birth struct {
	s    *Session
	mc   MountConfig
	dev  *os.File // blocking
	kept bool
}

// bear makes the mount and initialises the connection. The mount is not attached
// yet, unless fusermount3 did: should this process die now, it vanishes.
func (b *birth) bear(ctx context.Context) error {
	var err error
	if !b.mc.Helper {
		err = b.direct()
	}
	if b.mc.Target != "" && (b.mc.Helper || errors.Is(err, unix.EPERM)) {
		err = b.helped(ctx)
	}
	if err != nil {
		return err
	}
	if err := b.s.openDevice(b.dev); err != nil {
		return err
	}
	b.s.protocol(b.s.conf.Options)
	return b.s.initialise()
}

// show puts the mount where everybody sees it, once the kernel has asked what it
// would ask then. This process must not ask itself, see package mountproc.
func (b *birth) show(ctx context.Context) error {
	if b.mc.Target == "" {
		return nil
	}
	root, err := b.root()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := mountproc.Meet(ctx, root, b.s.Abort); err != nil || b.s.helper {
		return err
	}
	return b.attach()
}

// root is the directory, opened without asking the server.
func (b *birth) root() (*os.File, error) {
	if b.s.helper {
		return openRoot(b.mc.Target)
	}
	return b.s.Root()
}

// direct mounts as root of a user namespace does.
func (b *birth) direct() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening /dev/fuse: %w", err)
	}
	b.dev = os.NewFile(uintptr(fd), "/dev/fuse")
	fsc, err := b.configure(fd)
	if err != nil {
		return errors.Join(err, b.drop())
	}
	defer fsc.Close()
	if err := b.keep(); err != nil {
		return err
	}
	if err := fsc.Create(); err != nil {
		return err
	}
	attrs := unix.MOUNT_ATTR_RDONLY
	if !b.mc.Suid {
		attrs |= unix.MOUNT_ATTR_NOSUID
	}
	if !b.mc.Dev {
		attrs |= unix.MOUNT_ATTR_NODEV
	}
	b.s.mount, err = fsc.Mount(attrs)
	if err != nil {
		return err
	}
	b.s.agreed.conn, err = connOf(b.s.mount)
	return err
}

func (b *birth) configure(fd int) (*kernel.FSContext, error) {
	fsc, err := kernel.OpenFS("fuse")
	if err != nil {
		return nil, err
	}
	opts := [][2]string{
		{"source", b.mc.Source},
		{"subtype", b.mc.Subtype},
		{"fd", fmt.Sprint(fd)},
		{"rootmode", "40000"},
		{"user_id", fmt.Sprint(os.Geteuid())},
		{"group_id", fmt.Sprint(os.Getegid())},
		{"max_read", fmt.Sprint(b.s.conf.MaxRead)},
	}
	for _, o := range opts {
		if o[1] == "" {
			continue
		}
		if err := fsc.SetString(o[0], o[1]); err != nil {
			return nil, errors.Join(err, fsc.Close())
		}
	}
	for flag, on := range map[string]bool{
		"ro": true, "allow_other": b.mc.AllowOther, "default_permissions": b.mc.DefaultPermissions,
	} {
		if !on {
			continue
		}
		if err := fsc.SetFlag(flag); err != nil {
			return nil, errors.Join(err, fsc.Close())
		}
	}
	return fsc, nil
}

// keep hands the connection to the keeper.
func (b *birth) keep() error {
	conf := b.s.conf
	b.kept = true
	if err := conf.Keeper.Put(conf.Name, b.dev); err != nil {
		return fmt.Errorf("keeping /dev/fuse: %w", err)
	}
	if err := conf.Keeper.Put(StateName(conf.Name), b.s.journal.file); err != nil {
		return fmt.Errorf("keeping the state: %w", err)
	}
	return nil
}

// attach puts the mount where everybody sees it.
func (b *birth) attach() error {
	err := unix.MoveMount(int(b.s.mount.Fd()), "", unix.AT_FDCWD, b.mc.Target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attaching the mount to %s: %w", b.mc.Target, err)
	}
	b.s.target = b.mc.Target
	return b.s.Detach()
}

// Root is a descriptor of the root of a mount that has no target, until Detach is
// called; os.ErrClosed afterwards. It is for another process: this one must not
// wait for itself. The caller closes it.
func (s *Session) Root() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount == nil {
		return nil, fmt.Errorf("the mount of FUSE session %s: %w", s.conf.Name, os.ErrClosed)
	}
	return lifetime.DuplicateFile(s.mount)
}

// Detach gives the mount without target up. The connection lives on as long as
// a file of it is open, also by the kernel, as the image below a superblock.
func (s *Session) Detach() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount == nil {
		return nil
	}
	err := s.mount.Close()
	s.mount = nil
	return err
}

func (b *birth) drop() error {
	if b.dev == nil {
		return nil
	}
	err := b.dev.Close()
	b.dev = nil
	return err
}

// undo gives up a connection that nobody has used. The kernel ends it with its
// last descriptor.
func (b *birth) undo() error {
	s := b.s
	s.cancel()
	err := b.drop()
	if s.dev != nil {
		err = errors.Join(err, s.dev.Close())
	}
	err = errors.Join(err, s.journal.close())
	if b.kept {
		err = errors.Join(err, unkeep(s.conf))
	}
	err = errors.Join(err, s.Detach())
	if s.target != "" {
		err = errors.Join(err, s.Unmount())
	}
	return err
}

// connOf returns the number of the connection of a mount or of what is on it,
// without asking its server.
func connOf(f *os.File) (uint32, error) {
	var st unix.Statx_t
	flags := unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(int(f.Fd()), "", flags, unix.STATX_TYPE, &st); err != nil {
		return 0, fmt.Errorf("looking for the number of the connection: %w", err)
	}
	return st.Dev_minor, nil
}

// initialise answers FUSE_INIT and keeps what was agreed.
func (s *Session) initialise() error {
	if err := s.dev.SetReadDeadline(time.Now().Add(initWait)); err != nil {
		return fmt.Errorf("waiting for FUSE_INIT: %w", err)
	}
	var in [slotSize]byte
	n, err := s.dev.Read(in[:])
	if err != nil {
		return fmt.Errorf("reading FUSE_INIT: %w", err)
	}
	if err := s.dev.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("waiting for requests: %w", err)
	}
	req, err := parseRequest(in[:n])
	if err != nil {
		return fmt.Errorf("reading FUSE_INIT: %w", err)
	}
	if req.op != opInit || n < inHeaderLen+16 {
		return fmt.Errorf("reading FUSE_INIT: %w: request %d of %d bytes", errRequest, req.op, n)
	}
	for i := range s.agreed.init {
		if at := inHeaderLen + 4*i; at+4 <= n {
			s.agreed.init[i] = binary.NativeEndian.Uint32(in[at:])
		}
	}
	var out [plainRoom]byte
	n, code := s.call(in[:n], out[:])
	if n < outHeaderLen+initOutLen || code != 0 {
		return fmt.Errorf("answering FUSE_INIT of protocol %d.%d: %w", s.agreed.init[0], s.agreed.init[1], unix.EPROTO)
	}
	// go-fuse has one number for the sizes of reads and writes; ours differ.
	answer := (*fuse.InitOut)(unsafe.Pointer(&out[outHeaderLen]))
	answer.MaxPages = uint16(s.conf.MaxRead / os.Getpagesize())
	s.agreed.flags, s.agreed.maxRead = answer.Flags64(), uint32(s.conf.MaxRead)
	// Before the answer: who finds an answered connection must find its state.
	s.journal.put(s.agreed)
	if err := s.write(out[:n], nil); err != nil {
		return fmt.Errorf("answering FUSE_INIT: %w", err)
	}
	return nil
}
