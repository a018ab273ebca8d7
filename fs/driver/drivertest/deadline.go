//go:build !guest

package drivertest

import "time"

// deadline bounds every wait for something that must happen.
const deadline = 30 * time.Second

// manyLayers is how many are mounted at once by the law of that name.
const manyLayers = 200
