package fusesession

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// timeLen is how many characters of a name are the time at which it was made.
const timeLen = 16

// NewName returns the name of a session that is made now at place, greater than
// those of older ones there. A mount that was closed may be read for long, and
// another be made at its place meanwhile: both are kept, each under its own name.
func NewName(place string) string {
	return fmt.Sprintf("%s-%0*x", place, timeLen, time.Now().UnixNano())
}

// PlaceOf returns the place in a name of NewName; false for other names, those of
// states among them.
func PlaceOf(name string) (place string, ok bool) {
	i := strings.LastIndexByte(name, '-')
	if i < 1 || len(name)-i-1 != timeLen {
		return "", false
	}
	_, err := strconv.ParseUint(name[i+1:], 16, 64)
	return name[:i], err == nil
}

// Newest returns the greatest of the names at place, "" for none.
func Newest(place string, names []string) (newest string) {
	for _, name := range names {
		if at, ok := PlaceOf(name); ok && at == place {
			newest = max(newest, name)
		}
	}
	return newest
}
