package chunk

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNativeMediaTypes(t *testing.T) {
	for mediaType, want := range map[string][2]bool{
		"application/vnd.erofs.layer.v1":              {true, false},
		"application/vnd.erofs.layer.v1+zstd":         {true, true},
		"application/vnd.erofs":                       {true, false},
		"application/vnd.erofs+zstd":                  {true, true},
		"application/vnd.erofs+gzip":                  {},
		"application/vnd.erofs.layer.v2":              {},
		"application/vnd.oci.image.layer.v1.tar+zstd": {},
		"": {},
	} {
		require.Equal(t, want, [2]bool{IsNative(mediaType), IsNativeZstd(mediaType)}, mediaType)
	}
}
