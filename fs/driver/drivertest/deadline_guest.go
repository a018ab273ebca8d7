//go:build guest

package drivertest

import "time"

// deadline bounds every wait for something that must happen. A guest without KVM
// is ten times slower than its host, or more.
const deadline = 5 * time.Minute

// manyLayers is how many are mounted at once by the law of that name. Each mount of
// what we serve starts a process, which takes half a second there.
const manyLayers = 50
