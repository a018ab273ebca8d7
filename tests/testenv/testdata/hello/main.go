// Command hello is the workload of the smallest image: it prints what it finds
// in its own file system, so that a test sees which layers it runs on.
package main

import (
	"fmt"
	"os"
)

func main() {
	for _, name := range os.Args[1:] {
		data, err := os.ReadFile(name)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Printf("%s: %s", name, data)
	}
}
