package format

import "errors"

// ErrNotLazy marks a layer that is well formed as far as was looked at but
// cannot be loaded lazily. The caller falls back to an ordinary download.
var ErrNotLazy = errors.New("layer cannot be loaded lazily")
