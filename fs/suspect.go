package fs

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/containerd/log"

	"github.com/lazyerofs/lazyerofs/fs/cache"
)

// bootIDPath tells one boot of the machine from another (proc(5)).
const bootIDPath = "/proc/sys/kernel/random/boot_id"

func bootID() (string, error) {
	b, err := os.ReadFile(bootIDPath)
	if err != nil {
		return "", fmt.Errorf("asking for the boot's id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// suspect records that superblocks of s may hold zeros where data should be. A
// successor of this process finds their guard in place again and could not tell
// them from good ones. The record counts until the last of them is gone, at the
// latest with the boot.
func (f *FS) suspect(s *shared, why error) {
	boot, err := bootID()
	if err == nil {
		err = f.amend(s, func(r *cache.Record) { r.Suspect = &cache.Suspect{Boot: boot, Why: why.Error()} })
	}
	if err != nil {
		log.G(f.ctx).WithError(err).WithField("layer", s.id).Warn("cannot record that mounts of a layer may be wrong")
	}
}

// cleared forgets that mounts of s may be wrong: no superblock of it is left.
// The lock of s is held.
func (f *FS) cleared(s *shared) {
	err := f.amend(s, func(r *cache.Record) { r.Suspect = nil })
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.G(f.ctx).WithError(err).WithField("layer", s.id).Warn("cannot record that a layer has no mounts any more")
	}
}

// amend changes the record of s, which reaches the disk unless it stays the same.
func (f *FS) amend(s *shared, change func(*cache.Record)) error {
	f.records.Lock()
	defer f.records.Unlock()
	dir, err := f.c.Store.Dir(s.id)
	if err != nil {
		return err
	}
	rec, err := cache.LoadRecord(dir)
	if err != nil {
		return err
	}
	before := rec
	if change(&rec); reflect.DeepEqual(before, rec) {
		return nil
	}
	return cache.SaveRecord(dir, rec)
}

// doubts returns why a recorded layer must not be used by new containers, or
// nil.
func doubts(rec cache.Record) error {
	if rec.Condemned != "" {
		return errors.New(rec.Condemned)
	}
	if rec.Suspect == nil {
		return nil
	}
	boot, err := bootID()
	if err == nil && boot != rec.Suspect.Boot {
		return nil
	}
	return errors.New(rec.Suspect.Why)
}
