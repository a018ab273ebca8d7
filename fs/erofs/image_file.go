package erofs

// File says where the bytes of a regular file are, or where that is said. It is
// small and holds as long as the Image does.
type File struct {
	// Size is the length in bytes; 0 too for what is no regular file.
	Size int64
	// one is the file's only extent, when there is no map at mapAt.
	one   Extent
	mapAt int64
	shift uint8 // log2 of the chunk size
	width uint8 // of an entry of the map
}

// File looks a file up, for Extent and Seek.
func (m *Image) File(nid Nid) (File, error) {
	s := m.open(lookAhead)
	defer s.close()
	d, off, err := s.inode(nid)
	if err != nil || d.Mode&modeType != modeReg {
		return File{}, err
	}
	return s.file(&d, off)
}

// Extent returns the run of a file's bytes that holds byte off, of [0, Size). It
// may begin before off, and is cut short behind the n bytes from there on at the
// earliest. It allocates nothing.
func (m *Image) Extent(f *File, off, n int64) (Extent, error) {
	if f.mapAt == 0 {
		return f.one, nil
	}
	s := m.open(0)
	defer s.close()
	return s.extent(f, off, n)
}

// Seek finds the first byte from off on that is data, or in a hole. It is false
// where there is none before the end of the file.
func (m *Image) Seek(f *File, off int64, hole bool) (int64, bool, error) {
	s := m.open(0)
	defer s.close()
	for off < f.Size {
		e, err := s.extent(f, off, f.Size-off)
		if err != nil {
			return 0, false, err
		}
		if (e.Addr == HoleAddr) == hole {
			return off, true, nil
		}
		off = e.Off + e.Len
	}
	return 0, false, nil
}

// file looks up the regular file d, which is at byte off.
func (s *question) file(d *diskInode, off int64) (File, error) {
	f := File{Size: int64(d.Size)}
	switch {
	case f.Size == 0:
		return f, nil
	case d.layout() == layoutPlain:
		f.one = Extent{Len: f.Size, Addr: int64(d.U) * s.m.block}
		return f, nil
	case d.layout() != layoutChunks || d.U&^chunkKnown != 0:
		return f, changed(off, "layout %d of a regular file", d.layout())
	}
	f.shift, f.width = uint8(d.U&chunkBitsMask)+s.m.super.BlockBits, chunkBlockSize
	if d.U&chunkIndexes != 0 {
		f.width = chunkIndexSize
	}
	at := alignUp(off+d.head(), int64(f.width))
	if (f.Size-1)>>f.shift > 0 {
		f.mapAt = at
		return f, nil
	}
	var err error
	f.one, err = s.chunk(&f, at, 0)
	return f, err
}

// extent joins the chunks of [off, off+n) that follow each other on a device.
func (s *question) extent(f *File, off, n int64) (Extent, error) {
	if f.mapAt == 0 {
		return f.one, nil
	}
	k, last := off>>f.shift, (min(off+n, f.Size)-1)>>f.shift
	s.ahead = max(s.ahead, (last-k+1)*int64(f.width))
	e, err := s.chunk(f, f.mapAt, k)
	for more := true; err == nil && more && k < last; {
		k++
		var next Extent
		if next, err = s.chunk(f, f.mapAt, k); err == nil {
			more = e.join(next)
		}
	}
	return e, err
}

// join makes e longer by next, which follows it in the file, if it does on the
// device too.
func (e *Extent) join(next Extent) bool {
	if e.Device != next.Device || (e.Addr == HoleAddr) != (next.Addr == HoleAddr) ||
		e.Addr != HoleAddr && e.Addr+e.Len != next.Addr {
		return false
	}
	e.Len += next.Len
	return true
}

// chunk reads entry k of the map at byte at.
func (s *question) chunk(f *File, at, k int64) (Extent, error) {
	at += k * int64(f.width)
	b, err := s.view(at, int64(f.width))
	if err != nil {
		return Extent{}, err
	}
	e := Extent{Off: k << f.shift, Addr: HoleAddr}
	e.Len = min(1<<f.shift, f.Size-e.Off)
	c := getChunk(b)
	if c.Block == nullBlock {
		return e, nil
	}
	if c.Device > s.m.super.Devices {
		return Extent{}, changed(at, "a chunk on device %d", c.Device)
	}
	e.Device, e.Addr = c.Device, int64(c.Block)*s.m.block
	return e, nil
}
