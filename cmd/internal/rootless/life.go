package rootless

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// mounted looks for a mount at target without touching it: a stat of a FUSE mount
// that nobody serves does not return.
func mounted(target string) (bool, error) {
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil {
		return false, fmt.Errorf("looking for a mount at %s: %w", target, err)
	}
	return len(found) > 0, nil
}

// drop forgets an image and what it holds, once.
func (s *Images) drop(i *image) error {
	for _, release := range i.releases {
		release()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounts[i.Target] != i {
		return nil
	}
	delete(s.mounts, i.Target)
	return forget(s.dir, i.Target)
}

// at returns the image at target once it is mounted.
func (s *Images) at(target string) *image {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.mounts[target]; i != nil && i.mount != nil {
		return i
	}
	return nil
}

// wasDead reports, once, whether Restore has taken away a dead mount at target.
func (s *Images) wasDead(target string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	dead := s.gone[target]
	delete(s.gone, target)
	return dead
}

// Unmount unmounts what is at target. It fails when something is open below it.
func (s *Images) Unmount(ctx context.Context, target string) error {
	i := s.at(target)
	if i == nil && s.wasDead(target) {
		return nil
	}
	if i == nil {
		return &Failure{Message: fmt.Sprintf("no image is mounted at %s by lazyerofs", target)}
	}
	if err := unmount(ctx, target); err != nil {
		return err
	}
	select {
	case <-i.mount.Done():
		return s.drop(i) // the watcher may come to it later than the answer
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of the mount at %s: %w", target, context.Cause(ctx))
	}
}

// unmount unmounts as far as nothing is in use, through fusermount3 where this
// process may not.
func unmount(ctx context.Context, target string, flags ...string) error {
	if there, err := mounted(target); err != nil || !there {
		return err
	}
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EPERM) {
		return refused(target, err)
	}
	out, err := exec.CommandContext(ctx, "fusermount3", append(append([]string{"-u"}, flags...), "--", target)...).CombinedOutput()
	if err == nil {
		return nil
	}
	if strings.Contains(string(out), "busy") {
		return refused(target, unix.EBUSY)
	}
	return fmt.Errorf("unmounting %s: %w: %s", target, err, strings.TrimSpace(string(out)))
}

func refused(target string, err error) error {
	if errors.Is(err, unix.EBUSY) {
		return &Failure{Message: fmt.Sprintf("unmounting %s: %v; close what is open below it and try again", target, err)}
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", target, err)
	}
	return nil
}

// List returns what is mounted, by target.
func (s *Images) List(context.Context) ([]Mount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []Mount{}
	for _, target := range slices.Sorted(maps.Keys(s.mounts)) {
		if s.mounts[target].mount != nil {
			all = append(all, s.mounts[target].Mount)
		}
	}
	return all, nil
}

// Restore takes over what a predecessor had mounted, before anything else is
// called. It needs no network. A mount that cannot be taken over is dead, and is
// taken away.
func (s *Images) Restore(ctx context.Context) error {
	all, err := load(s.dir)
	if err != nil {
		return err
	}
	for _, m := range all {
		if err := s.restore(ctx, m); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("mount", m.Target).Error("a mount was not taken over and is gone")
		}
	}
	return nil
}

func (s *Images) restore(ctx context.Context, m Mount) error {
	there, err := mounted(m.Target)
	if err != nil {
		return err
	}
	if !there {
		return forget(s.dir, m.Target)
	}
	i := &image{Mount: m}
	if err = s.open(ctx, i, true); err == nil {
		var mount driver.Mount
		if mount, err = s.driver.AdoptImage(ctx, m.Target, i.open); err == nil {
			s.keep(i, mount)
			return nil
		}
	}
	for _, release := range i.releases {
		release()
	}
	if ctx.Err() != nil { // told to stop: the successor tries again
		return err
	}
	s.mu.Lock()
	s.gone[m.Target] = true
	s.mu.Unlock()
	return errors.Join(err, unmount(ctx, m.Target, "-z"), forget(s.dir, m.Target))
}

// Close leaves every mount to a successor.
func (s *Images) Close() {
	s.stop()
	s.tasks.Wait()
}
