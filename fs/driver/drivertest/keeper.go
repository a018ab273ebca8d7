package drivertest

import (
	"errors"
	"os"
	"sync"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
)

// Keeper keeps descriptors as a supervisor would, but in this process: its
// duplicates outlive a driver that shuts down or is dropped.
type Keeper struct {
	mu   sync.Mutex
	held map[string][]*os.File
	fail error
}

// Put keeps a duplicate of f.
func (k *Keeper) Put(name string, f *os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return k.fail
	}
	dup, err := lifetime.DuplicateFile(f)
	if err != nil {
		return err
	}
	if k.held == nil {
		k.held = map[string][]*os.File{}
	}
	k.held[name] = append(k.held[name], dup)
	return nil
}

// Remove drops what is kept under name.
func (k *Keeper) Remove(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, f := range k.held[name] {
		errs = append(errs, f.Close())
	}
	delete(k.held, name)
	return errors.Join(errs...)
}

// Refuse makes Put fail with err, or work again with nil.
func (k *Keeper) Refuse(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = err
}

// Inherited returns duplicates of everything, as a successor process gets them.
func (k *Keeper) Inherited() (driver.Inheritance, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	files := driver.Inheritance{}
	for name, held := range k.held {
		for _, f := range held {
			dup, err := lifetime.DuplicateFile(f)
			if err != nil {
				return nil, err
			}
			files[name] = append(files[name], dup)
		}
	}
	return files, nil
}

// Names lists what is kept.
func (k *Keeper) Names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	names := []string{}
	for name := range k.held {
		names = append(names, name)
	}
	return names
}

// Close drops everything.
func (k *Keeper) Close() error {
	var errs []error
	for _, name := range k.Names() {
		errs = append(errs, k.Remove(name))
	}
	return errors.Join(errs...)
}
