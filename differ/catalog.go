package differ

// catalog is what the first pass says of the data of all files. The second plans
// the image from it, wherever the data is.
type catalog struct {
	chunkSize int64
	records   []record
	runs      []run
}

// record is the data of one regular file. A big file, of at least one chunk, is in
// chunks of its own and may have holes.
type record struct {
	size   int64
	off    int64 // in the tar, or of a small file in the spool of small files
	stored int64 // length of its runs
	run    int   // its runs are runs[run:run+runs]
	runs   int
	frame  int    // number of its first chunk among those of all big files
	check  uint64 // of a small file in the spool: xxHash64 of the data
	big    bool
}

// dataSource gives the data of the files in a catalog. Its methods may be called on
// several goroutines at once, but not twice for the same data.
type dataSource interface {
	// files returns the catalog.
	files() *catalog
	// chunk fills in data, store and sum of j for the k-th chunk of a big file.
	chunk(c *codec, j *job, rec *record, k int) error
	// smallFile fills p with a small file, as long as that is.
	smallFile(p []byte, rec int) error
}

func (c *catalog) files() *catalog { return c }

// isBig says whether a file of size bytes has chunks of its own.
func (c *catalog) isBig(size int64) bool { return size >= c.chunkSize }

// chunks returns the number of chunks of a big file.
func (c *catalog) chunks(rec *record) int {
	return int((rec.stored + c.chunkSize - 1) / c.chunkSize)
}

// chunkLen returns how many bytes of a big file are in its k-th chunk, which is
// padded to whole blocks.
func (c *catalog) chunkLen(rec *record, k int) int64 {
	return min(c.chunkSize, rec.stored-int64(k)*c.chunkSize)
}

// endRuns enters a big file's runs, the last of all.
func (c *catalog) endRuns(rec *record) {
	rec.runs = len(c.runs) - rec.run
	for _, r := range c.runs[rec.run:] {
		rec.stored += r.len
	}
}

// ranges calls yield for the parts of a big file that its k-th chunk is made of, in
// order, with their places in the file.
func (c *catalog) ranges(rec *record, k int, yield func(off, n int64) error) error {
	skip, left := int64(k)*c.chunkSize, c.chunkLen(rec, k)
	for _, r := range c.runs[rec.run : rec.run+rec.runs] {
		if skip >= r.len {
			skip -= r.len
			continue
		}
		n := min(left, r.len-skip)
		if err := yield(r.off+skip, n); err != nil {
			return err
		}
		if left -= n; left == 0 {
			break
		}
		skip = 0
	}
	return nil
}
