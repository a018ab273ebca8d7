package fusesession

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/lifetime"
)

// The state of a connection is a memfd beside its descriptor: a page with what
// was negotiated, then the journal, slots of slotSize bytes into which read(2)
// puts requests, and which are emptied after the answer was written. A slot
// begins with the length of its request, 0 when it is empty.
const (
	stateMagic   = 0x315353455346_4C5A // "ZLFSESS1"
	stateHeader  = 4096
	defaultSlots = 1024
	maxSlots     = 1 << 16
)

// Offsets in the first page.
const (
	atMagic    = 0
	atSlots    = 8
	atSlotSize = 12
	atConn     = 16
	atMaxRead  = 20
	atMajor    = 24 // major, minor, max_readahead, flags, flags2 of FUSE_INIT
	atAgreed   = 48 // flags of the answer
	atReady    = 56 // FUSE_INIT is answered
)

// errState reports a state that was not written by this package.
var errState = errors.New("not the state of a FUSE session")

// agreement is what the two sides of a connection settled in FUSE_INIT.
type agreement struct {
	// init is the body of the kernel's request: major, minor, max_readahead,
	// flags, flags2.
	init [5]uint32
	// flags is what the answer said.
	flags uint64
	// maxRead is in bytes.
	maxRead uint32
	// conn is the number below /sys/fs/fuse/connections.
	conn uint32
}

// journal is the mapped state.
type journal struct {
	file *os.File
	mem  []byte
	// left are the slots in use when the state was opened: the predecessor's.
	left []int32
	// free are slots that were used and are empty; fresh[given:] were never used
	// here. A slot that is touched is a page of memory, so those come last.
	free  chan int32
	fresh []int32
	given atomic.Int32
}

// newJournal makes an empty state.
func newJournal(slots int) (*journal, error) {
	fd, err := unix.MemfdCreate("fuse-session", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making the journal: %w", err)
	}
	f := os.NewFile(uintptr(fd), "fuse-session")
	size := int64(stateHeader) + int64(slots)*slotSize
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("sizing the journal: %w", err), f.Close())
	}
	var head [stateHeader]byte
	le := binary.NativeEndian
	le.PutUint64(head[atMagic:], stateMagic)
	le.PutUint32(head[atSlots:], uint32(slots))
	le.PutUint32(head[atSlotSize:], slotSize)
	if _, err := f.WriteAt(head[:], 0); err != nil {
		return nil, errors.Join(fmt.Errorf("writing the journal: %w", err), f.Close())
	}
	return openJournal(f)
}

// openJournal maps a state, and owns f from then on, also on error.
func openJournal(f *os.File) (*journal, error) {
	j, err := mapJournal(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

func mapJournal(f *os.File) (*journal, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	var head [stateHeader]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	slots, err := checkHeader(head[:], st.Size())
	if err != nil {
		return nil, err
	}
	mem, err := mapFile(f, int(st.Size()))
	if err != nil {
		return nil, err
	}
	j := &journal{file: f, mem: mem, free: make(chan int32, slots)}
	j.hold()
	if err := j.look(slots); err != nil {
		return nil, errors.Join(err, unix.Munmap(mem))
	}
	return j, nil
}

// look finds out which slots are in use. It reads the file: a look through the
// mapping would give memory to every slot.
func (j *journal) look(slots int) error {
	var length [4]byte
	for i := range int32(slots) {
		if _, err := j.file.ReadAt(length[:], stateHeader+int64(i)*slotSize); err != nil {
			return fmt.Errorf("reading the journal: %w", err)
		}
		if binary.NativeEndian.Uint32(length[:]) == 0 {
			j.fresh = append(j.fresh, i)
		} else {
			j.left = append(j.left, i)
		}
	}
	return nil
}

// hold keeps pages in memory from when they are touched, as far as RLIMIT_MEMLOCK
// lets it: see touch. A slot that is never used takes no memory.
func (j *journal) hold() {
	_, _, _ = unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(&j.mem[0])), uintptr(len(j.mem)), unix.MLOCK_ONFAULT)
}

// touch prepares an empty slot for read(2). A page that this process has not
// written to yet faults within the read, after the request was taken from the
// queue, and a fault fails when a SIGKILL is pending: the kernel then ends the
// request with EIO (fuse_dev_do_read), which no successor can make good. All
// requests that somebody waits for fit into the first page.
func (j *journal) touch(i int32) { j.length(i).Store(0) }

// get returns an empty slot and waits for one while all are in use; false once stop
// is closed.
func (j *journal) get(stop <-chan struct{}) (int32, bool) {
	select {
	case i := <-j.free:
		return i, true
	default:
	}
	if int(j.given.Load()) < len(j.fresh) {
		if n := int(j.given.Add(1)) - 1; n < len(j.fresh) {
			return j.fresh[n], true
		}
	}
	select {
	case i := <-j.free:
		return i, true
	case <-stop:
		return 0, false
	}
}

func mapFile(f *os.File, size int) (mem []byte, err error) {
	err = lifetime.Control(f, func(fd int) (err error) {
		mem, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mapping the journal: %w", err)
	}
	return mem, nil
}

// checkHeader returns the number of slots of a state of size bytes.
func checkHeader(head []byte, size int64) (int, error) {
	le := binary.NativeEndian
	if len(head) < stateHeader || le.Uint64(head[atMagic:]) != stateMagic {
		return 0, fmt.Errorf("%w: no magic number", errState)
	}
	slots := int64(le.Uint32(head[atSlots:]))
	if le.Uint32(head[atSlotSize:]) != slotSize || slots == 0 || slots > maxSlots || size != stateHeader+slots*slotSize {
		return 0, fmt.Errorf("%w: %d bytes with %d slots of %d", errState, size, slots, le.Uint32(head[atSlotSize:]))
	}
	return int(slots), nil
}

// slot is the memory of a slot.
func (j *journal) slot(i int32) []byte {
	at := stateHeader + int(i)*slotSize
	return j.mem[at : at+slotSize : at+slotSize]
}

// length is the first field of a slot.
func (j *journal) length(i int32) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&j.mem[stateHeader+int(i)*slotSize]))
}

// clear says that the request is answered. The slot may be used again.
func (j *journal) clear(i int32) { j.length(i).Store(0) }

// taken returns the request in a slot, if it has one.
func (j *journal) taken(i int32) ([]byte, bool) {
	n := j.length(i).Load()
	if n == 0 || n > slotSize {
		return nil, false
	}
	return j.slot(i)[:n:n], true
}

// slots is how many there are.
func (j *journal) slots() int32 { return int32(cap(j.free)) }

// put keeps what was agreed. It is marked as ready last.
func (j *journal) put(a agreement) {
	le := binary.NativeEndian
	le.PutUint32(j.mem[atConn:], a.conn)
	le.PutUint32(j.mem[atMaxRead:], a.maxRead)
	for i, v := range a.init {
		le.PutUint32(j.mem[atMajor+4*i:], v)
	}
	le.PutUint64(j.mem[atAgreed:], a.flags)
	(*atomic.Uint32)(unsafe.Pointer(&j.mem[atReady])).Store(1)
}

// agreed returns what was kept.
func (j *journal) agreed() (agreement, error) {
	le := binary.NativeEndian
	if (*atomic.Uint32)(unsafe.Pointer(&j.mem[atReady])).Load() != 1 {
		return agreement{}, ErrUnborn
	}
	a := agreement{
		conn: le.Uint32(j.mem[atConn:]), maxRead: le.Uint32(j.mem[atMaxRead:]), flags: le.Uint64(j.mem[atAgreed:]),
	}
	for i := range a.init {
		a.init[i] = le.Uint32(j.mem[atMajor+4*i:])
	}
	if a.maxRead < minRead || a.maxRead > MaxMaxRead {
		return agreement{}, fmt.Errorf("%w: reads of %d bytes", errState, a.maxRead)
	}
	return a, nil
}

func (j *journal) close() error {
	err := unix.Munmap(j.mem)
	j.mem = nil
	return errors.Join(err, j.file.Close())
}

// Unanswered counts the requests that were taken and not answered, by the state
// of a connection as the keeper has it under StateName. It may be called while
// the connection is served.
func Unanswered(state *os.File) (int, error) {
	st, err := state.Stat()
	if err != nil {
		return 0, fmt.Errorf("looking into a journal: %w", err)
	}
	var head [stateHeader]byte
	if _, err := state.ReadAt(head[:], 0); err != nil {
		return 0, fmt.Errorf("%w: %w", errState, err)
	}
	slots, err := checkHeader(head[:], st.Size())
	if err != nil {
		return 0, err
	}
	count := 0
	var length [4]byte
	for i := range int64(slots) {
		if _, err := state.ReadAt(length[:], stateHeader+i*slotSize); err != nil {
			return 0, fmt.Errorf("looking into a journal: %w", err)
		}
		if binary.NativeEndian.Uint32(length[:]) != 0 {
			count++
		}
	}
	return count, nil
}
