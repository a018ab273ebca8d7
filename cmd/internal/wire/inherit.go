package wire

import (
	"errors"
	"os"
	"strings"
	"sync"

	"github.com/lazyerofs/lazyerofs/fs/driver"
	"github.com/lazyerofs/lazyerofs/fs/driver/fanotify"
	"github.com/lazyerofs/lazyerofs/fs/fdstore"
)

// Inheritance is what a predecessor of this process left, by name.
type Inheritance driver.Inheritance

// Inherit takes over what a predecessor left with the keeper of descriptors. The
// store is nil when nobody keeps descriptors for this process. It must be called
// once, before anything opens files: what was left stands at fixed descriptor
// numbers, and events that a predecessor took are answered by number.
func Inherit() (*fdstore.Store, Inheritance, error) {
	store, err := fdstore.New()
	if errors.Is(err, fdstore.ErrNoKeeper) {
		return nil, Inheritance{}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	left := Inheritance(store.Inherited())
	return store, left, fanotify.Reserve(driver.Inheritance(left))
}

// has reports whether a driver left anything: what it keeps begins with its name.
func (in Inheritance) has(driverName string) bool {
	for name := range in {
		if strings.HasPrefix(name, driverName+"-") {
			return true
		}
	}
	return false
}

// writers guards handing out inherited descriptors.
var writers sync.Mutex

// writer hands out, once, the descriptor of a layer's data file.
func (in Inheritance) writer(layerID string) *os.File {
	writers.Lock()
	defer writers.Unlock()
	name := fanotify.WriterName(layerID)
	files := in[name]
	if len(files) == 0 {
		return nil
	}
	in[name] = files[1:]
	return files[0]
}
