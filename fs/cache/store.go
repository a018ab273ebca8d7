package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Store is a directory of layers: layers/<algorithm>-<hex>/ and trash/ for what
// is being deleted. Its methods are safe for concurrent use, also by several
// processes.
type Store struct {
	root string
}

// OpenStore opens or makes the store in root.
func OpenStore(root string) (*Store, error) {
	s := &Store{root: root}
	for _, dir := range []string{s.layers(), s.trash()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("opening the cache in %s: %w", root, err)
		}
	}
	return s, nil
}

func (s *Store) layers() string { return filepath.Join(s.root, "layers") }
func (s *Store) trash() string  { return filepath.Join(s.root, "trash") }

// Root returns the directory of the store.
func (s *Store) Root() string { return s.root }

// Dir returns the directory of a layer, whether or not it exists. Only a valid
// digest has one, so nothing that a label says becomes a path.
func (s *Store) Dir(id digest.Digest) (string, error) {
	if err := id.Validate(); err != nil {
		return "", fmt.Errorf("looking for layer %q in the cache: %w", string(id), err)
	}
	return filepath.Join(s.layers(), id.Algorithm().String()+"-"+id.Encoded()), nil
}

// Entry is one layer in the store.
type Entry struct {
	// ID is the digest of the layer's blob.
	ID digest.Digest
	// Bytes is what the layer takes on disk.
	Bytes int64
	// LastUsed is when the layer was last opened.
	LastUsed time.Time
}

// List returns the layers in the store. What does not look like a layer is left
// out.
func (s *Store) List() ([]Entry, error) {
	dirs, err := os.ReadDir(s.layers())
	if err != nil {
		return nil, fmt.Errorf("listing the cache: %w", err)
	}
	var out []Entry
	for _, d := range dirs {
		algorithm, encoded, _ := strings.Cut(d.Name(), "-")
		id := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
		if !d.IsDir() || id.Validate() != nil {
			continue
		}
		e, err := s.Stat(id)
		if errors.Is(err, os.ErrNotExist) {
			continue // removed while we looked
		}
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// Stat returns one layer. A layer that is not there gives os.ErrNotExist.
func (s *Store) Stat(id digest.Digest) (Entry, error) {
	dir, err := s.Dir(id)
	if err != nil {
		return Entry{}, err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return Entry{}, fmt.Errorf("looking at layer %s in the cache: %w", id, err)
	}
	e := Entry{ID: id, LastUsed: st.ModTime()}
	for _, name := range []string{dataName, bitmapName, recordName, indexName, sealName} {
		st, err := os.Lstat(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return Entry{}, fmt.Errorf("looking at layer %s in the cache: %w", id, err)
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			e.Bytes += sys.Blocks * 512
		}
	}
	return e, nil
}

// OpenFile opens the data file of the layer o.ID, whose directory takes the
// place of o.Dir, and notes the use.
func (s *Store) OpenFile(o Options) (*File, error) {
	dir, err := s.Dir(o.ID)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	f, err := OpenFile(o)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		return nil, errors.Join(fmt.Errorf("noting the use of %s: %w", o.ID, err), f.Close(context.Background()))
	}
	return f, nil
}

// Remove deletes a layer that nobody has open, else it gives ErrInUse. The
// caller knows whether a superblock still holds the layer. A layer that is not
// there is no error. The directory is gone in one step; its files follow.
func (s *Store) Remove(id digest.Digest) error {
	dir, err := s.Dir(id)
	if err != nil {
		return err
	}
	lock, err := lockDir(dir, false)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing layer %s from the cache: %w", id, err)
	}
	defer lock.Close()
	grave, err := os.MkdirTemp(s.trash(), "")
	if err != nil {
		return fmt.Errorf("removing layer %s from the cache: %w", id, err)
	}
	if err := os.Rename(dir, filepath.Join(grave, filepath.Base(dir))); err != nil {
		return errors.Join(fmt.Errorf("removing layer %s from the cache: %w", id, err), os.Remove(grave))
	}
	if err := os.RemoveAll(grave); err != nil {
		return fmt.Errorf("deleting the files of layer %s: %w", id, err)
	}
	return nil
}

// Sweep deletes what a Remove that was cut short left behind.
func (s *Store) Sweep(ctx context.Context) error {
	graves, err := os.ReadDir(s.trash())
	if err != nil {
		return fmt.Errorf("sweeping the cache: %w", err)
	}
	var errs []error
	for _, g := range graves {
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, os.RemoveAll(filepath.Join(s.trash(), g.Name())))
	}
	return errors.Join(errs...)
}

// Health is what an operator wants to know of the store.
type Health struct {
	// FreeBytes and TotalBytes are those of the file system, as an unprivileged
	// writer sees them.
	FreeBytes, TotalBytes int64
}

// Health looks at the file system of the store and tries to write to it.
func (s *Store) Health() (Health, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.root, &st); err != nil {
		return Health{}, fmt.Errorf("looking at the file system of %s: %w", s.root, err)
	}
	h := Health{FreeBytes: int64(st.Bavail) * st.Bsize, TotalBytes: int64(st.Blocks) * st.Bsize}
	probe, err := os.MkdirTemp(s.trash(), "")
	if err != nil {
		return h, fmt.Errorf("writing to the cache in %s: %w", s.root, err)
	}
	return h, os.Remove(probe)
}
