package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// JournalName is the name under which the journal is kept.
const JournalName = "fanotify-journal"

// Layout of the journal, all in the byte order of the machine: a header of
// slotLen bytes, then slots. See docs/formats/descriptor-store.md.
const (
	slotLen        = 64
	slotWords      = slotLen / 8
	journalMagic   = "lzfnjrnl"
	journalVersion = 1
	// maxJournal bounds what a journal of another build may make us map.
	maxJournal = 64 << 20
)

// errJournal reports a journal that this build cannot read.
var errJournal = errors.New("not a journal of this build")

// slot is one event that was taken: eventLen bytes as the kernel wrote them,
// then device and inode number of its file, which this process writes. It is in
// use exactly while its first word, with the event's length, is not zero.
type slot [slotWords]uint64

// Words of a slot that are ours.
const (
	wordDev = eventLen / 8
	wordIno = wordDev + 1
)

// event is the part that the kernel writes.
func (s *slot) event() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(s)), eventLen)
}

// identify records the file of the event, whose descriptor a successor does not
// have. The inode number comes last, in one store: while it is zero the file is
// not known.
func (s *slot) identify(k key) {
	s[wordDev] = k.dev
	atomic.StoreUint64(&s[wordIno], k.ino)
}

// key is the file of the event, or false when the process died before it could
// say.
func (s *slot) key() (key, bool) {
	ino := atomic.LoadUint64(&s[wordIno])
	return key{dev: s[wordDev], ino: ino}, ino != 0
}

func (s *slot) used() bool { return atomic.LoadUint64(&s[0]) != 0 }

// clear frees the slot. The first word goes first: a process that dies in here
// leaves a free slot and never one whose event has lost its file.
func (s *slot) clear() {
	atomic.StoreUint64(&s[0], 0)
	for i := 1; i < slotWords; i++ {
		s[i] = 0
	}
}

// header is the first slotLen bytes of a journal.
func header() []byte {
	b := make([]byte, slotLen)
	copy(b, journalMagic)
	ne := binary.NativeEndian
	ne.PutUint32(b[8:], journalVersion)
	ne.PutUint32(b[12:], slotLen)
	ne.PutUint32(b[16:], eventLen)
	return b
}

// checkHeader returns errJournal unless b begins a journal that this build can
// read.
func checkHeader(b []byte) error {
	if len(b) < slotLen || string(b[:len(journalMagic)]) != journalMagic {
		return fmt.Errorf("%w: no header", errJournal)
	}
	ne := binary.NativeEndian
	version, size, event := ne.Uint32(b[8:]), ne.Uint32(b[12:]), ne.Uint32(b[16:])
	if version != journalVersion || size != slotLen || event != eventLen {
		return fmt.Errorf("%w: version %d, slots of %d bytes, events of %d", errJournal, version, size, event)
	}
	return nil
}

// owed is one event that a predecessor took, as its slot tells.
type owed struct {
	slot *slot
	event
	err error // the event is not laid out as we know it
}

// unanswered returns what the slots hold. Whoever wrote them is dead.
func unanswered(slots []slot) []owed {
	var list []owed
	for i := range slots {
		s := &slots[i]
		if !s.used() {
			continue
		}
		o := owed{slot: s}
		o.event, _, o.err = next(s.event())
		list = append(list, o)
	}
	return list
}

// parseJournal reads a journal from a copy of its bytes.
func parseJournal(b []byte) ([]owed, error) {
	if err := checkHeader(b); err != nil {
		return nil, err
	}
	slots := make([]slot, len(b)/slotLen-1)
	for i := range slots {
		at := b[(i+1)*slotLen:]
		for w := range slots[i] {
			slots[i][w] = binary.NativeEndian.Uint64(at[w*8:])
		}
	}
	return unanswered(slots), nil
}
