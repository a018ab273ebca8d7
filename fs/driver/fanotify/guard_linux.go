package fanotify

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"sync/atomic"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// guard is one data file whose events we answer. It is in the table from before
// its mark until no superblock holds the file: events may be queued after the
// mark is gone.
type guard struct {
	key     key
	id      string
	layer   driver.Layer // nil: a predecessor's, not adopted yet
	suspect atomic.Bool  // events were lost: deny

	// While layer is nil.
	writer  *os.File      // what the predecessor kept; nil: perhaps of a complete layer
	adopted chan struct{} // closed when another guard takes this one's place, or none will

	// Under Driver.mu.
	refs   int           // mounts
	marked bool          // and kept
	stop   chan struct{} // ends watch; closed when refs falls to 0
	settle sync.Once
}

// letGo ends the wait of events for an adoption.
func (g *guard) letGo() { g.settle.Do(func() { close(g.adopted) }) }

// protect registers the layer's data file and marks it, in the order that
// leaves no moment without a guard. The caller holds d.mu.
func (d *Driver) protect(l driver.Layer, k key) (*guard, error) {
	old := (*d.table.Load())[k]
	if old != nil && old.layer != nil {
		switch {
		case old.layer != l:
			return nil, fmt.Errorf("layer %s: its data file is mounted already, for layer %s", l.ID(), old.id)
		case old.refs == 0:
			return nil, fmt.Errorf("layer %s: its mount was released to a successor", l.ID())
		}
		old.refs++
		return old, nil
	}
	g := &guard{key: k, id: l.ID(), layer: l, refs: 1, stop: make(chan struct{})}
	if old != nil {
		g.suspect.Store(old.suspect.Load())
	}
	inherited := old != nil && old.writer != nil
	if err := d.keep(g, inherited); err != nil {
		return nil, err
	}
	d.update(func(t map[key]*guard) { t[k] = g })
	if err := d.group.mark(l.Data()); err != nil {
		d.update(func(t map[key]*guard) {
			delete(t, k)
			if old != nil {
				t[k] = old
			}
		})
		return nil, errors.Join(err, d.unkeep(g, inherited))
	}
	g.marked = true
	if old != nil {
		old.letGo()
	}
	d.watchers.Go(func() { d.watch(g) })
	return g, nil
}

// vouch registers a complete layer whose data file may have events that are not
// answered yet. The caller holds d.mu.
func (d *Driver) vouch(l driver.Layer, k key) *guard {
	g := &guard{key: k, id: l.ID(), layer: l, refs: 1, stop: make(chan struct{})}
	old := (*d.table.Load())[k]
	d.update(func(t map[key]*guard) { t[k] = g })
	if old != nil {
		g.suspect.Store(old.suspect.Load())
		old.letGo()
	}
	return g
}

// keep hands the journal, the group and the layer's writer to the keeper, in this
// order: a journal without its group means nothing, a group without its journal
// loses events. An inherited writer is there already.
func (d *Driver) keep(g *guard, inherited bool) error {
	if !d.groupKept {
		if err := d.keepGroup(); err != nil {
			return err
		}
	}
	if inherited {
		return nil
	}
	if err := d.conf.Keeper.Put(WriterName(g.id), g.layer.Data()); err != nil {
		return errors.Join(fmt.Errorf("keeping the writer of layer %s: %w", g.id, err), d.dropGroup())
	}
	d.writers++
	return nil
}

func (d *Driver) keepGroup() error {
	if err := d.keepJournal(d.journal); err != nil {
		return err
	}
	f, err := d.group.file()
	if err != nil {
		return errors.Join(err, d.dropJournal())
	}
	err = d.conf.Keeper.Put(GroupName, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("keeping the fanotify group: %w", err), d.dropJournal())
	}
	d.groupKept = true
	return nil
}

// unkeep takes the writer back, and the group with the last one. The keeper
// then knows by its emptiness that no read can find a hole.
func (d *Driver) unkeep(g *guard, leave bool) error {
	if leave {
		return nil
	}
	d.writers--
	if err := d.conf.Keeper.Remove(WriterName(g.id)); err != nil {
		return errors.Join(fmt.Errorf("letting go of the writer of layer %s: %w", g.id, err), d.dropGroup())
	}
	return d.dropGroup()
}

func (d *Driver) dropGroup() error {
	if d.writers > 0 || !d.groupKept {
		return nil
	}
	d.groupKept = false
	if err := d.conf.Keeper.Remove(GroupName); err != nil {
		return fmt.Errorf("letting go of the fanotify group: %w", err)
	}
	return d.dropJournal()
}

func (d *Driver) dropJournal() error {
	d.journal.kept.Store(false)
	if err := d.conf.Keeper.Remove(JournalName); err != nil {
		return fmt.Errorf("letting go of the journal of events: %w", err)
	}
	return nil
}

// unprotect removes the mark, after which reads go straight through. The caller
// holds d.mu.
func (d *Driver) unprotect(g *guard) error {
	if !g.marked {
		return nil
	}
	if err := d.group.unmark(g.layer.Data()); err != nil {
		return err
	}
	g.marked = false
	return d.unkeep(g, false)
}

// watch removes the mark when the layer is complete.
func (d *Driver) watch(g *guard) {
	select {
	case <-g.stop:
		return
	case <-d.watchers.Stopping(): // a successor looks again
		return
	case <-g.layer.Complete():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.unprotect(g); err != nil {
		// Still right, only slow: events of a resident range are allowed.
		d.trouble("removing the mark of complete layer "+g.id, err)
	}
}

// release gives one mount's share of g back; gone says that no superblock holds
// the file any more, otherwise the mark stays for a successor.
func (d *Driver) release(g *guard, gone bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	g.refs--
	if g.refs > 0 {
		return nil
	}
	close(g.stop)
	if !gone {
		return nil
	}
	err := d.unprotect(g)
	if err == nil {
		d.update(func(t map[key]*guard) { delete(t, g.key) })
	}
	return err
}

// update publishes a changed copy of the table. The caller holds d.mu.
func (d *Driver) update(change func(map[key]*guard)) {
	t := maps.Clone(*d.table.Load())
	change(t)
	d.table.Store(&t)
}
