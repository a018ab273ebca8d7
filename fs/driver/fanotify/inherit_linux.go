package fanotify

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// inherit takes a predecessor's group and journal over and expects its layers.
func (d *Driver) inherit() error {
	in := d.conf.Inherited
	if len(in[GroupName]) == 0 {
		return d.discard()
	}
	if err := Reserve(in); err != nil {
		return err
	}
	table := map[key]*guard{}
	for name, files := range in {
		id, ok := strings.CutPrefix(name, writerPrefix)
		if !ok {
			continue
		}
		k, err := keyOf(files[0])
		if err != nil {
			return err
		}
		table[k] = &guard{key: k, id: id, writer: files[0], adopted: make(chan struct{})}
	}
	j, err := d.inheritJournal()
	if err != nil {
		return err
	}
	g, err := adoptGroup(in[GroupName][0])
	if err != nil {
		return errors.Join(err, j.close())
	}
	d.table.Store(&table)
	d.writers, d.groupKept, d.settled = len(table), true, false
	for _, f := range in[GroupName] {
		err = errors.Join(err, f.Close())
	}
	return errors.Join(err, d.start(g, j))
}

// discard drops what guards nothing without its group.
func (d *Driver) discard() error {
	var errs []error
	for name, files := range d.conf.Inherited {
		if !strings.HasPrefix(name, writerPrefix) && name != JournalName {
			continue
		}
		errs = append(errs, d.conf.Keeper.Remove(name))
		if name == JournalName {
			errs = append(errs, closeAll(files))
		}
	}
	return errors.Join(errs...)
}

// inheritJournal opens the predecessor's journal, or keeps a new one where the
// predecessor had none that we can read. Then the events that it took stay with
// their readers, as there is no telling which they are.
func (d *Driver) inheritJournal() (*journal, error) {
	files := d.conf.Inherited[JournalName]
	if len(files) > 0 {
		j, err := openJournal(files[0], d.conf.MaxInFlight)
		if err == nil {
			j.kept.Store(true)
			return j, closeAll(files[1:])
		}
		if !errors.Is(err, errJournal) {
			return nil, err
		}
		log.G(d.ctx).WithError(err).Error("fanotify: the predecessor's journal cannot be read; reads that it had taken go on waiting")
		if err := errors.Join(d.conf.Keeper.Remove(JournalName), closeAll(files)); err != nil {
			return nil, err
		}
	} else {
		log.G(d.ctx).Warn("fanotify: the predecessor kept no journal; reads that it had taken and not answered go on waiting until they are killed")
	}
	j, err := newJournal(d.conf.MaxInFlight)
	if err != nil {
		return nil, err
	}
	if err := d.keepJournal(j); err != nil {
		d.trouble("reads that this process takes are lost with it", err)
	}
	return j, nil
}

// keepJournal hands the journal to the keeper.
func (d *Driver) keepJournal(j *journal) error {
	if j.kept.Load() {
		return nil
	}
	if err := d.conf.Keeper.Put(JournalName, j.file); err != nil {
		return fmt.Errorf("keeping the journal of events: %w", err)
	}
	j.kept.Store(true)
	return nil
}

// start serves the group and the journal, new ones if g is nil. The caller holds
// d.mu or is New.
func (d *Driver) start(g *group, j *journal) (err error) {
	if g == nil {
		if g, j, err = d.fresh(); err != nil {
			return err
		}
	}
	if d.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return errors.Join(fmt.Errorf("making an eventfd: %w", err), g.close(), j.close())
	}
	d.group, d.journal, d.started = g, j, true
	if err := j.lock(); err != nil {
		log.G(d.ctx).WithError(err).Warn("fanotify: a journal that is paged out may fail a read")
	}
	d.recoverFrom(j)
	for range d.conf.Readers {
		d.loops.Go((&loop{d: d}).run)
	}
	return nil
}

func (d *Driver) fresh() (*group, *journal, error) {
	if err := raiseFileLimit(); err != nil {
		return nil, nil, err
	}
	g, err := newGroup()
	if err != nil {
		return nil, nil, err
	}
	j, err := newJournal(d.conf.MaxInFlight)
	if err != nil {
		return nil, nil, errors.Join(err, g.close())
	}
	return g, j, nil
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
