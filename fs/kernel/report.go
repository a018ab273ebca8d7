package kernel

// Capability is one line of what a machine can do.
type Capability struct {
	// Name is short, stable and lower case, for example "fanotify-pre-content".
	Name string
	// Err is the answer of the probe: nil, an error that wraps ErrNotSupported,
	// or an inconclusive one.
	Err error
}

// Names of the capabilities in a Report.
const (
	PreContent         = "fanotify-pre-content"
	FileBackedEROFS    = "erofs-file-backed"
	Overlay            = "overlay"
	CachefilesOnDemand = "cachefiles-ondemand"
	FUSE               = "fuse"
)

// Report runs every probe against cacheDir, the directory that holds the data
// files, in the order in which lazyerofs would like to use the capabilities.
func Report(cacheDir string) []Capability {
	return []Capability{
		{FileBackedEROFS, HaveFileBackedEROFS(cacheDir)},
		{Overlay, HaveOverlay(cacheDir)},
		{PreContent, HavePreContent(cacheDir)},
		{CachefilesOnDemand, HaveCachefilesOnDemand(cacheDir)},
		{FUSE, HaveFUSE()},
	}
}
