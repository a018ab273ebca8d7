package fusesession

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// Limits of Config.MaxRead in bytes.
const (
	minRead = 4096
	// MaxMaxRead is the largest: 256 pages of 4 KiB, what kernels allow by default.
	MaxMaxRead = 1 << 20
)

// Errors of this package. Others wrap an errno.
var (
	// ErrShutdown reports a call after Shutdown.
	ErrShutdown = errors.New("the FUSE session is shut down")
	// ErrUnborn reports a connection whose maker died before it could be used:
	// nobody has read from it, and closing its descriptors ends it.
	ErrUnborn = errors.New("the FUSE connection was never initialised")
)

// StateName is the name under which the state of the connection that is kept as
// name is kept.
func StateName(name string) string { return name + "-state" }

// Config says what to serve and how.
type Config struct {
	// Name is the name under which the Keeper has /dev/fuse; StateName has the
	// state. Required, and unique among the connections of a Keeper.
	Name string
	// Keeper guards the connection against the end of this process. Required.
	Keeper driver.Keeper
	// FS answers. Node ids must mean the same to every server of the connection,
	// and file handles must be 0 or mean the same, because the kernel keeps both
	// when the server changes. Its Init is not called; see Binder.
	FS fuse.RawFileSystem
	// Options may set MaxBackground, CongestionThreshold, MaxStackDepth,
	// DisableXAttrs, DisableReadDirPlus, EnableSymlinkCaching, SyncRead,
	// ExplicitDataCacheControl, ExtraCapabilities, DisabledCapabilities, Debug and
	// PanicHandler. Adopt takes what was negotiated instead.
	Options fuse.MountOptions
	// MaxRead is the largest read in bytes, 1 MiB if 0; at most that.
	MaxRead int
	// Passthrough lets FS register backing files, where the kernel can. A
	// connection that may cannot be below EROFS or overlay's upper layers.
	Passthrough bool
	// Loops is how many goroutines take requests; 0 means 2. Each answers from
	// memory what ResidentReader or Prompt allow; all else has a goroutine of its
	// own.
	Loops int
	// MaxInFlight is how many requests may be taken and unanswered; 0 means 1024.
	// The loops wait when it is reached.
	MaxInFlight int
	// Prompt, if set, says of a request, by its opcode and node, that FS answers
	// it without waiting for anything.
	Prompt func(opcode uint32, node uint64) bool
	// ReplayJournal makes Adopt answer what its predecessor took from the journal,
	// also where the kernel could send it again.
	ReplayJournal bool
}

// Binder is a FS that wants to know its Session. Bind is called before the
// first request.
type Binder interface{ Bind(*Session) }

// ResidentReader is a FS that can answer reads straight from a file.
type ResidentReader interface {
	// Resident returns where the bytes [off, off+n) of a node are, if they are
	// there: a descriptor and an offset in bytes, and how many there are, fewer
	// than n only at the end of the node. The descriptor must stay open until the
	// session ends. Resident is called for every read: no lock, no allocation.
	Resident(node uint64, off int64, n int) (fd int, at int64, length int, ok bool)
}

func (c *Config) defaults() error {
	switch {
	case c.Keeper == nil:
		return errors.New("a FUSE session needs a keeper of descriptors")
	case c.Name == "" || c.FS == nil:
		return errors.New("a FUSE session needs a name and a file system")
	case c.MaxRead > MaxMaxRead || c.MaxRead < 0 || c.MaxInFlight > maxSlots || c.MaxInFlight < 0:
		return errors.New("a limit of the FUSE session is out of range")
	}
	if c.MaxRead == 0 {
		c.MaxRead = MaxMaxRead
	}
	c.MaxRead = max(c.MaxRead, minRead)
	if c.Loops <= 0 {
		c.Loops = 2
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = defaultSlots
	}
	if c.Options.MaxBackground == 0 {
		c.Options.MaxBackground = 256
	}
	c.Options.MaxWrite = minWrite
	if !c.Passthrough {
		c.Options.DisabledCapabilities |= fuse.CAP_PASSTHROUGH
	}
	// Who reads an aborted connection must be told apart from an unmount, and
	// what a dead server took must be sent again.
	c.Options.ExtraCapabilities |= fuse.CAP_ABORT_ERROR | fuse.CAP_HAS_RESEND
	return nil
}

// minWrite is the least max_write; nothing is written through our mounts, and a
// larger one would need larger slots.
const minWrite = 4096
