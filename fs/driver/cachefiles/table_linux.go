package cachefiles

import (
	"context"
	"fmt"
	"time"
)

// protect makes the device ready and kept and registers the cookies of a mount,
// before the kernel can ask for them.
func (d *Driver) protect(p *plan) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return ErrShutdown
	}
	if d.dev == nil {
		dev, err := bindDevice(d.conf.Dir)
		if err != nil {
			return err
		}
		if err := d.start(dev); err != nil {
			return err
		}
	}
	if err := d.keepDevice(); err != nil {
		return err
	}
	for i, k := range p.keys {
		d.guards[k] = newGuard(k, p.sources[i])
	}
	return nil
}

// keepDevice hands the device to the Keeper. The caller holds d.mu.
func (d *Driver) keepDevice() error {
	if d.kept {
		return nil
	}
	f, err := d.dev.file()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := d.conf.Keeper.Put(DeviceName, f); err != nil {
		return fmt.Errorf("keeping the cachefiles device: %w", err)
	}
	d.kept = true
	return nil
}

// guardOf finds the guard of an OPEN, or makes one that waits for an adoption: an
// object that was lost with a predecessor is opened anew before anyone adopts it.
func (d *Driver) guardOf(m message) *guard {
	if m.volume != "erofs,"+domain {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.guards[m.cookie]
	if _, _, ours := splitKey(m.cookie); g == nil && ours && d.expects {
		g = newGuard(m.cookie, nil)
		d.guards[m.cookie] = g
	}
	return g
}

// dropDevice takes the device back when nothing is served. The caller holds d.mu.
func (d *Driver) dropDevice() error {
	if !d.kept || len(d.guards) > 0 || len(d.objects) > 0 {
		return nil
	}
	d.kept = false
	if err := d.conf.Keeper.Remove(DeviceName); err != nil {
		return fmt.Errorf("letting go of the cachefiles device: %w", err)
	}
	return nil
}

// add registers an open object. The caller holds d.mu or is New.
func (d *Driver) add(o *object) {
	if old := d.objects[o.id]; old != nil {
		// The kernel uses a number again only after it has let go of the object.
		d.trouble("registering "+o.key, fmt.Errorf("object %d was %s", o.id, old.key))
		if old.guard.objects--; old.guard.objects == 0 {
			close(old.guard.idle)
		}
		_ = old.file.Close() // nothing is written through it any more
	}
	d.objects[o.id] = o
	if o.guard.objects++; o.guard.objects == 1 {
		o.guard.idle = make(chan struct{})
	}
}

// forget closes an object that the kernel let go of.
func (d *Driver) forget(o *object) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.objects[o.id] != o {
		return nil
	}
	delete(d.objects, o.id)
	g := o.guard
	if g.objects--; g.objects == 0 {
		close(g.idle)
		if g.orphan() {
			delete(d.guards, g.key)
		}
	}
	err := d.conf.Keeper.Remove(o.name())
	if cerr := o.file.Close(); err == nil {
		err = cerr
	}
	if derr := d.dropDevice(); err == nil {
		err = derr
	}
	return err
}

// unprotect forgets the cookies of a mount whose superblock is gone, and the
// objects that the kernel has not closed: an object that was lost before it was
// closed is not closed again.
func (d *Driver) unprotect(keys []string) error {
	d.mu.Lock()
	var left []*object
	for _, k := range keys {
		delete(d.guards, k)
	}
	for _, o := range d.objects {
		if d.guards[o.key] == nil && !o.guard.orphan() {
			left = append(left, o)
		}
	}
	d.mu.Unlock()
	var first error
	for _, o := range left {
		if err := d.forget(o); first == nil {
			first = err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.dropDevice(); first == nil {
		first = err
	}
	return first
}

// idle are the channels on which the guards of keys tell that no object is open.
func (d *Driver) idle(keys []string) []<-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []<-chan struct{}
	for _, k := range keys {
		if g := d.guards[k]; g != nil && g.objects > 0 {
			list = append(list, g.idle)
		}
	}
	return list
}

// awaitOpen waits until the kernel has opened every cookie: it opens those of
// devices in the background. A refused one keeps the mount from being shown.
func (d *Driver) awaitOpen(ctx context.Context, keys []string) error {
	limit := time.NewTimer(kernelWait)
	defer limit.Stop()
	for _, k := range keys {
		d.mu.Lock()
		g := d.guards[k]
		d.mu.Unlock()
		select {
		case <-g.asked:
		case <-limit.C:
			return fmt.Errorf("the kernel did not open %s within %v", k, kernelWait)
		case <-ctx.Done():
			return fmt.Errorf("waiting for the kernel to open %s: %w", k, ctx.Err())
		case <-d.watchers.Stopping():
			return ErrShutdown
		}
	}
	return d.refusal(keys)
}

// refusal says why an object of the mount was refused, if one was.
func (d *Driver) refusal(keys []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range keys {
		if g := d.guards[k]; g != nil && g.refusal != nil {
			return g.refusal
		}
	}
	return nil
}
