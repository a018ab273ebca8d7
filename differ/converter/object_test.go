package converter

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestObject(t *testing.T) {
	for _, raw := range []string{``, `null`, `[]`, `1`, `{`} {
		_, err := parseObject([]byte(raw))
		require.ErrorContains(t, err, "not a JSON object", raw)
	}
	o, err := parseObject([]byte(`{"Subject":1,"ſubject":2,"subject ":3,"x":{"subject":4}}`))
	require.NoError(t, err)
	require.NoError(t, o.set("subject", 5))
	b, err := json.Marshal(o)
	require.NoError(t, err)
	require.JSONEq(t, `{"subject":5,"subject ":3,"x":{"subject":4}}`, string(b))
	o.remove("subject")
	require.Len(t, o, 2)
	require.ErrorContains(t, o.set("y", func() {}), "y: ")
}

// Every reader sees the new members alone, whatever names like them the image has.
func TestRewriteConfigOfLikeNames(t *testing.T) {
	b, err := rewriteConfig([]byte(`{"OS.features":["a"],"os.featureſ":["erofs","b"],"rootfſ":{"diff_ids":[1]},"OS":"linux"}`), []string{"x"}, true)
	require.NoError(t, err)
	require.JSONEq(t, `{"os.features":["b","erofs"],"rootfs":{"type":"layers","diff_ids":["x"]},"OS":"linux"}`, string(b))
}
