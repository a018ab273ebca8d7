package fusetree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// mount is one mount point: a connection, or an EROFS superblock of a layer that
// was complete.
type mount struct {
	*lifetime.Mount
	d       *Driver
	session *fusesession.Session // nil: the kernel's EROFS
	fs      *tree                // what the session serves
	super   string               // erofs-<n>, without a session
}

// opRead is FUSE_READ (uapi/linux/fuse.h), the one request that waits.
const opRead = 15

// maxInFlight is how many requests of a mount are taken and unanswered at once.
// Each has a slot of memory for ever.
const maxInFlight = 256

// session says how a tree is served.
func (d *Driver) session(name string, keeper driver.Keeper, fs *tree) fusesession.Config {
	c := fusesession.Config{
		Name: name, Keeper: keeper, FS: fs, MaxInFlight: maxInFlight,
		Options: fuse.MountOptions{
			EnableSymlinkCaching: true,
			// Nothing ever changes, so nothing is ever to be looked at again.
			ExplicitDataCacheControl: true,
			// No CAP_ASYNC_DIO: its readers wait for all parts of a read in a way that
			// nothing can end, not even SIGKILL (fuse_direct_IO in fs/fuse/file.c).
			// No CAP_READDIRPLUS_AUTO: attributes that come with a name are never asked
			// for again, so they always come with it.
			ExtraCapabilities: fuse.CAP_NO_OPENDIR_SUPPORT,
		},
		Prompt: func(opcode uint32, _ uint64) bool { return opcode != opRead },
	}
	if !d.conf.Private && fs.acl {
		c.Options.EnableAcl = true
		c.Options.ExtraCapabilities |= fuse.CAP_POSIX_ACL
	}
	return c
}

func (d *Driver) mountConfig(target string) fusesession.MountConfig {
	return fusesession.MountConfig{
		Target: target, Source: "lazyerofs", Subtype: "lazyerofs",
		AllowOther: !d.conf.Private, DefaultPermissions: !d.conf.Private,
		// As with the other drivers: whoever shows the layer to a container sets the
		// flags. fusermount3 gives them to root only.
		Suid: os.Geteuid() == 0, Dev: os.Geteuid() == 0,
		Helper: os.Geteuid() != 0,
	}
}

// Bind learns whom to ask what was agreed with the kernel, which is not known yet.
func (s *tree) Bind(session *fusesession.Session) {
	s.agreed, s.context = session.Agreed, session.Context
}

// typeAt returns the type of the file system that is mounted at target, "" for
// none, without a call that its server would have to answer.
func typeAt(target string) (string, error) {
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil {
		return "", fmt.Errorf("looking for the mount: %w", err)
	}
	if len(found) == 0 {
		return "", nil
	}
	return found[len(found)-1].FSType, nil
}

// readAhead raises the read-ahead of a mount, which a FUSE server can only lower.
func (d *Driver) readAhead(target string) error {
	if d.conf.ReadAheadKB == 0 {
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, target, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return fmt.Errorf("looking at the mount: %w", err)
	}
	bdi := fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
	err := os.WriteFile(filepath.Join("/sys/class/bdi", bdi, "read_ahead_kb"), []byte(strconv.Itoa(d.conf.ReadAheadKB)), 0)
	if errors.Is(err, os.ErrPermission) {
		return nil // an ordinary user keeps the kernel's
	}
	if err != nil {
		return fmt.Errorf("setting the read-ahead of the mount: %w", err)
	}
	return nil
}

func (d *Driver) newMount(target string) (*mount, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return nil, ErrShutdown
	}
	m := &mount{d: d}
	m.Mount = d.watchers.Mount(lifetime.Config{Target: target, Ended: m.ended, Unmount: m.unmount, Down: ErrShutdown})
	d.mounts[m] = struct{}{}
	return m, nil
}

func (d *Driver) forget(m *mount) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.mounts, m)
	if m.fs != nil {
		m.fs.close()
	}
}

// watch lets go of a mount when nothing holds it any more. Shutdown may have come
// while it was made.
func (d *Driver) watch(m *mount) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return errors.Join(ErrShutdown, m.stop(d.ctx))
	}
	m.Watch()
	return nil
}

// ended waits for the end of the mount and lets go; false when Shutdown came first.
func (m *mount) ended() bool {
	if m.session == nil {
		if !m.d.watchers.Await(func() bool { return !erofs.SuperblockAlive(m.super) }) {
			return false
		}
	} else {
		select {
		case <-m.session.Done():
		case <-m.d.watchers.Stopping():
			return false
		}
	}
	m.d.forget(m)
	return true
}

// mountKernel mounts a complete layer without FUSE.
func (d *Driver) mountKernel(ctx context.Context, target string, l driver.Layer) (*mount, error) {
	conf := erofs.MountConfig{Source: l.Data().Name(), Target: target, ReadAheadKB: d.conf.ReadAheadKB, Suid: true, Dev: true}
	if meta := l.Meta(); meta != nil {
		conf.Source, conf.Devices = meta.Name(), []string{conf.Source}
	}
	for _, name := range append(conf.Devices, conf.Source) {
		if st, err := os.Stat(name); err != nil || !st.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is not there by name", name)
		}
	}
	m, err := d.newMount(target)
	if err != nil {
		return nil, err
	}
	conf.Loop = erofs.LoopFallback
	info, err := erofs.Mount(ctx, conf)
	if err != nil {
		d.forget(m)
		return nil, err
	}
	m.super = info.Superblock
	return m, d.watch(m)
}

func (d *Driver) adoptKernel(target string) (driver.Mount, error) {
	super, err := erofs.SuperblockOf(target)
	if err != nil {
		return nil, err
	}
	m, err := d.newMount(target)
	if err != nil {
		return nil, err
	}
	m.super = super
	return m, d.watch(m)
}

// unmount detaches the mount. What is not mounted any more is nothing for fusermount3,
// whose error has no errno.
func (m *mount) unmount(target string) error {
	kind, err := typeAt(target)
	switch {
	case err != nil:
		return err
	case kind == "":
		return unix.EINVAL
	case m.session != nil:
		return m.session.Unmount()
	}
	return unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// Release leaves the mount to a successor. It is meant for after Shutdown, which
// has done so.
func (m *mount) Release() error {
	m.Leave()
	return m.stop(m.d.ctx)
}

// stop ends the service of the mount here, not the mount.
func (m *mount) stop(ctx context.Context) error {
	if m.session == nil {
		return nil
	}
	err := m.session.Shutdown(ctx)
	m.fs.close()
	if errors.Is(err, fusesession.ErrShutdown) {
		return nil
	}
	return err
}
