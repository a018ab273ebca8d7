package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/fsverity"
)

// ErrWriters marks a data file that somebody else has open for writing, such as the
// keeper of descriptors, so that it cannot be sealed yet.
var ErrWriters = errors.New("the data file has other writers")

// sealName holds the fs-verity digest of a sealed data file.
const sealName = "fsverity"

// maxSealLen bounds what is read of it, in bytes.
const maxSealLen = 256

// openData opens the data file, for reading only when it is sealed.
func (f *File) openData(path string) (err error) {
	f.data, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	r, rerr := os.Open(path)
	if rerr != nil {
		return err
	}
	sum, merr := fsverity.Measure(r)
	if merr != nil {
		return errors.Join(err, r.Close())
	}
	f.data = r
	f.seal.Store(&sum)
	return nil
}

// doubtSeal says whether the data file must be replaced: it is not the file that was
// sealed here, or it is sealed and not whole. A file that was sealed by a process
// that ended before it could say so must be verified again. believe has run.
func (f *File) doubtSeal() (replace bool, err error) {
	var have digest.Digest
	if p := f.seal.Load(); p != nil {
		have = *p
		if countWords(f.durable.words) != f.id.chunks {
			return true, nil
		}
	}
	b, err := readFile(filepath.Join(f.dir, sealName), maxSealLen)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if have != "" {
			f.durable.verified = false
			f.unrecorded = true
		}
		return false, nil
	case err != nil:
		return false, err
	}
	return digest.Digest(strings.TrimSpace(string(b))) != have, nil
}

// startOver replaces the data file by an empty one.
func (f *File) startOver() error {
	if err := f.data.Close(); err != nil {
		return err
	}
	f.data, f.unrecorded = nil, false
	f.seal.Store(nil)
	path := filepath.Join(f.dir, dataName)
	for _, p := range []string{path, filepath.Join(f.dir, sealName)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := f.openData(path); err != nil {
		return err
	}
	return f.believe()
}

// Seal turns fs-verity on for the data file of a layer that is complete and on disk:
// from then on the kernel checks what it reads of it, for whoever has it open or
// mounted, and nobody can write to it. The File gives up its own right to write, for
// which it opens the file anew: nothing may have marked it any more whose events
// this process answers. It gives ErrNotResident for an incomplete layer, ErrWriters
// while somebody else can write, and an error that wraps kernel.ErrNotSupported
// where there is no fs-verity; the layer is then as good as before. A call reads the
// whole file, which only the end of the process interrupts.
func (f *File) Seal(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.flushing.Lock()
	defer f.flushing.Unlock()
	if f.seal.Load() != nil && !f.unrecorded {
		return nil
	}
	if countWords(f.durable.words) != f.id.chunks {
		return fmt.Errorf("sealing %s: %w", f.name, ErrNotResident)
	}
	if err := f.giveUpWriter(); err != nil {
		return fmt.Errorf("sealing %s: %w", f.name, err)
	}
	sum, err := fsverity.Seal(f.data)
	if errors.Is(err, fsverity.ErrBusy) {
		err = fmt.Errorf("%w: %w", ErrWriters, err)
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", f.name, err)
	}
	f.seal.Store(&sum)
	f.unrecorded = true
	if err := writeFile(filepath.Join(f.dir, sealName), []byte(sum.String()+"\n")); err != nil {
		return fmt.Errorf("layer %s: recording its seal: %w", f.name, err)
	}
	f.unrecorded = false
	return nil
}

// giveUpWriter puts a descriptor for reading in the place of f.data, under the same
// number: who has the number, or the *os.File, goes on with it.
func (f *File) giveUpWriter() error {
	flags, err := unix.FcntlInt(f.data.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return nil
	}
	path := filepath.Join(f.dir, dataName)
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := sameFile(f.data, path); err != nil {
		return err
	}
	if err := sameFile(r, path); err != nil {
		return err
	}
	return unix.Dup3(int(r.Fd()), int(f.data.Fd()), unix.O_CLOEXEC)
}

// Sealed returns the fs-verity digest of the data file, and "" while it has none.
func (f *File) Sealed() digest.Digest {
	if sum := f.seal.Load(); sum != nil {
		return *sum
	}
	return ""
}
