package chunk

import "fmt"

// Origin says where bytes that failed a check came from, because the remedy
// differs: the disk's copy is fetched again, the registry's is refused.
type Origin uint8

const (
	// OriginRegistry marks bytes that a registry sent.
	OriginRegistry Origin = iota
	// OriginDisk marks bytes read back from the local cache.
	OriginDisk
)

// String returns "registry" or "disk".
func (o Origin) String() string {
	if o == OriginDisk {
		return "disk"
	}
	return "registry"
}

// CorruptError reports bytes that are not what a digest or a format says they
// must be. It is permanent for those bytes; a retry needs other bytes.
type CorruptError struct {
	// Origin is where the bytes came from.
	Origin Origin
	// What names the thing that failed, for example "chunk 12 of sha256:…".
	What string
	// Reason says which rule it breaks.
	Reason string
}

// Error returns one sentence that names the thing and the broken rule.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s from the %s is corrupt: %s", e.What, e.Origin, e.Reason)
}
