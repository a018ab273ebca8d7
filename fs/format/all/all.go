package all

import (
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/format/erofsraw"
	"github.com/lazyerofs/lazyerofs/fs/format/zstdseek"
)

// All returns every format, the one to prefer first where two match.
func All() []format.Format {
	return []format.Format{
		zstdseek.New(),
		erofsraw.New(),
	}
}
