package fusesession

import (
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
)

// through is files of which one is read by the kernel itself.
type through struct {
	*files
	node uint64
	id   atomic.Int32
}

func (f *through) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId == f.node {
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH, f.id.Load()
	}
	return fuse.OK
}

func TestPassthrough(t *testing.T) {
	var fs *through
	fds := openFiles(t)
	r := newRig(t, func(_ *MountConfig, c *Config) {
		f, _ := c.FS.(*files)
		f.content = f.content[:1]
		f.names = f.names[:1]
		f.content[0] = []byte("the whole of a file")
		f.back(t)
		fs = &through{files: f, node: 2}
		c.FS, c.Passthrough = fs, true
	})
	r.fds = fds + 1
	id, err := r.s.RegisterBacking(r.fs.backing)
	if r.s.Agreed()&fuse.CAP_PASSTHROUGH == 0 { // before Linux 6.9
		require.Error(t, err)
		r.readAll()
		r.end()
		return
	}
	require.NoError(t, err)
	fs.id.Store(id)
	r.readAll()
	require.Zero(t, r.fs.reads.Load())
	require.NoError(t, r.s.UnregisterBacking(id))
	require.Error(t, r.s.UnregisterBacking(id))
	r.end()
}

func TestNoPassthrough(t *testing.T) {
	fds := openFiles(t)
	r := newRig(t, nil)
	require.Zero(t, r.s.Agreed()&fuse.CAP_PASSTHROUGH)
	r.fs.back(t)
	_, err := r.s.RegisterBacking(r.fs.backing)
	require.Error(t, err)
	r.fds = fds + 1
	r.end()
}

// What was agreed holds for every server, whatever it would ask for itself.
func TestAgreementIsKept(t *testing.T) {
	r := newRig(t, func(_ *MountConfig, c *Config) { c.MaxRead = 64 << 10 })
	agreed := r.s.Agreed()
	require.Equal(t, 64<<10, r.s.MaxRead())
	require.NotZero(t, agreed&fuse.CAP_READDIRPLUS)
	require.NoError(t, r.s.Shutdown(t.Context()))
	conf := r.config()
	conf.Options.DisableReadDirPlus = true
	conf.Options.EnableSymlinkCaching = true
	r.adopt(conf)
	require.Equal(t, agreed, r.s.Agreed())
	require.Equal(t, 64<<10, r.s.MaxRead())
	r.readAll()
	r.end()
}
