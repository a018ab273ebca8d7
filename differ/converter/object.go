package converter

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// object is a JSON object of which some members are changed and the others kept,
// those that we do not know included.
type object map[string]json.RawMessage

// parseObject refuses JSON that is something else than an object.
func parseObject(raw []byte) (object, error) {
	var o object
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if o == nil {
		return nil, errors.New("not a JSON object but null")
	}
	return o, nil
}

// remove removes every member that a reader of this name would see. Most are Go
// programs, and encoding/json takes any member whose name is the same but for
// case (Unicode's: "rootfſ" is rootfs, too).
func (o object) remove(name string) {
	for key := range o {
		if strings.EqualFold(key, name) {
			delete(o, key)
		}
	}
}

// set makes v the only member that a reader of this name sees.
func (o object) set(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	o.remove(name)
	o[name] = b
	return nil
}
