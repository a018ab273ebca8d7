package kernel

import (
	"errors"
	"fmt"
)

// ErrNotSupported is wrapped by the answer of a probe that was carried out and
// came out negative. Only such a negative answer may be cached.
var ErrNotSupported = errors.New("not supported here")

// unsupported is a conclusive refusal: err is what the kernel said, hint what
// would have to change.
func unsupported(step string, err error, hint string) error {
	if err == nil {
		return fmt.Errorf("%s: %w: %s", step, ErrNotSupported, hint)
	}
	return fmt.Errorf("%s: %w (%w): %s", step, err, ErrNotSupported, hint)
}

// Messages that several probes share.
const (
	needAdmin = "it needs CAP_SYS_ADMIN in the initial user namespace; run as root outside a user namespace"
	needFsAPI = "the kernel has no fsopen(2); Linux 5.2 or newer is needed"
)
