package fanotify

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
)

// journal is the shared memory into which the kernel writes the events that this
// process takes, so that a successor finds what was not answered.
type journal struct {
	file  *os.File // memfd
	mem   []byte
	slots []slot // over mem, without the header
	// free holds the slots that no event and no loop has. Loops wait here when
	// Config.MaxInFlight events are being filled.
	free chan *slot
	kept atomic.Bool // the keeper has it
}

// newJournal makes a journal with n free slots.
func newJournal(n int) (*journal, error) {
	fd, err := unix.MemfdCreate(JournalName, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return nil, fmt.Errorf("making the journal of events: %w", err)
	}
	f := os.NewFile(uintptr(fd), JournalName)
	if _, err := f.WriteAt(header(), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("making the journal of events: %w", err), f.Close())
	}
	j, err := openJournal(f, n)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

// openJournal maps the journal in f, which it takes over unless it fails, with n
// free slots beside those that a predecessor left in use.
func openJournal(f *os.File, n int) (*journal, error) {
	list, size, err := readJournal(f)
	if err != nil {
		return nil, err
	}
	size -= size % slotLen
	if need := int64(1+len(list)+n) * slotLen; size < need {
		if err := f.Truncate(need); err != nil {
			return nil, fmt.Errorf("growing the journal of events: %w", err)
		}
		size = need
	}
	j := &journal{file: f, free: make(chan *slot, size/slotLen)}
	err = lifetime.Control(f, func(fd int) (err error) {
		// Populated and locked: a fault on these pages in the middle of read(2)
		// could fail, and the kernel would deny the event.
		j.mem, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mapping the journal of events: %w", err)
	}
	j.slots = unsafe.Slice((*slot)(unsafe.Pointer(&j.mem[slotLen])), size/slotLen-1)
	for i := range j.slots {
		s := &j.slots[i]
		if s.used() {
			continue
		}
		s.clear() // its owner may have died within clear
		if len(j.free) < n {
			j.free <- s
		}
	}
	return j, nil
}

// release makes a slot that was cleared free again. It never blocks: free has room
// for all.
func (j *journal) release(s *slot) { j.free <- s }

// lock keeps the pages of the journal in memory.
func (j *journal) lock() error {
	if err := unix.Mlock(j.mem); err != nil {
		return fmt.Errorf("locking the journal of events in memory: %w", err)
	}
	return nil
}

// readJournal reads the journal in f without mapping it; size is in bytes.
func readJournal(f *os.File) (list []owed, size int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, 0, fmt.Errorf("reading the journal of events: %w", err)
	}
	size = st.Size()
	if size > maxJournal {
		return nil, 0, fmt.Errorf("%w: %d bytes", errJournal, size)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, size), b); err != nil {
		return nil, 0, fmt.Errorf("reading the journal of events: %w", err)
	}
	list, err = parseJournal(b)
	return list, size, err
}

// Taken is an event that a daemon took and has not answered.
type Taken struct {
	FD, PID int32 // number in the daemon, process that reads
	Off, N  int64 // bytes of the data file
}

// ReadJournal returns the events in the journal f, a descriptor kept as
// JournalName, as they are at this moment. It disturbs nobody.
func ReadJournal(f *os.File) ([]Taken, error) {
	list, _, err := readJournal(f)
	var taken []Taken
	for _, o := range list {
		if o.fd != noFD {
			taken = append(taken, Taken{FD: o.fd, PID: o.pid, Off: o.off, N: o.n})
		}
	}
	return taken, err
}

// taken counts the slots that hold an event.
func (j *journal) taken() (n int) {
	for i := range j.slots {
		if j.slots[i].used() {
			n++
		}
	}
	return n
}

// close unmaps the journal. Nothing may use its slots any more.
func (j *journal) close() error {
	if err := errors.Join(unix.Munmap(j.mem), j.file.Close()); err != nil {
		return fmt.Errorf("closing the journal of events: %w", err)
	}
	return nil
}
